"""Which methods really differ: paired differences, corrected for many comparisons, and ranks.

Two methods are told apart by the difference of their values over the bootstrap's standard error of
that difference, both methods having been resampled alike: two-sided, against a normal distribution,
since a value is a mean over hundreds of test samples. (Shares of replicates can't serve: among 33
methods there are 528 pairs, and a thousand replicates know no probability below one in a
thousand.) All pairs of methods of a setting are one family, and Holm's correction (Scand. J.
Statist. 6, 1979) holds the chance that any two equally good methods are told apart at 5%. That the
best method was picked after looking is covered too: it is one of the pairs, whichever it is.

From the same tests come the groups of methods not told apart (a compact letter display, by
insertion and absorption: Piepho, J. Comput. Graph. Stat. 13, 2004), and for all methods at once a
95% set of ranks: a method is no better than those that beat it, and no worse than those it beats
(Mogstad, Romano, Shaikh and Wilhelm, Rev. Econ. Stud. 91, 2024). Percentiles of a rank's replicates
stand beside it. They show how a rank moves from draw to draw, and for methods that tie they do not
hold the true rank as often as they say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from leaveout.metrics.uncertainty import LEVEL

Floats = NDArray[np.float64]
ALPHA = 1 - LEVEL
ROUNDING = 1e-5
"""A difference this small is none: values have six decimals, and one formula computed in two ways
gives values as far apart as this, however surely."""


@dataclass(frozen=True)
class Comparison:
    """Methods of one setting, compared with each other.

    Attributes:
        value: (method,).
        rank: (method,), 1 for the largest value; equals share the mean of their ranks.
        rank_interval: (method, 2), 95% percentiles of the ranks in the replicates.
        rank_set: (method, 2), the least and the greatest rank that the tests leave, of all at once.
        difference: (method, method), the value of one less that of the other.
        low: Its 95% interval's lower end.
        high: Its upper end.
        p: Corrected for all pairs.
        groups: (method,), the numbers of the groups each belongs to.
        draws: Replicates in which all methods have a value.
    """

    value: Floats
    rank: Floats
    rank_interval: Floats
    rank_set: NDArray[np.int64]
    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    groups: list[list[int]]
    draws: int


def holm(p: Floats) -> Floats:
    """Return p-values corrected for how many they are, by Holm's step-down method.

    Args:
        p: (test,).
    """
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(stepped, 1.0)
    return out


def descending_ranks(values: Floats) -> Floats:
    """Return ranks along the first axis: 1 for the largest, and equals share the mean of theirs."""
    return np.asarray(rankdata(-values, axis=0), dtype=np.float64)


def compare(value: Floats, replicates: Floats) -> Comparison:
    """Compare methods that were resampled alike.

    Replicates are moved so that their mean is the value, as for its interval
    (:func:`leaveout.metrics.uncertainty.recentre`).

    Args:
        value: (method,), finite.
        replicates: (method, draw): replicate k of all methods comes from the same draw.
    """
    kept = replicates[:, np.isfinite(replicates).all(axis=0)]
    n, draws = kept.shape
    bounds = [ALPHA / 2, 1 - ALPHA / 2]
    difference = value[:, None] - value
    low, high, p = np.full((3, n, n), math.nan)
    rank_interval = np.full((n, 2), math.nan)
    if draws:
        moved = kept - kept.mean(axis=1, keepdims=True) + value[:, None]
        rank_interval = np.quantile(descending_ranks(moved), bounds, axis=1).T
        for i in range(n):
            # one method at a time: no array of all pairs and draws
            apart = moved[i] - moved
            low[i], high[i] = np.quantile(apart, bounds, axis=1)
            p[i] = _p_values(difference[i], apart.std(axis=1))
    upper = np.triu_indices(n, 1)
    corrected = np.ones((n, n))
    corrected[upper] = holm(np.nan_to_num(p[upper], nan=1.0))
    corrected.T[upper] = corrected[upper]
    told = corrected <= ALPHA
    beaten = (told & (difference > 0)).sum(axis=1)
    beaten_by = (told & (difference < 0)).sum(axis=1)
    return Comparison(
        value=value,
        rank=descending_ranks(value),
        rank_interval=rank_interval,
        rank_set=np.stack([1 + beaten_by, n - beaten], axis=1),
        difference=difference,
        low=low,
        high=high,
        p=corrected,
        groups=_numbered(groups(told), value),
        draws=draws,
    )


def _p_values(difference: Floats, error: Floats) -> Floats:
    """Return two-sided p-values of differences from their standard errors."""
    z = np.zeros(len(difference))
    size = np.abs(difference)
    # what no draw moves is certain
    np.divide(size, error, out=z, where=(size > ROUNDING) & (error > 0))
    p = np.array([math.erfc(x / math.sqrt(2)) for x in z])
    p[(size > ROUNDING) & (error == 0)] = 0.0
    return p


def groups(told: NDArray[np.bool_]) -> list[frozenset[int]]:
    """Return the largest groups in which no two methods are told apart.

    Two methods share a group exactly if they are not told apart.

    Args:
        told: (method, method), symmetric: which are told apart.
    """
    found = {frozenset(range(len(told)))}
    for i, j in zip(*np.nonzero(np.triu(told, 1)), strict=True):
        split = {group for group in found if i in group and j in group}
        parts = {group - {k} for group in split for k in (int(i), int(j))}
        found = found - split | parts
        found = {group for group in found if not any(group < other for other in found)}
    return sorted(found, key=sorted)


def _numbered(found: Sequence[frozenset[int]], value: Floats) -> list[list[int]]:
    """Return the numbers of each method's groups, the best methods' groups first."""
    order = sorted(found, key=lambda group: sorted((-value[k], k) for k in group))
    return [[g for g, group in enumerate(order, 1) if k in group] for k in range(len(value))]


def mean_ranks(settings: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, int]:
    """Return the mean over settings of each method's rank, and its 95% interval.

    Draws of different settings are independent, so the k-th of each go together. The interval is
    for these settings, not for others that could have been chosen.

    Args:
        settings: Values (method,) and replicates (method, draw) of the same methods, as many draws
            in each.

    Returns:
        (method,) and (method, 2), and in how many draws all methods have a value.
    """
    mean = np.mean([descending_ranks(value) for value, _ in settings], axis=0)
    drawn = np.zeros((len(mean), settings[0][1].shape[1]))
    for value, replicates in settings:
        known = np.isfinite(replicates).all(axis=0)
        drawn[:, ~known] = math.nan
        kept = replicates[:, known]
        if kept.shape[1]:
            moved = kept - kept.mean(axis=1, keepdims=True) + value[:, None]
            drawn[:, known] += descending_ranks(moved)
    drawn = drawn[:, np.isfinite(drawn).all(axis=0)] / len(settings)
    if not drawn.shape[1]:
        return mean, np.full((len(mean), 2), math.nan), 0
    bounds = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=1).T
    return mean, bounds, drawn.shape[1]
