"""Evaluate one method against one ground truth: values, intervals and noise ceilings.

Two truths are compared with. ``mean`` is the mean of the target over the runs of a unit (a subset,
or a removed sample); ``single`` compares with each run alone and averages the correlations, which
is the published protocol's one run per unit. Values are given over ``all`` test samples and over
two halves, ``select`` for choosing hyper-parameters and ``report``.

Everything is aligned by sample id and sorted by it, so the order of a file's rows changes nothing;
and all resampling is drawn from (setting, metric) alone, so that all methods of a setting are
resampled alike and can be compared in pairs.

Scores stay on disk: LDS sums them over blocks of training samples, LOO takes some test samples at a
time. Memory does not depend on how many training samples, or how many files, there are to score.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout import seeds, trainings
from leaveout.artefacts import ALL, Artefact, CorruptArtefactError, Rows, read
from leaveout.errors import LeaveoutError
from leaveout.metric_names import VARIANTS, truth_of
from leaveout.metrics import lds, loo
from leaveout.metrics.correlation import Floats, Kind, TopK, correlate, is_broken
from leaveout.metrics.distributional import distributional_targets
from leaveout.metrics.draws import Replicates
from leaveout.metrics.files import write_rows
from leaveout.metrics.halves import HALVES as HALVES
from leaveout.metrics.halves import Ids as Ids
from leaveout.metrics.halves import split as split
from leaveout.metrics.uncertainty import ceiling, interval, means, replicate_sums, resample_counts

COLUMNS = (
    "setting",
    "metric",
    "method",
    "params",
    "truth",
    "half",
    "value",
    "ci_low",
    "ci_high",
    "ceiling",
    "ceiling_low",
    "ceiling_high",
    "n_test",
    "n_nan",
    "n_constant",
    "n_samples",
    "n_runs",
    "n_unconverged",
    "ceiling_note",
    "shares_models",
    "not_computed",
)
TRUTHS = ("mean", "single")
Predict = Callable[[slice], Floats]

_BLOCK_BYTES = 128 << 20
"""How much of predictions and outcomes is in memory at once, about."""


@dataclass(frozen=True)
class Scores:
    """A score file's rows and columns in the order of a ground truth.

    Attributes:
        rows: The scores, on disk.
        train: Positions of the truth's training samples.
        test: Positions of the truth's test samples.
    """

    rows: Rows
    train: NDArray[np.intp]
    test: NDArray[np.intp]

    def blocks(self, tests: slice = slice(None)) -> Iterator[tuple[slice, Floats]]:
        """Yield some training samples at a time: (which, their scores (train, test))."""
        for part, block in self.rows.blocks(self.train):
            yield part, block[:, self.test[tests]]


@dataclass(frozen=True)
class GroundTruth:
    """What scores are compared with, sorted by id.

    Attributes:
        kind: The correlation of the metric.
        train_id: Training samples whose scores are needed.
        test_id: Test samples.
        predict: Turns scores into a function that gives the predictions (unit, test) of a slice of
            test samples.
        runs: What a good prediction correlates with positively, for each run: (run, unit, test).
        repeats: The same for two or more runs over the same units, for the noise ceiling: (run,
            unit, test).
        repeats_note: Why there are no repeats, if there are none.
        n_unconverged: Units without an outcome; they are left out.
        empty: Whether no unit has an outcome; they are all there then, their outcomes NaN.
        ceiling_note: What is to be known of the ceiling where there is one.
    """

    kind: Kind
    train_id: Ids
    test_id: Ids
    predict: Callable[[Scores], Predict]
    runs: Floats
    repeats: Floats
    repeats_note: str
    n_unconverged: int = 0
    empty: bool = False
    ceiling_note: str = ""
    worth: tuple[float, float] | None = None
    """How many of the ``repeats``' runs an outcome is worth, for each of ``TRUTHS``; None if an
    outcome is a mean of ``runs``, or one."""
    n_runs: int | None = None
    """Runs behind the outcomes, if not as many as ``runs`` has."""


def _tensors(artefact: Artefact, *names: str) -> list[NDArray[Any]]:
    for name in names:
        if name not in artefact.tensors:
            raise CorruptArtefactError(artefact.path, f"it has no array {name!r}")
    return [artefact.tensors[name] for name in names]


def sorted_ids(artefact: Artefact, name: str) -> tuple[Ids, NDArray[np.intp]]:
    """Return the ids of a dim in order, and the positions they come from."""
    (ids,) = _tensors(artefact, name)
    unique, order = np.unique(ids, return_index=True)
    if len(unique) != len(ids) or not len(ids):
        raise CorruptArtefactError(artefact.path, f"{name} is empty or names an id twice")
    return unique, order


def listed(ids: Ids) -> str:
    """Return the first few ids as text."""
    shown = ", ".join(map(str, ids[:5]))
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"


def _load_lds(path: Path) -> GroundTruth:
    artefact = read(path, "lds")
    target, mask = _tensors(artefact, "target", "mask")
    train_id, train = sorted_ids(artefact, "train_id")
    test_id, test = sorted_ids(artefact, "test_id")
    _, subset = sorted_ids(artefact, "subset_id")
    mask = mask[subset][:, train]
    runs = lds.outcomes(np.moveaxis(target[subset][:, :, test], 1, 0))

    def predict(scores: Scores) -> Predict:
        sums = lds.predictions((block, mask[:, part]) for part, block in scores.blocks())
        return lambda tests: sums[:, tests]

    return GroundTruth(
        kind="spearman",
        train_id=train_id,
        test_id=test_id,
        predict=predict,
        runs=runs,
        repeats=runs,
        repeats_note="" if len(runs) > 1 else "one run of each subset; two or more give a ceiling",
    )


def _load_loo(path: Path) -> GroundTruth:
    artefact = read(path, "loo")
    truth = _load_removals(artefact, "removed_id", "removed sample")
    if artefact.meta.get("second") != "nudge":
        return truth
    note = "of one and the same run: its initial weights moved by a millionth"
    return replace(truth, ceiling_note=note)


def _load_pbrf(path: Path) -> GroundTruth:
    artefact = read(path, "pbrf")
    point_id, converged = _tensors(artefact, "point_id", "converged")
    missed = int((converged == 0).sum())
    if missed == len(point_id):  # nothing to correlate: all is undefined, for this reason
        tensors = {**artefact.tensors, "target": np.full_like(artefact.tensors["target"], np.nan)}
        truth = _load_removals(replace(artefact, tensors=tensors), "point_id", "point")
        note = f"none of {missed} points converged"
        return replace(truth, repeats_note=note, n_unconverged=missed, empty=True)
    tensors = dict(artefact.tensors)
    for prefix in ("", "replicate_"):
        (good,) = _tensors(artefact, f"{prefix}converged")
        for name in (f"{prefix}target", f"{prefix}point_id"):
            tensors[name] = tensors[name][good != 0]
    truth = _load_removals(replace(artefact, tensors=tensors), "point_id", "point")
    return replace(
        truth,
        n_unconverged=missed,
        ceiling_note="between two full models; a method that uses the very one can exceed it",
    )


def _load_removals(artefact: Artefact, name: str, what: str) -> GroundTruth:
    """Return a ground truth of single samples taken out.

    Args:
        artefact: It, of one run of all and a second one of some.
        name: The array of their ids.
        what: One of them, in words.
    """
    target, full = _tensors(artefact, "target", "full_target")
    removed_id, removed = sorted_ids(artefact, name)
    test_id, test = sorted_ids(artefact, "test_id")
    rise = loo.outcomes(target[removed][:, :, test], full[:, test])
    repeats = rise
    if len(artefact.tensors.get(f"replicate_{name}", ())):
        again, again_full = _tensors(artefact, "replicate_target", "replicate_full_target")
        again_id, order = sorted_ids(artefact, f"replicate_{name}")
        _, first, second = np.intersect1d(removed_id, again_id, return_indices=True)
        again_rise = loo.outcomes(again[order][:, :, test], again_full[:, test])
        repeats = np.concatenate([rise[first], again_rise[second]], axis=1)
    runs, repeats = np.moveaxis(rise, 1, 0), np.moveaxis(repeats, 1, 0)
    note = "" if len(repeats) > 1 else f"one run of each {what}; two or more give a ceiling"
    if len(repeats) > 1 and repeats.shape[1] < 3:
        note = f"only {repeats.shape[1]} {what}s have a second run"

    def predict(scores: Scores) -> Predict:
        return lambda tests: np.concatenate([block for _, block in scores.blocks(tests)])

    return GroundTruth("pearson", removed_id, test_id, predict, runs, repeats, note)


def _load_lds_variance(path: Path) -> GroundTruth:
    ground = _load_lds(path)
    count = len(ground.runs)
    if count < 2:
        raise LeaveoutError(f"{path}: one run of each subset has no variance; lds.runs: 2 or more.")

    def steadiness(runs: Floats) -> NDArray[np.float64]:
        return -distributional_targets(np.moveaxis(runs, 0, 1)).variance

    half = count // 2
    enough = half > 1
    repeats = [steadiness(ground.runs[k * half : (k + 1) * half]) for k in (0, 1) if enough]
    # the error of a variance of R (normal) runs goes with 1 / (R - 1)
    worth = (count - 1) / (half - 1) if enough else 1.0
    return replace(
        ground,
        runs=steadiness(ground.runs)[None],
        repeats=np.array(repeats) if enough else ground.runs[:1],
        repeats_note="" if enough else f"{count} runs of each subset; four or more give a ceiling",
        worth=(worth, worth),
        n_runs=count,
    )


_LOAD: dict[str, Callable[[Path], GroundTruth]] = {
    "lds": _load_lds,
    "loo": _load_loo,
    "lds_variance": _load_lds_variance,
    "pbrf": _load_pbrf,
}


_KIND: dict[str, Kind] = {
    "lds_pearson": "pearson",
    "lds_kendall": "kendall",
    "loo_kendall": "kendall",
}


def load_ground_truth(metric: str, path: Path, top_k: int = 10) -> GroundTruth:
    """Read a ground truth, sorted by id.

    Args:
        metric: What it is for.
        path: The artefact.
        top_k: How many samples ``loo_topk`` looks at.

    Raises:
        LeaveoutError: The metric is unknown, the file is missing, damaged or of another kind, or
            there are not more than ``top_k`` samples.
    """
    if metric not in (*_LOAD, *VARIANTS):
        raise LeaveoutError(f"metric: unknown {metric!r}. Valid: {', '.join((*_LOAD, *VARIANTS))}")
    ground = _LOAD[truth_of(metric)](path)
    if metric != "loo_topk":
        return replace(ground, kind=_KIND.get(metric, ground.kind))
    if top_k >= len(ground.train_id):
        raise LeaveoutError(
            f"{path}: {len(ground.train_id)} samples were left out; the {top_k} that matter most "
            "are all of them. Give a smaller top_k."
        )
    note = "none: an overlap is no correlation, and its reliability does not follow from two runs"
    return replace(ground, kind=TopK(top_k), repeats=ground.runs[:1], repeats_note=note)


def aligned(artefact: Artefact, truth: GroundTruth, truth_path: Path, metric: str) -> Scores:
    """Return the scores of the truth's training and test samples, in its order.

    Raises:
        LeaveoutError: Scores of some sample are missing, or of one that no subset draws from.
    """
    positions = []
    for what, wanted in (("train", truth.train_id), ("test", truth.test_id)):
        have, order = sorted_ids(artefact, f"{what}_id")
        missing = np.setdiff1d(wanted, have)
        if len(missing):
            raise LeaveoutError(
                f"{artefact.path}: no score for {what} ids {listed(missing)}, which {truth_path} "
                "holds. Make the scores and the ground truth from the same setting."
            )
        extra = np.setdiff1d(have, wanted)
        if what == "train" and truth_of(metric) in ("lds", "lds_variance") and len(extra):
            raise LeaveoutError(
                f"{artefact.path}: scores train ids {listed(extra)}, which no subset of "
                f"{truth_path} draws from. Make scores and ground truth from the same setting."
            )
        positions.append(order[np.searchsorted(have, wanted)])
    if "score" not in artefact.rows:
        raise CorruptArtefactError(artefact.path, "it has no array 'score'")
    return Scores(artefact.rows["score"], *positions)


def read_scores(
    paths: Sequence[Path], setting: str, method: str, kind: str = "score"
) -> dict[str, Artefact]:
    """Read the scores of one method by the label of their hyper-parameters.

    Args:
        paths: The files.
        setting: The setting they must be of.
        method: The method they must be of.
        kind: The kind of artefact they must be.

    Raises:
        LeaveoutError: There are none, or one is damaged, a repetition, or of something else.
    """
    scores: dict[str, Artefact] = {}
    for path in paths:
        artefact = read(path, kind, leave=["score"])
        for key, expected in (("setting", setting), ("method", method)):
            if artefact.meta.get(key) != expected:
                raise LeaveoutError(
                    f"{path}: its {key} is {artefact.meta.get(key)!r}, expected {expected!r}. "
                    "Evaluate each method on its own, against its own setting."
                )
        label = artefact.meta.get("label")
        if not isinstance(label, str):
            raise CorruptArtefactError(
                Path(path), "its header has no label of its hyper-parameters"
            )
        if label in scores:
            raise LeaveoutError(
                f"{path}: {label!r} is also the label of {scores[label].path}. Give each once."
            )
        scores[label] = artefact
    if not scores:
        raise LeaveoutError(f"{setting}, {method}: no score file given.")
    return scores


def not_computed(artefact: Artefact) -> str:
    """Return why a method could not score a setting, such as ``memory: ...``; nothing if it did.

    Args:
        artefact: Scores, or what is in their place.
    """
    why = artefact.meta.get("not_computed")
    return f"{why['reason']}: {why['detail']}" if why else ""


def number(value: float) -> str:
    """Six decimals: enough for any use, and no rounding error of a machine's matrix products."""
    return f"{value:.6f}"


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the finite values, NaN if there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def evaluate(
    metric: str,
    truth: Path,
    scores: Sequence[Path],
    out: Path,
    *,
    setting: str,
    method: str,
    root_seed: int,
    bootstrap: int = 1000,
    top_k: int = 10,
) -> Replicates:
    """Evaluate all score files of one method; one row per hyper-parameters, truth and half.

    A test sample whose predictions or outcomes hold NaN or inf, or are constant, has no
    correlation: it is left out of the mean and counted by its cause. Scores that could not be
    computed have NaN for a value, and the column ``not_computed`` says why.

    Args:
        metric: ``lds`` (Spearman, Park et al. 2303.14186), ``loo`` (Pearson), ``pbrf`` (Pearson,
            Bae et al. 2209.05364; units that did not converge are left out and counted), or
            ``lds_variance``: as ``lds``, against minus the variance over runs (d-TDA, 2506.12965),
            so that a positive score is a sample that steadies training. ``lds_pearson``,
            ``lds_kendall`` and ``loo_kendall`` (tau-b) differ in the correlation alone;
            ``loo_topk`` is the share of the samples that matter most when left out that are among
            those with the largest scores.
        truth: Artefact of that kind; of kind ``lds`` or ``loo`` for what begins so.
        scores: Score artefacts of one method, in grid order.
        out: CSV to write, with the columns ``COLUMNS``.
        setting: Name of the setting.
        method: Name of the method.
        root_seed: Root seed of the setting; resampling and halves derive from it and (setting,
            metric).
        bootstrap: Number of bootstrap replicates.
        top_k: How many samples ``loo_topk`` looks at.

    Returns:
        The replicates of each grid point's value against the mean of the runs, on the report half;
        replicate k is of the same draw for all methods of the setting.

    Raises:
        LeaveoutError: A file is missing or damaged, ids, setting, method or labels do not fit
            together, or scores were computed from models of the ground truth.
    """
    ground = load_ground_truth(metric, truth, top_k)
    artefacts = read_scores(scores, setting, method)
    header = read(truth, leave=ALL)
    shares = {
        label: "no" if trainings.check_apart(header, artefact) else "unknown"
        for label, artefact in artefacts.items()
    }
    why = {label: not_computed(artefact) for label, artefact in artefacts.items()}
    n_runs, n_units, n_test = ground.runs.shape
    nothing = np.full((n_units, n_test), np.nan)
    predictions = [
        (lambda tests: nothing[:, tests])
        if why[label]
        else ground.predict(aligned(artefact, ground, truth, metric))
        for label, artefact in artefacts.items()
    ]
    outcomes = [ground.runs.mean(axis=0), *ground.runs] if n_runs > 1 else [*ground.runs]
    outcome_groups = ([0], list(range(1, n_runs + 1))) if n_runs > 1 else ([0], [0])

    halves = split(ground.test_id, setting, root_seed)
    counts = {
        units: resample_counts(
            seeds.generator(root_seed, setting, "bootstrap", truth_of(metric), "units", units),
            units,
            bootstrap,
        )
        for units in {n_units, ground.repeats.shape[1]}
    }
    test_counts = np.zeros((len(HALVES), n_test, bootstrap), dtype=np.float32)
    for h, half in enumerate(HALVES):
        draw = seeds.generator(root_seed, setting, "bootstrap", truth_of(metric), "tests", half)
        test_counts[h, halves[half]] = resample_counts(draw, int(halves[half].sum()), bootstrap)

    groups = [
        [(p, len(predictions) + q) for q in group]
        for p in range(len(predictions))
        for group in outcome_groups
    ]
    values = np.empty((len(groups), n_test))
    broken_scores = np.empty((len(predictions), n_test), dtype=bool)
    sums = np.zeros((2, len(groups), len(HALVES), bootstrap))
    size = max(1, _BLOCK_BYTES // (8 * n_units * (len(predictions) + len(outcomes))))
    for start in range(0, n_test, size):
        tests = slice(start, min(start + size, n_test))
        predicted = [predict(tests) for predict in predictions]
        columns = [*predicted, *(outcome[:, tests] for outcome in outcomes)]
        values[:, tests] = _per_test(ground.kind, columns, groups)
        broken_scores[:, tests] = [is_broken(column) for column in predicted]
        sums += replicate_sums(
            ground.kind,
            columns,
            groups,
            counts[n_units],
            test_counts[:, tests],
            np.isfinite(values[:, tests]),
        )
    replicates = means(sums)
    ceilings = _ceilings(ground, halves, counts[ground.repeats.shape[1]], test_counts)

    broken_truth = is_broken(ground.runs.reshape(-1, n_test))
    rows = []
    cells = itertools.product(enumerate(artefacts), enumerate(TRUTHS), enumerate(HALVES))
    for (p, label), (t, name), (h, half) in cells:
        value = values[p * len(TRUTHS) + t][halves[half]]
        broken = (broken_scores[p] | broken_truth)[halves[half]]
        low, high = interval(replicates[p * len(TRUTHS) + t, h], mean(value))
        top, top_low, top_high, note = ceilings[name, half]
        rows.append(
            (
                *(setting, metric, method, label, name, half),
                *map(number, (mean(value), low, high, top, top_low, top_high)),
                *(len(value), int(broken.sum()), int((np.isnan(value) & ~broken).sum())),
                *(0 if ground.empty else n_units, ground.n_runs or n_runs),
                *(ground.n_unconverged, note, shares[label], why[label]),
            )
        )
    write_rows(out, COLUMNS, rows)
    shown = (TRUTHS.index("mean"), HALVES.index("report"))
    return {
        label: replicates[p * len(TRUTHS) + shown[0], shown[1]] for p, label in enumerate(artefacts)
    }


def _per_test(
    kind: Kind, columns: Sequence[Floats], groups: Sequence[Sequence[tuple[int, int]]]
) -> NDArray[np.float64]:
    """Return the mean correlation of each group of pairs, NaN if any of them is: (group, test)."""
    pairs = {pair for group in groups for pair in group}
    rho = {(a, b): correlate(kind, columns[a], columns[b]) for a, b in pairs}
    return np.stack([np.mean([rho[pair] for pair in group], axis=0) for group in groups])


def _ceilings(
    ground: GroundTruth,
    halves: dict[str, NDArray[np.bool_]],
    counts: NDArray[np.uint16],
    test_counts: NDArray[np.floating[Any]],
) -> dict[tuple[str, str], tuple[float, float, float, str]]:
    """Return ceiling, interval and note for each truth and half."""
    runs = dict(zip(TRUTHS, ground.worth or (len(ground.runs), 1), strict=True))
    if ground.repeats_note:
        none = (float("nan"),) * 3
        return dict.fromkeys(itertools.product(TRUTHS, HALVES), (*none, ground.repeats_note))
    columns = list(ground.repeats)
    pairs = [list(itertools.combinations(range(len(columns)), 2))]
    values = _per_test(ground.kind, columns, pairs)
    defined = np.isfinite(values)
    drawn = means(replicate_sums(ground.kind, columns, pairs, counts, test_counts, defined))
    found = {}
    for name, (h, half) in itertools.product(TRUTHS, enumerate(HALVES)):
        top, low, high, note = ceiling(
            mean(values[0][halves[half]]), drawn[0, h], runs[name], ground.kind
        )
        found[name, half] = (top, low, high, note or ground.ceiling_note)
    return found
