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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leaveout.metrics.correlation import Floats, Kind, standardise

_F = TypeVar("_F", float, NDArray[np.float64])
Pair = tuple[int, int]
LEVEL = 0.95
# Below this share of a column's variance what is left is cancellation error, so the drawn values
# count as constant.
_NO_VARIANCE = 1e-12
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


def replicate_correlations(
    kind: Kind,
    columns: Sequence[Floats],
    pairs: Sequence[Pair],
    counts: NDArray[np.uint16],
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Correlate pairs of arrays, test sample by test sample, in every bootstrap replicate.

    Args:
        kind: ``pearson`` or ``spearman``.
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
    compute = _spearman if kind == "spearman" else _pearson
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
        kind: ``pearson`` or ``spearman``.
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


def interval(replicates: NDArray[np.float64], estimate: float) -> tuple[float, float]:
    """Return the recentred percentile interval at 95%; NaN if the estimate or all replicates are.

    Args:
        replicates: Bootstrap replicates of the estimate; NaN where a replicate is undefined.
        estimate: The value the interval is for.
    """
    known = recentre(replicates, estimate)
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def spearman_brown(reliability: _F, runs: float) -> _F:
    """Return the reliability of the mean of ``runs`` runs, given that of one."""
    return runs * reliability / (1 + (runs - 1) * reliability)


def ceiling(
    agreement: float, replicates: NDArray[np.float64], runs: float
) -> tuple[float, float, float, str]:
    """Return what a noiseless predictor can reach at most, its interval, and why if it is NaN.

    Args:
        agreement: Mean over test samples and pairs of runs of the correlation between two runs.
        replicates: The same in every bootstrap replicate. A negative bound gives a ceiling of 0.
        runs: How many runs the truth averages, or is worth.
    """
    if np.isnan(agreement):
        return *(float("nan"),) * 3, "no test sample has a correlation between two runs"
    if agreement <= 0:
        return *(float("nan"),) * 3, f"two runs do not agree (mean correlation {agreement:.3f})"
    bounds = np.clip(interval(replicates, agreement), 0.0, None)
    low, high = np.sqrt(spearman_brown(bounds, runs))
    return float(np.sqrt(spearman_brown(agreement, runs))), float(low), float(high), ""
