"""How sure an LDS is, and how many subsets and runs a narrower interval would take.

Two methods and their difference are measured on m of the subsets with r runs each, for a grid of m
and every r. The subsets are drawn at random, nested (the first m of a random order) and several
times, and so are the runs (disjoint groups of r), so that no point is the accident of one draw; a
point shows the means of value, bounds and width over them. Every draw is resampled as in
:mod:`leaveout.metrics.evaluate`, test samples and subsets together and alike for both methods: the
interval of the difference is that of a paired bootstrap, and with all subsets and runs the rows
are those of the table.

The variance is split by its source. An LDS is a mean over n test samples of correlations over m
subsets, a two-way layout with random rows and columns: its variance is ``tests + (alike + own) /
m``, with ``tests`` the differences between test samples divided by n, ``alike`` what a subset does
to all test samples together, and ``own`` what is left of single correlations, divided by n.
Resampling both at once counts the last one three times (Owen, The pigeonhole bootstrap, arXiv
0712.1111), so intervals come from ``tests + (alike + 3 own) / m`` and are a little wider than need
be. More subsets never reduce ``tests``. Of ``alike + own``, a part belongs to the subsets and the
rest to the noise of their runs: the first is what the influences of the subsets on the LDS have in
common when it is measured with one run and with another.

What is assumed: that a correlation's variance falls as 1 / m, which is rough for rank correlations
of ten subsets, and that r runs average independent noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from leaveout import seeds
from leaveout.data.halves import split
from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Floats, correlate, mean, ranks, standardise
from leaveout.metrics.files import number, rows_text
from leaveout.metrics.truths import GroundTruth, aligned, load_ground_truth
from leaveout.metrics.uncertainty import (
    LEVEL,
    ceiling,
    interval,
    replicate_correlations,
    resample_counts,
)
from leaveout.retraining import trainings
from leaveout.scoring.files import not_computed, read_scores
from leaveout.store.artefacts import ALL, Artefact, read

COLUMNS = (
    "setting",
    "method",
    "params",
    "kind",
    "subsets",
    "runs",
    "trainings",
    "draws",
    "value",
    "ci_low",
    "ci_high",
    "width",
    "predicted_width",
    "share_tests",
    "share_subsets",
    "share_runs",
    "ceiling",
    "ceiling_low",
    "ceiling_high",
    "n_test",
    "n_dropped",
    "note",
)
DRAWS = 10
"""Random orders of the subsets; ten hold the mean of a point to a third of one draw's spread."""
TARGETS = (0.05, 0.02, 0.01)
"""Widths to say the needed number of subsets for."""
MINUS = " - "
"""Between the two methods' names, in the rows of their difference."""
_WIDE = 2 * NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Split:
    """Where the variance of an LDS comes from, at a number of subsets.

    Attributes:
        subsets: That number.
        tests: Of the finite number of test samples: more subsets leave it as it is.
        alike: Of the finite number of subsets, the same for all test samples; falls as 1 / subsets.
        own: The same of each test sample's own.
    """

    subsets: int
    tests: float
    alike: float
    own: float

    def width(self, subsets: float) -> float:
        """Return the width of the interval foreseen for a number of subsets."""
        units = (self.alike + 3 * self.own) * self.subsets
        return _WIDE * math.sqrt(self.tests + units / subsets)

    def needed(self, width: float) -> int | None:
        """Return how many subsets give an interval of this width, None if no number does."""
        room = (width / _WIDE) ** 2 - self.tests
        units = (self.alike + 3 * self.own) * self.subsets
        return math.ceil(units / room) if room > 0 else None

    def shares(self, subsets: int, noise: float) -> tuple[float, float, float]:
        """Return the shares of test samples, subsets and runs in the variance; they add up to 1.

        Args:
            subsets: At how many subsets.
            noise: Of ``alike + own``, the part that the noise of runs makes.
        """
        units = (self.alike + self.own) * self.subsets / subsets
        runs = min(noise * self.subsets / subsets, units) if noise >= 0 else math.nan
        total = self.tests + units
        if not total > 0:
            return (math.nan,) * 3
        return self.tests / total, (units - runs) / total, runs / total


