"""Ground truths, read for a metric: what scores are compared with, sorted by id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaveout.config.metric_names import VARIANTS, truth_of
from leaveout.data.halves import Ids
from leaveout.errors import LeaveoutError
from leaveout.metrics import lds, loo
from leaveout.metrics.correlation import Bools, Floats, Kind, TopK
from leaveout.metrics.distributional import distributional_targets
from leaveout.scoring.files import Scores, arrays_of, listed, sorted_ids
from leaveout.store.artefacts import Artefact, CorruptArtefactError, read

Predict = Callable[[slice], Floats]


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
        left_out: Which units were left out because a run of theirs diverged, and how many.
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
    left_out: str = ""
    worth: tuple[float, float] | None = None
    """How many of the ``repeats``' runs an outcome is worth, for each of ``TRUTHS``; None if an
    outcome is a mean of ``runs``, or one."""
    n_runs: int | None = None
    """Runs behind the outcomes, if not as many as ``runs`` has."""


def _usable(runs: Floats, ids: Ids, what: str) -> tuple[Bools, int, str]:
    """Return which units to keep: those of which every run has an outcome.

    A run that diverged has no finite outcome for any test sample. Its unit is left out with all its
    runs, so that each outcome remains a mean of as many runs, and each run has the same units. A
    run that lacks some outcomes only stays: those test samples are left out instead.

    Args:
        runs: The outcomes (run, unit, test).
        ids: The units.
        what: Some of them, in words.

    Returns:
        (unit,), whether each is kept; how many are not; and a note that names their runs, empty if
        there are none. If no unit is usable, all are kept.
    """
    diverged = ~np.isfinite(runs).any(axis=2)
    lost = np.asarray(diverged.any(axis=0))
    if not lost.any():
        return ~lost, 0, ""
    named = [f"{ids[unit]} (run {run})" for unit, run in np.argwhere(diverged.T)]
    count = int(lost.sum())
    note = f"left out {count} of {len(ids)} {what}, without a finite outcome: {listed(named)}"
    kept = ~lost if count < len(ids) else np.ones_like(lost)
    return kept, count, note


def _load_lds(path: Path) -> GroundTruth:
    artefact = read(path, "lds")
    target, mask = arrays_of(artefact, "target", "mask")
    train_id, train = sorted_ids(artefact, "train_id")
    test_id, test = sorted_ids(artefact, "test_id")
    subset_id, subset = sorted_ids(artefact, "subset_id")
    mask = mask[subset][:, train]
    runs = lds.outcomes(np.moveaxis(target[subset][:, :, test], 1, 0))
    kept, lost, left_out = _usable(runs, subset_id, "subsets")
    if lost:
        mask, runs = mask[kept], runs[:, kept]

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
        n_unconverged=lost,
        empty=lost == len(subset_id),
        left_out=left_out,
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
    point_id, converged = arrays_of(artefact, "point_id", "converged")
    missed = int((converged == 0).sum())
    if missed == len(point_id):  # nothing to correlate: all is undefined, for this reason
        tensors = {**artefact.tensors, "target": np.full_like(artefact.tensors["target"], np.nan)}
        truth = _load_removals(replace(artefact, tensors=tensors), "point_id", "point")
        note = f"none of {missed} points converged"
        return replace(truth, repeats_note=note, n_unconverged=missed, empty=True, left_out="")
    tensors = dict(artefact.tensors)
    for prefix in ("", "replicate_"):
        (good,) = arrays_of(artefact, f"{prefix}converged")
        for name in (f"{prefix}target", f"{prefix}point_id"):
            tensors[name] = tensors[name][good != 0]
    truth = _load_removals(replace(artefact, tensors=tensors), "point_id", "point")
    return replace(
        truth,
        n_unconverged=missed + truth.n_unconverged,
        ceiling_note="between two full models; a method that uses the very one can exceed it",
    )


def _load_removals(artefact: Artefact, name: str, what: str) -> GroundTruth:
    """Return a ground truth of single samples taken out.

    Args:
        artefact: It, of one run of all and a second one of some.
        name: The array of their ids.
        what: One of them, in words.
    """
    target, full = arrays_of(artefact, "target", "full_target")
    removed_id, removed = sorted_ids(artefact, name)
    test_id, test = sorted_ids(artefact, "test_id")
    rise = loo.outcomes(target[removed][:, :, test], full[:, test])
    n_removed = len(removed_id)
    kept, lost, left_out = _usable(np.moveaxis(rise, 1, 0), removed_id, f"{what}s")
    if lost:
        removed_id, rise = removed_id[kept], rise[kept]
    repeats = rise
    if len(artefact.tensors.get(f"replicate_{name}", ())):
        again, again_full = arrays_of(artefact, "replicate_target", "replicate_full_target")
        again_id, order = sorted_ids(artefact, f"replicate_{name}")
        again_rise = loo.outcomes(again[order][:, :, test], again_full[:, test])
        again_kept, again_lost, again_left_out = _usable(
            np.moveaxis(again_rise, 1, 0), again_id, f"{what}s with a second run"
        )
        if again_lost:
            again_id, again_rise = again_id[again_kept], again_rise[again_kept]
        left_out = "; ".join(filter(None, (left_out, again_left_out)))
        _, first, second = np.intersect1d(removed_id, again_id, return_indices=True)
        repeats = np.concatenate([rise[first], again_rise[second]], axis=1)
    runs, repeats = np.moveaxis(rise, 1, 0), np.moveaxis(repeats, 1, 0)
    note = "" if len(repeats) > 1 else f"one run of each {what}; two or more give a ceiling"
    if len(repeats) > 1 and repeats.shape[1] < 3:
        note = f"only {repeats.shape[1]} {what}s have a second run"

    def predict(scores: Scores) -> Predict:
        return lambda tests: np.concatenate([block for _, block in scores.blocks(tests)])

    return GroundTruth(
        kind="pearson",
        train_id=removed_id,
        test_id=test_id,
        predict=predict,
        runs=runs,
        repeats=repeats,
        repeats_note=note,
        n_unconverged=lost,
        empty=lost == n_removed,
        left_out=left_out,
    )


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
