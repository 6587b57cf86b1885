"""Running an attribution method: scores, self-influence, and damping without retraining."""
