"""What is chosen without retraining: which methods have a damping to choose, and its files."""

from __future__ import annotations

from leaveout.config.methods import Method

COLUMNS = (
    "setting",
    "metric",
    "method",
    "params",
    "damping",
    "training_damping",
    "effective_damping",
    "indicator",
    "n_test",
    "chosen",
)


def damped(method: Method) -> bool:
    """Return whether a method's grid has several values of ``damping``."""
    return len({point.get("damping") for point in method.grid} - {None}) > 1
