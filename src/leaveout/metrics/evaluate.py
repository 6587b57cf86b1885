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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout import seeds
from leaveout.config.metric_names import truth_of
from leaveout.data.halves import HALVES, split
from leaveout.metrics.correlation import Floats, Kind, correlate, is_broken, mean
from leaveout.metrics.draws import Replicates, make_draws
from leaveout.metrics.files import costs_text, number, rows_text
from leaveout.metrics.truths import GroundTruth, aligned, load_ground_truth
from leaveout.metrics.uncertainty import (
    ceiling,
    interval,
    limits,
    means,
    replicate_sums,
    resample_counts,
)
from leaveout.retraining import trainings
from leaveout.scoring.files import not_computed, read_scores
from leaveout.store.artefacts import ALL, Artefact, read
from leaveout.store.contents import Contents

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

_BLOCK_BYTES = 128 << 20
"""How much of predictions and outcomes is in memory at once, about."""


def evaluate(
    metric: str,
    truth: Path,
    scores: Sequence[Path],
    costs: Sequence[Path],
    *,
    setting: str,
    method: str,
    root_seed: int,
    bootstrap: int,
    top_k: int = 10,
) -> dict[str, Contents]:
    """Evaluate all score files of one method; one row per hyper-parameters, truth and half.

    A test sample whose predictions or outcomes hold NaN or inf, or are constant, has no
    correlation: it is left out of the mean and counted by its cause. A subset or a removed sample
    with a run that diverged is left out and counted too (``n_unconverged``), and ``ceiling_note``
    names the runs. Scores that could not be computed have NaN for a value, and the column
    ``not_computed`` says why.

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
        costs: The cost files of these, in the same order; none if they are not at hand.
        setting: Name of the setting.
        method: Name of the method.
        root_seed: Root seed of the setting; resampling and halves derive from it and (setting,
            metric).
        bootstrap: Number of bootstrap replicates.
        top_k: How many samples ``loo_topk`` looks at.

    Returns:
        ``csv``: the text of a CSV with the columns ``COLUMNS``. ``draws``: what
        :func:`leaveout.metrics.draws.read_draws` reads; the replicates are of the chosen grid
        point's value against the mean of the runs, on the report half, and replicate k is of the
        same draw for all methods of the setting. ``costs``: the text of a JSON list, the records of
        the cost files.

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
        drawn = replicates[p * len(TRUTHS) + t, h]
        low, high = interval(drawn, mean(value), limits(ground.kind))
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
    shown = replicates[TRUTHS.index("mean") :: len(TRUTHS), HALVES.index("report")]
    drawn_of = dict(zip(artefacts, shown, strict=True))
    return outputs(rows, list(artefacts.values()), drawn_of, costs)


def outputs(
    rows: Sequence[Sequence[object]],
    scores: Sequence[Artefact],
    replicates: Replicates,
    costs: Sequence[Path],
) -> dict[str, Contents]:
    """Return what a metric gives of one method: its rows, the draws beside them, and the costs.

    Args:
        rows: The cells of ``COLUMNS``.
        scores: What they were made from.
        replicates: Of the value shown, for each grid point.
        costs: The cost files of the scores.

    Raises:
        LeaveoutError: A cost file is missing, damaged, or of something else.
    """
    text = rows_text(COLUMNS, rows)
    meta = scores[0].meta
    return {
        "csv": text,
        "draws": make_draws(text, scores, replicates),
        "costs": costs_text(costs, meta["setting"], meta["method"]),
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
        notes = _joined(ground.repeats_note, ground.left_out)
        return dict.fromkeys(itertools.product(TRUTHS, HALVES), (*none, notes))
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
        found[name, half] = (top, low, high, _joined(note or ground.ceiling_note, ground.left_out))
    return found


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
