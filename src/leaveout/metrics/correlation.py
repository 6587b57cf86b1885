"""Correlation per test sample, with undefined ones marked and their cause counted.

The ground-truth metrics correlate, for every test sample, predictions with outcomes over some
units: subsets for the linear datamodeling score, removed samples for leave-one-out. Arrays here
are ``(unit, test)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError


@dataclass(frozen=True)
class TopK:
    """No correlation, but in the place of one: the share of the k largest that are the same."""

    k: int


Kind = Literal["pearson", "spearman", "kendall"] | TopK
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


_BLOCK_NUMBERS = 1 << 18
"""Pairs of units at once: what stays in cache."""


def is_broken(x: Floats) -> Bools:
    """Return which test samples have a NaN or infinite value: (unit, test) -> (test,)."""
    return np.asarray(~np.isfinite(x).all(axis=0))


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the finite values, NaN if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


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


def _signs(x: Floats) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield sign(x_s - x_t) for some s at a time and all t: (which, (some, unit))."""
    size = max(1, _BLOCK_NUMBERS // len(x))
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        some = x[part, None]
        yield part, np.subtract(some > x, some < x, dtype=np.float32)


def concordance(x: Floats, y: Floats) -> NDArray[np.float64]:
    """Return with how many other units each one is in order, less those it is out of order with.

    ``sum_t sign(x_s - x_t) sign(y_s - y_t)``; of x with itself, with how many it does not tie.

    Args:
        x: (unit,).
        y: (unit,).

    Returns:
        (unit,), whole numbers. Their sum is twice the numerator of Kendall's tau.
    """
    found = np.empty(len(x))
    for (part, a), (_, b) in zip(_signs(x), _signs(y), strict=True):
        found[part] = np.einsum("st,st->s", a, b)
    return found


def _kendall(x: Floats, y: Floats) -> float:
    """Return Kendall's tau-b (1945) of two columns, neither of them constant."""
    both, own, other = (concordance(a, b).sum() for a, b in ((x, y), (x, x), (y, y)))
    return float(both / np.sqrt(own * other))


def membership(x: Floats, k: int) -> NDArray[np.float64]:
    """Return how likely each unit is to be among the k largest if ties are broken at random.

    Args:
        x: (unit,).
        k: How many; fewer than there are units.

    Returns:
        (unit,): 1 above the k-th largest value, 0 below, and for those that tie with it the share
        of them that is still wanted.
    """
    edge = np.partition(x, len(x) - k)[len(x) - k]
    above, tied = x > edge, x == edge
    share = float(k - above.sum()) / float(tied.sum())
    return np.asarray(above + share * tied, dtype=np.float64)


def correlate(kind: Kind, x: Floats, y: Floats) -> NDArray[np.float64]:
    """Correlate two arrays of one shape column by column.

    Args:
        kind: ``pearson``; ``spearman`` (Pearson of the ranks, ties sharing their average rank);
            ``kendall`` (tau-b); or ``TopK``, the share of the k largest that both have in common,
            expected over ties broken at random, independently in each.
        x: (unit, test).
        y: (unit, test).

    Returns:
        (test,): NaN where a column of either holds NaN or inf or, but for ``TopK``, is constant.

    Raises:
        LeaveoutError: The shapes differ: broadcasting would correlate with the wrong columns.
    """
    if x.shape != y.shape:
        raise LeaveoutError(f"expected two arrays (unit, test) of one shape: {x.shape}, {y.shape}")
    broken = is_broken(x) | is_broken(y)
    found = np.full(x.shape[1], np.nan)
    if isinstance(kind, TopK):
        for test in np.flatnonzero(~broken):
            both = membership(x[:, test], kind.k) * membership(y[:, test], kind.k)
            found[test] = both.sum() / kind.k
        return found
    undefined = broken | is_constant(x) | is_constant(y)
    if kind == "kendall":
        for test in np.flatnonzero(~undefined):
            found[test] = _kendall(x[:, test], y[:, test])
        return found
    if kind == "spearman":
        x, y = (ranks(np.where(undefined, 0.0, array)) for array in (x, y))
    rho = np.clip((standardise(x) * standardise(y)).mean(axis=0), -1.0, 1.0)
    return np.where(undefined, np.nan, rho)
