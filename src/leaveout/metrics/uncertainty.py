"""Bootstrap intervals and the noise ceiling of a mean of per-test-sample correlations.

Test samples and units (subsets, or removed samples) are resampled together: a replicate draws both
with replacement. A draw is only ever a vector of counts, and correlations are computed under those
counts, exactly as if the drawn rows had been copied out; nothing is copied, and Spearman is ranked
anew in every replicate.

The noise ceiling (split-half reliability, Spearman 1910, Brown 1910): two runs of the same units
agree only up to training noise. If rho is their correlation, R runs averaged have reliability ``R
rho / (1 + (R - 1) rho)``, and even a predictor that knows the expected outcome can correlate with
them no better than its square root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leaveout.metrics.correlation import Floats, Kind, TopK, concordance, standardise

_F = TypeVar("_F", float, NDArray[np.float64])
Pair = tuple[int, int]
LEVEL = 0.95
# Below this share of a column's variance what is left is cancellation error, so the drawn values
# count as constant.
_NO_VARIANCE = 1e-12
# So many units take milliseconds a test sample for all pairs in all replicates.
_EXACT_UNITS = 500
_CHUNK_BYTES = 48 * 2**20


def resample_counts(
    generator: np.random.Generator, size: int, replicates: int
) -> NDArray[np.uint16]:
    """Draw bootstrap samples of ``size`` things, as counts of how often each was drawn.

    Returns:
        (size, replicates); every column sums to ``size``.
    """
    # no thing is drawn 65,536 times: the counts are Poisson with mean 1, nearly
    counts = np.empty((size, replicates), dtype=np.uint16)
    for column in counts.T:
        column[:] = np.bincount(generator.integers(size, size=size), minlength=size)
    return counts


def _spearman(
    columns: Sequence[Floats], pairs: Sequence[Pair], counts: NDArray[np.uint16], tests: slice
) -> NDArray[np.float64]:
    """Return Spearman under the counts for one chunk of test samples: (pair, test, replicate).

    ``sum_t sign(x_s - x_t) counts_t`` is twice the centred midrank of s among the drawn values.
    These and the sums of their products are integers, so float32 is exact as long as units^3 <
    2^24.
    """
    units, replicates = counts.shape
    weights = counts.astype(np.float32 if units**3 < 2**24 else np.float64)
    out = np.full((len(pairs), tests.stop - tests.start, replicates), np.nan)
    for k, test in enumerate(range(tests.start, tests.stop)):
        ranks, weighted, variance = [], [], []
        for column in columns:
            x = column[:, test]
            sign = np.greater.outer(x, x).astype(weights.dtype) - np.less.outer(x, x)
            ranks.append(sign @ weights)
            weighted.append(ranks[-1] * weights)
            variance.append(np.einsum("sb,sb->b", weighted[-1], ranks[-1]).astype(np.float64))
        for p, (a, b) in enumerate(pairs):
            product = variance[a] * variance[b]
            covariance = np.einsum("sb,sb->b", weighted[a], ranks[b])
            np.divide(covariance, np.sqrt(product), out=out[p, k], where=product > 0)
    return out


def _pearson(
    columns: Sequence[Floats], pairs: Sequence[Pair], counts: NDArray[np.uint16], tests: slice
) -> NDArray[np.float64]:
    """Return Pearson under the counts for one chunk of test samples: (pair, test, replicate)."""
    units, replicates = counts.shape
    z = [standardise(column[:, tests]) for column in columns]
    out = np.full((len(pairs), tests.stop - tests.start, replicates), np.nan)
    size = max(1, _CHUNK_BYTES // (8 * units))
    for start in range(0, replicates, size):
        part = slice(start, start + size)
        share = counts[:, part] / units
        mean = [x.T @ share for x in z]
        variance = [np.square(x).T @ share - m * m for x, m in zip(z, mean, strict=True)]
        for p, (a, b) in enumerate(pairs):
            covariance = (z[a] * z[b]).T @ share - mean[a] * mean[b]
            varied = (variance[a] > _NO_VARIANCE) & (variance[b] > _NO_VARIANCE)
            product = np.where(varied, variance[a] * variance[b], 1.0)
            np.divide(covariance, np.sqrt(product), out=out[p, :, part], where=varied)
    return out


def _pairs_in_order(x: Floats, y: Floats, counts: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Return pairs of drawn units in order in x and y, less those out of order, both ways round.

    That is ``w' M w`` with ``M = sign(x_s - x_t) sign(y_s - y_t)``. Of many units it is
    ``2 w' M 1 - 1' M 1``, which is exact up to the square of ``w - 1`` and takes units^2 once, not
    for every replicate. What is left out is a bias, which intervals do not see, and a part of the
    variance that falls with 1 / units.

    Args:
        x: (unit,).
        y: (unit,).
        counts: (unit, replicate), the w.

    Returns:
        (replicate,).
    """
    if len(x) > _EXACT_UNITS:
        rows = concordance(x, y)
        total: NDArray[np.float64] = 2 * (rows @ counts.astype(np.float64)) - rows.sum()
        return total
    weights = counts.astype(np.float32)  # whole numbers up to units^2: exact
    signs = [np.subtract(z[:, None] > z, z[:, None] < z, dtype=np.float32) for z in (x, y)]
    sums = np.einsum("sb,sb->b", (signs[0] * signs[1]) @ weights, weights)
    return np.asarray(sums, dtype=np.float64)