@dataclass(frozen=True)
class Measured:
    """One draw of subsets, measured. A *quantity* is a method or their difference.

    Attributes:
        value: By number of runs, (group of runs, quantity): the LDS, NaN if no test sample has one.
        low: Lower bounds of their intervals.
        high: Upper bounds.
        splits: Their variances' sources, by number of runs: a list of groups of lists of
            quantities.
        noise: By number of runs, (quantity,): the part of ``alike + own`` that is noise of runs;
            NaN if there is one run only.
        ceilings: By number of runs: ceiling, its bounds, and why it is NaN.
        dropped: Test samples without a correlation.
    """

    value: dict[int, NDArray[np.float64]]
    low: dict[int, NDArray[np.float64]]
    high: dict[int, NDArray[np.float64]]
    splits: dict[int, list[list[Split]]]
    noise: dict[int, NDArray[np.float64]]
    ceilings: dict[int, tuple[float, float, float, str]]
    dropped: int


def grid(subsets: int) -> list[int]:
    """Return the numbers of subsets to measure: 10, 20, 50, 100, ... and all of them."""
    steps = (n * 10**k for k in range(1, len(str(subsets)) + 1) for n in (1, 2, 5))
    return [m for m in steps if m < subsets] + [subsets]


def measure(
    predictions: Sequence[Floats],
    runs: Floats,
    counts: NDArray[np.uint16],
    test_counts: NDArray[np.uint16],
) -> Measured:
    """Measure the LDS of two methods and their difference, for every number of runs.

    A test sample that lacks any of the correlations is left out of all, so that the two methods
    are always compared on the same ones.

    Args:
        predictions: Of the two methods: (subset, test) each.
        runs: What good predictions correlate with positively: (run, subset, test).
        counts: (subset, replicate), how often each subset was drawn.
        test_counts: (test, replicate), how often each test sample was drawn.
    """
    n_runs = len(runs)
    groups = [
        (r, runs[k * r : (k + 1) * r].mean(axis=0))
        for r in range(1, n_runs + 1)
        for k in range(n_runs // r)
    ]
    columns = [*predictions, *(outcome for _, outcome in groups)]
    pairs = [(p, 2 + g) for g in range(len(groups)) for p in (0, 1)]
    repeats = list(itertools.combinations(range(2, 2 + n_runs), 2))  # groups of one run come first
    # what each quantity takes of each pair: (quantity, pair)
    take = np.zeros((3 * len(groups) + bool(repeats), len(pairs) + len(repeats)))
    for g in range(len(groups)):
        take[3 * g : 3 * g + 3, 2 * g : 2 * g + 2] = [[1, 0], [0, 1], [1, -1]]
    if repeats:
        take[-1, len(pairs) :] = 1 / len(repeats)
    pairs += repeats

    per_test = take @ np.stack([correlate("spearman", columns[a], columns[b]) for a, b in pairs])
    known = np.isfinite(per_test).all(axis=0)
    per_test = per_test[:, known]
    columns, test_counts = [column[:, known] for column in columns], test_counts[known]
    estimate = np.array([mean(row) for row in per_test])

    total, fixed = np.zeros((2, len(take), counts.shape[1]))
    weight, fixed_weight = np.zeros((2, counts.shape[1]))
    scatter = np.full(per_test.shape, np.nan)
    for tests, rho in replicate_correlations("spearman", columns, pairs, counts):
        found = np.tensordot(take, rho, 1)  # (quantity, test, replicate)
        defined = np.isfinite(found).all(axis=0)
        found[:, ~defined] = 0.0
        drawn = test_counts[tests] * defined
        total += np.einsum("tb,qtb->qb", drawn, found)
        fixed += found.sum(axis=1)
        weight += drawn.sum(axis=0)
        fixed_weight += defined.sum(axis=0)
        times = np.maximum(defined.sum(axis=1), 1)
        centred = (found - (found.sum(axis=2) / times)[:, :, None]) * defined
        scatter[:, tests] = np.square(centred).sum(axis=2) / times
    replicates = np.full(total.shape, np.nan)
    np.divide(total, weight, out=replicates, where=weight > 0)
    np.divide(fixed, fixed_weight, out=fixed, where=fixed_weight > 0)

    # the third of three is a difference of two correlations, and the agreement of runs is last
    within = [(-2.0, 2.0) if k % 3 == 2 else (-1.0, 1.0) for k in range(len(estimate))]
    bounds = np.array([interval(*of) for of in zip(replicates, estimate, within, strict=True)])
    sources = [
        _sources(len(counts), *parts)
        for parts in zip(per_test, scatter, fixed[:, fixed_weight > 0], strict=True)
    ]
    each = {
        r: [3 * g for g, (runs_of, _) in enumerate(groups) if runs_of == r]
        for r in range(1, n_runs + 1)
    }
    shared = _shared_by_runs(columns[:2], columns[2 : 2 + n_runs])
    single = np.array(
        [[s.alike + s.own for s in sources[3 * g : 3 * g + 3]] for g in range(n_runs)]
    )
    noise = np.maximum(single.mean(axis=0) - shared, 0.0)
    none = (*(math.nan,) * 3, "one run of each subset; two or more give a ceiling")
    return Measured(
        value={r: np.array([estimate[g : g + 3] for g in at]) for r, at in each.items()},
        low={r: np.array([bounds[g : g + 3, 0] for g in at]) for r, at in each.items()},
        high={r: np.array([bounds[g : g + 3, 1] for g in at]) for r, at in each.items()},
        splits={r: [sources[g : g + 3] for g in at] for r, at in each.items()},
        # the part of noise in the mean of r runs; Spearman-Brown
        noise={r: noise / (1 + (r - 1) * max(estimate[-1], 0.0)) for r in each},
        ceilings={r: ceiling(estimate[-1], replicates[-1], r) if repeats else none for r in each},
        dropped=int((~known).sum()),
    )


def _shared_by_runs(predictions: Sequence[Floats], runs: Sequence[Floats]) -> NDArray[np.float64]:
    """Return the variance that subsets give each quantity whatever their runs: (quantity,).

    In standardised ranks, a pair of x and y moves their correlation by ``(x y - rho (x^2 + y^2) /
    2) / m``. What this has in common for two runs of the same subsets, none of their noise makes.
    """
    if len(runs) < 2 or not runs[0].shape[1]:
        return np.full(3, math.nan)
    x, y = ([standardise(ranks(c)) for c in columns] for columns in (predictions, runs))
    moved = np.empty((3, len(y), len(y[0])))  # (quantity, run, subset)
    for k, outcome in enumerate(y):
        for q, predicted in enumerate(x):
            rho = (predicted * outcome).mean(axis=0)
            pull = predicted * outcome - rho * (predicted**2 + outcome**2) / 2
            moved[q, k] = pull.mean(axis=1)
    moved[2] = moved[0] - moved[1]
    upper = np.triu_indices(len(y), 1)
    return np.array([np.cov(one)[upper].mean() / len(y[0]) for one in moved])


def _sources(
    subsets: int,
    per_test: NDArray[np.float64],
    scatter: NDArray[np.float64],
    fixed: NDArray[np.float64],
) -> Split:
    """Split the variance of a mean over test samples by its source.

    Args:
        subsets: How many there are.
        per_test: (test,), the estimates.
        scatter: (test,), variance of each test sample's replicates.
        fixed: (replicate,), means over all test samples, the subsets alone resampled.
    """
    n = len(per_test)
    if n < 2 or not len(fixed):
        return Split(subsets, *(math.nan,) * 3)
    means = float(fixed.var())  # alike + own
    own = max((float(scatter.mean()) - means) / (n - 1), 0.0)
    tests = max(float(per_test.var(ddof=1)) / n - own, 0.0)
    return Split(subsets, tests, max(means - own, 0.0), own)


def lds_width(
    truth: Path,
    scores: Sequence[Path],
    *,
    setting: str,
    compare: Sequence[str],
    root_seed: int,
    bootstrap: int,
) -> str:
    """Return the LDS of two methods, and their difference, against subsets and runs.

    Hyper-parameters are those with the highest LDS on the select half of the test samples, against
    all subsets and runs; all else is measured on the report half.

    Rows of ``kind`` ``measured`` have value, interval, its width, the width foreseen by the split,
    its shares by source, and the noise ceiling. Rows of ``kind`` ``needed`` have a target as their
    width and the least number of subsets that gives it, rounded up to two digits, at so many runs
    each; none, with a note, where the test samples alone leave more than that.

    Args:
        truth: Artefact of kind ``lds``.
        scores: Score artefacts of both methods, each in grid order.
        setting: Name of the setting.
        compare: The two methods.
        root_seed: Root seed of the setting.
        bootstrap: Number of bootstrap replicates.

    Returns:
        The text of a CSV with the columns ``COLUMNS``.

    Raises:
        LeaveoutError: A file is missing or damaged, there are fewer than three subsets, a method
            has no scores, or they do not fit the truth, or come from its models.
    """
    ground = load_ground_truth("lds", truth)
    n_runs, n_subsets, _ = ground.runs.shape
    if n_subsets < 3:
        why = f" ({ground.left_out})" if ground.left_out else ""
        raise LeaveoutError(f"{truth}: it has {n_subsets} subsets{why}; a correlation needs three.")
    halves = split(ground.test_id, setting, root_seed)
    labels, predictions = _chosen(ground, truth, scores, setting, compare, halves["select"])
    report = halves["report"]
    predictions, runs = [p[:, report] for p in predictions], ground.runs[:, :, report]

    def stream(*identity: str | int) -> np.random.Generator:
        return seeds.generator(root_seed, setting, *identity)

    # with all subsets, the streams of the table: these are its rows
    tests, whole = (("bootstrap", "lds", *of) for of in (("tests", "report"), ("units", n_subsets)))
    test_counts = resample_counts(stream(*tests), int(report.sum()), bootstrap)
    orders = [stream("lds_width", k).permutation(n_subsets) for k in range(DRAWS)]
    cells: dict[int, list[Measured]] = {}
    for m in grid(n_subsets):
        cells[m] = []
        for k, order in enumerate(orders[: DRAWS if m < n_subsets else 1]):
            drawn = stream(*(("lds_width", k, m) if m < n_subsets else whole))
            counts = resample_counts(drawn, m, bootstrap)
            kept = np.sort(order[:m])
            of_both = [p[kept] for p in predictions]
            cells[m].append(measure(of_both, runs[:, kept], counts, test_counts))
    names = [*zip(compare, labels, strict=True), (MINUS.join(compare), MINUS.join(labels))]
    rows: list[dict[str, object]] = []
    for q, (name, label) in enumerate(names):
        same = {"setting": setting, "method": name, "params": label, "n_test": len(test_counts)}
        rows += [same | row for row in _rows(q, cells, n_runs, ground.left_out)]
    return rows_text(COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))


