"""Training: one model at a time, or many as one stack."""