def _kendall(
    columns: Sequence[Floats], pairs: Sequence[Pair], counts: NDArray[np.uint16], tests: slice
) -> NDArray[np.float64]:
    """Return Kendall's tau-b under the counts for one chunk: (pair, test, replicate)."""
    out = np.full((len(pairs), tests.stop - tests.start, counts.shape[1]), np.nan)
    for k, test in enumerate(range(tests.start, tests.stop)):
        x = [column[:, test] for column in columns]
        untied = {a: _pairs_in_order(x[a], x[a], counts) for a in {a for p in pairs for a in p}}
        for p, (a, b) in enumerate(pairs):
            varied = (untied[a] > 0) & (untied[b] > 0)
            product = np.where(varied, untied[a] * untied[b], 1.0)
            both = _pairs_in_order(x[a], x[b], counts)
            np.divide(both, np.sqrt(product), out=out[p, k], where=varied)
    return out


def _drawn_membership(
    x: Floats, k: int, counts: NDArray[np.uint16]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the units that can be among the k largest of the drawn, and how likely each copy is.

    Args:
        x: (unit,).
        k: How many.
        counts: (unit, replicate).

    Returns:
        Which units, and the probabilities (these, replicate); all others have none.
    """
    order = np.argsort(-x, kind="stable")
    most, enough = 4 * k + 16, False
    while not enough:
        most = min(most, len(x))
        while most < len(x) and x[order[most]] == x[order[most - 1]]:
            most += 1  # those that tie are taken together
        top = order[:most]
        below = np.cumsum(counts[top], axis=0, dtype=np.int64)
        enough = most == len(x) or bool((below[-1] >= k).all())
        most *= 2
    # of each group of ties: how many were drawn above it, and in it
    starts = np.flatnonzero(np.concatenate([[True], np.diff(x[top]) != 0]))
    group = np.repeat(np.arange(len(starts)), np.diff([*starts, len(top)]))
    above = np.concatenate([np.zeros((1, counts.shape[1]), np.int64), below])[starts]
    inside = np.diff(np.concatenate([above, below[-1:]]), axis=0)
    share = np.clip((k - above) / np.maximum(inside, 1), 0.0, 1.0)
    return top, share[group]


def _top_k(
    k: int,
    columns: Sequence[Floats],
    pairs: Sequence[Pair],
    counts: NDArray[np.uint16],
    tests: slice,
) -> NDArray[np.float64]:
    """Return the overlap of the k largest of the drawn units: (pair, test, replicate).

    A unit drawn twice ties with itself, in both columns, and such ties are broken at random too.
    """
    out = np.zeros((len(pairs), tests.stop - tests.start, counts.shape[1]))
    for place, test in enumerate(range(tests.start, tests.stop)):
        found = {
            a: _drawn_membership(columns[a][:, test], k, counts)
            for a in {a for pair in pairs for a in pair}
        }
        for p, (a, b) in enumerate(pairs):
            units, i, j = np.intersect1d(found[a][0], found[b][0], return_indices=True)
            both = found[a][1][i] * found[b][1][j]
            out[p, place] = np.einsum("ub,ub->b", counts[units].astype(np.float64), both) / k
    return out


def replicate_correlations(
    kind: Kind,
    columns: Sequence[Floats],
    pairs: Sequence[Pair],
    counts: NDArray[np.uint16],
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Correlate pairs of arrays, test sample by test sample, in every bootstrap replicate.

    Args:
        kind: As for :func:`leaveout.metrics.correlation.correlate`.
        columns: Arrays (unit, test). The caller leaves out test samples with NaN or inf.
        pairs: Which two of ``columns`` to correlate.
        counts: (unit, replicate), how often each unit was drawn.

    Yields:
        A slice of test samples and their correlations (pair, test, replicate); NaN where the drawn
        values are constant. Chunks keep the memory bounded whatever the number of test samples.
    """
    units, replicates = counts.shape
    tests = columns[0].shape[1]
    per_test = 8 * ((len(columns) + 1) * (units + replicates) + 2 * len(pairs) * replicates)
    chunk = max(1, _CHUNK_BYTES // per_test)
    if isinstance(kind, TopK):
        compute: Any = partial(_top_k, kind.k)
    else:
        compute = {"spearman": _spearman, "pearson": _pearson, "kendall": _kendall}[kind]
    for start in range(0, tests, chunk):
        part = slice(start, min(start + chunk, tests))
        yield part, compute(columns, pairs, counts, part)


def replicate_sums(
    kind: Kind,
    columns: Sequence[Floats],
    groups: Sequence[Sequence[Pair]],
    counts: NDArray[np.uint16],
    test_counts: NDArray[np.floating[Any]],
    defined: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Sum correlations over the test samples drawn in every bootstrap replicate.

    Sums of disjoint sets of test samples add up; see ``means`` for what they give.

    Args:
        kind: As for :func:`leaveout.metrics.correlation.correlate`.
        columns: Arrays (unit, test).
        groups: Each group of pairs gives one quantity per test sample: the mean of its pairs'
            correlations.
        counts: (unit, replicate).
        test_counts: (half, test, replicate): how often each test sample was drawn, for each set of
            them to average over.
        defined: (group, test): False leaves the test sample out.

    Returns:
        (2, group, half, replicate): the sums, and how many correlations are in each.
    """
    pairs = sorted({pair for group in groups for pair in group})
    shape = (len(groups), len(test_counts), counts.shape[1])
    total, weight = sums = np.zeros((2, *shape))
    for tests, rho in replicate_correlations(kind, columns, pairs, counts):
        for g, group in enumerate(groups):
            value = np.mean([rho[pairs.index(pair)] for pair in group], axis=0)
            value[~defined[g, tests]] = np.nan
            known = np.isfinite(value)
            value[~known] = 0.0
            total[g] += np.einsum("htb,tb->hb", test_counts[:, tests], value)
            weight[g] += np.einsum("htb,tb->hb", test_counts[:, tests], known.astype(np.float64))
    return sums


def means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean correlation in every replicate, NaN where no drawn test sample has one.

    Args:
        sums: What ``replicate_sums`` returned, or the total of several.

    Returns:
        (group, half, replicate).
    """
    total, weight = sums
    found = np.full(total.shape, np.nan)
    np.divide(total, weight, out=found, where=weight > 0)
    return found


def recentre(replicates: NDArray[np.float64], estimate: float) -> NDArray[np.float64]:
    """Shift the defined replicates so that their mean is the estimate, and drop the others.

    Units drawn twice are tied, which lowers a rank correlation: Spearman's replicates lie about
    .005 below the estimate at 100 subsets. Averaged over many test samples that is as much as the
    half-width, and unshifted percentiles would hold the truth in as few as two intervals of three
    (simulated; 94% to 99% with the shift).
    """
    known = replicates[np.isfinite(replicates)]
    return known - known.mean() + estimate if len(known) else known


def limits(kind: Kind) -> tuple[float, float]:
    """Return between which values correlations of a kind lie, and so does any mean of them."""
    return (0.0, 1.0) if isinstance(kind, TopK) else (-1.0, 1.0)


def interval(
    replicates: NDArray[np.float64],
    estimate: float,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float]:
    """Return the recentred percentile interval at 95%; NaN if the estimate or all replicates are.

    Replicates keep to the limits of what they are replicates of, but shifting them can take the
    percentiles out: with ten subsets and a correlation of .99, above 1. An end out there is put on
    the limit. That takes away only values that cannot be, so the interval holds the truth as often
    as without; an end within the limits stays as it is.

    Args:
        replicates: Bootstrap replicates of the estimate; NaN where a replicate is undefined.
        estimate: The value the interval is for.
        within: The least and the largest value there can be, such as :func:`limits`.
    """
    known = recentre(replicates, estimate)
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.clip(np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]), *within)
    return float(low), float(high)


def spearman_brown(reliability: _F, runs: float) -> _F:
    """Return the reliability of the mean of ``runs`` runs, given that of one."""
    return runs * reliability / (1 + (runs - 1) * reliability)


def ceiling(
    agreement: float, replicates: NDArray[np.float64], runs: float, kind: Kind = "pearson"
) -> tuple[float, float, float, str]:
    """Return what a noiseless predictor can reach at most, its interval, and why if it is NaN.

    Args:
        agreement: Mean over test samples and pairs of runs of the correlation between two runs.
        replicates: The same in every bootstrap replicate. A negative bound gives a ceiling of 0,
            and one above 1 a ceiling of 1.
        runs: How many runs the truth averages, or is worth.
        kind: What the agreement is measured in. Reliabilities are correlations; Kendall's tau is
            turned into one and back as for normal variables (Greiner 1909).
    """
    if np.isnan(agreement):
        return *(float("nan"),) * 3, "no test sample has a correlation between two runs"
    if agreement <= 0:
        return *(float("nan"),) * 3, f"two runs do not agree (mean correlation {agreement:.3f})"
    found = np.array([agreement, *interval(replicates, agreement, (0.0, 1.0))])
    if kind == "kendall":
        found = np.sin(np.pi / 2 * found)
    found = np.sqrt(spearman_brown(found, runs))
    if kind == "kendall":
        found = 2 / np.pi * np.arcsin(found)
    top, low, high = map(float, found)
    return top, low, high, ""