def _chosen(
    ground: GroundTruth,
    truth: Path,
    scores: Sequence[Path],
    setting: str,
    compare: Sequence[str],
    select: NDArray[np.bool_],
) -> tuple[list[str], list[Floats]]:
    """Return label and predictions of each method's best grid point on the select half."""
    given: dict[str, list[Path]] = {}
    for path in scores:
        method = str(read(path, "score", leave=["score"]).meta.get("method"))
        given.setdefault(method, []).append(path)
    if len(set(compare)) != 2:
        raise LeaveoutError(f"compare: expected two methods, got {', '.join(compare) or 'none'}.")
    header = read(truth, leave=ALL)
    labels, predictions = [], []
    for method in compare:
        if method not in given:
            raise LeaveoutError(
                f"compare: no scores of {method!r} given. Given: {', '.join(given) or 'none'}."
            )
        points: dict[str, Artefact] = read_scores(given[method], setting, method)
        outcome = ground.runs.mean(axis=0)
        best: tuple[float, str, Floats] = (-math.inf, "", outcome)
        for label, artefact in points.items():
            trainings.check_apart(header, artefact)
            if not_computed(artefact):
                continue
            found = ground.predict(aligned(artefact, ground, truth, "lds"))(slice(None))
            # to the six decimals of the metrics, from which the table chooses
            value = float(number(mean(correlate("spearman", found, outcome)[select])))
            if not best[1] or value > best[0]:
                best = (-math.inf if math.isnan(value) else value, label, found)
        if not best[1]:
            why = "; ".join(map(not_computed, points.values()))
            raise LeaveoutError(f"compare: {setting} has no scores of {method} ({why}).")
        labels.append(best[1])
        predictions.append(best[2])
    return labels, predictions


