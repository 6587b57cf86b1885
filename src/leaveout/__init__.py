"""leaveout: a reproducible benchmark of training-data attribution."""

__version__ = "0.1.0"
