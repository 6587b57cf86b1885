"""Correlation per test sample, with undefined ones marked and their cause counted.

Both ground-truth metrics correlate, for every test sample, predictions with outcomes over some
units: subsets for the linear datamodeling score, removed samples for leave-one-out. Arrays here
are ``(unit, test)``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["pearson", "spearman"]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def is_broken(x: Floats) -> Bools:
    """Return which test samples have a NaN or infinite value: (unit, test) -> (test,)."""
    return np.asarray(~np.isfinite(x).all(axis=0))


def is_constant(x: Floats) -> Bools:
    """Return which test samples have all values equal: (unit, test) -> (test,)."""
    return np.asarray((x == x[:1]).all(axis=0))


def standardise(x: Floats) -> NDArray[np.float64]:
    """Centre each column and scale it to unit variance; constant or broken columns become zeros.

    Scaling by the largest magnitude first keeps the squares of huge or tiny scores inside float64.

    Args:
        x: (unit, test).
    """
    broken = is_broken(x)
    z = np.where(broken | is_constant(x), 0.0, x).astype(np.float64)
    largest = np.abs(z).max(axis=0)
    z /= np.where(largest > 0, largest, 1.0)
    z -= z.mean(axis=0)
    deviation = np.sqrt(np.square(z).mean(axis=0))
    z /= np.where(deviation > 0, deviation, 1.0)
    return z


def ranks(x: Floats) -> NDArray[np.float64]:
    """Rank each column from 1 on, ties sharing their average rank: (unit, test) -> (unit, test).

    As ``scipy.stats.rankdata``; but loading ``scipy.stats`` takes longer than most evaluations.
    """
    found = np.empty(x.shape)
    for column, out in zip(x.T, found.T, strict=True):
        _, which, counts = np.unique(column, return_inverse=True, return_counts=True)
        out[:] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return found


def correlate(kind: Kind, x: Floats, y: Floats) -> NDArray[np.float64]:
    """Correlate two arrays column by column.

    Args:
        kind: ``pearson``, or ``spearman`` (Pearson of the ranks, ties sharing their average rank).
        x: (unit, test).
        y: (unit, test).

    Returns:
        (test,): NaN where a column of either holds NaN or inf, or is constant.
    """
    undefined = is_broken(x) | is_broken(y) | is_constant(x) | is_constant(y)
    if kind == "spearman":
        x, y = (ranks(np.where(undefined, 0.0, array)) for array in (x, y))
    rho = np.clip((standardise(x) * standardise(y)).mean(axis=0), -1.0, 1.0)
    return np.where(undefined, np.nan, rho)
