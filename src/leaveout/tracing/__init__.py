"""TracInCP on a user's own model, data and checkpoints, by the interface its users know."""