def _mean_split(splits: Sequence[Split]) -> Split:
    parts = np.mean([[s.tests, s.alike, s.own] for s in splits], axis=0)
    return Split(splits[0].subsets, *map(float, parts))


def _rows(
    q: int, cells: dict[int, list[Measured]], n_runs: int, left_out: str
) -> list[dict[str, object]]:
    """Return the rows of one quantity; those measured note which subsets were left out."""
    (whole,) = cells[max(cells)]
    runs = range(1, n_runs + 1)
    splits = {r: _mean_split([group[q] for group in whole.splits[r]]) for r in runs}
    rows = []
    for r, (m, draws) in itertools.product(runs, cells.items()):
        value, low, high = (
            float(np.mean([getattr(draw, what)[r][:, q] for draw in draws]))
            for what in ("value", "low", "high")
        )
        row = _row("measured", m, r) | _foreseen(splits[r], m, whole.noise[r][q])
        row |= {"draws": len(draws), "n_dropped": max(draw.dropped for draw in draws)}
        row |= {"value": number(value), "ci_low": number(low), "ci_high": number(high)}
        row["width"] = number(high - low)
        notes = [left_out]
        if q < 2:  # no ceiling bounds a difference
            tops = np.mean([draw.ceilings[r][:3] for draw in draws], axis=0)
            row |= zip(("ceiling", "ceiling_low", "ceiling_high"), map(number, tops), strict=True)
            notes.append(next((d.ceilings[r][3] for d in draws if d.ceilings[r][3]), ""))
        rows.append(row | {"note": "; ".join(filter(None, notes))})
    for r, target in itertools.product(runs, TARGETS):
        subsets, least = splits[r].needed(target), splits[r].width(math.inf)
        if math.isnan(least):
            row = _row("needed", "", r) | {"note": "no test sample has a correlation"}
        elif subsets is None:
            row = _row("needed", "", r)
            row["note"] = f"not with these test samples: endless subsets leave {least:.4f}"
        else:
            subsets = max(_two_digits(subsets), 3)
            row = _row("needed", subsets, r) | _foreseen(splits[r], subsets, whole.noise[r][q])
        rows.append(row | {"width": number(target)})
    return rows


def _row(kind: str, subsets: int | str, runs: int) -> dict[str, object]:
    trainings = subsets * runs if isinstance(subsets, int) else ""
    return {"kind": kind, "subsets": subsets, "runs": runs, "trainings": trainings}


def _two_digits(count: int) -> int:
    """Round up to two digits: a foreseen number is no better than that."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit


def _foreseen(split: Split, subsets: int, noise: float) -> dict[str, object]:
    """Return the width foreseen, and the shares of the variance by source."""
    names = ("predicted_width", "share_tests", "share_subsets", "share_runs")
    values = (split.width(subsets), *split.shares(subsets, noise))
    return dict(zip(names, map(number, values), strict=True))
