"""Stands in a setting for what a Python program gives: samples, a model, an objective.

A benchmark of Python has a setting as the workflow's have one; these three it holds itself.
"""

from __future__ import annotations

from typing import Any

from leaveout.errors import LeaveoutError


def data(**_: Any) -> Any:
    """Refuse: the samples are in a program."""
    raise LeaveoutError("these samples were given to leaveout.Benchmark; they are in no module")


def model(**_: Any) -> Any:
    """Refuse: the model is in a program."""
    raise LeaveoutError("this model was given to leaveout.Benchmark; it is in no module")


def objective(**_: Any) -> Any:
    """Refuse: the objective is in a program."""
    raise LeaveoutError("this objective was given to leaveout.Benchmark; it is in no module")
