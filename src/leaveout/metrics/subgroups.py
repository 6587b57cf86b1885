"""A metric by subgroup of the test samples: by class, and by how sure the full models are.

Per test sample nothing is new: the correlations are those of :mod:`leaveout.metrics.evaluate`, at
the hyper-parameters it chooses on the ``select`` half, over the ``report`` half, against the mean
of the runs. Here they are averaged over some of the test samples only, with an interval from the
same bootstrap of units and of the subgroup's test samples. How sure the models are is the
probability they give the right class, in mean over the full runs; its three groups are as large as
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout import seeds
from leaveout.data.halves import Ids, chosen, split
from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Bools, Floats, correlate, is_broken, mean
from leaveout.metrics.files import number, rows_text
from leaveout.metrics.truths import GroundTruth, Predict, aligned, load_ground_truth
from leaveout.metrics.uncertainty import interval, limits, means, replicate_sums, resample_counts
from leaveout.scoring.files import not_computed, sorted_ids
from leaveout.store.artefacts import ALL, Artefact, CorruptArtefactError, read

COLUMNS = (
    "setting",
    "metric",
    "method",
    "params",
    "group_by",
    "group",
    "detail",
    "value",
    "ci_low",
    "ci_high",
    "n_test",
    "n_nan",
    "n_constant",
    "not_computed",
)
THIRDS = ("low", "middle", "high")
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Group:
    """Some of the test samples.

    Attributes:
        by: ``class`` or ``confidence``.
        name: Which.
        detail: What is in it, in words.
        members: (test,), whether each is one of it.
    """

    by: str
    name: str
    detail: str
    members: Bools


def groups(labels: Ids, confidence: Floats, among: Bools) -> list[Group]:
    """Return the subgroups that have members.

    Args:
        labels: (test,), the class of each test sample.
        confidence: (test,), the probability given to the right class.
        among: (test,), whether each is reported; the others are in no group.
    """
    found = [
        Group("class", str(label), f"test samples of class {label}", among & (labels == label))
        for label in np.unique(labels)
    ]
    places = np.flatnonzero(among)
    order = places[np.argsort(confidence[places], kind="stable")]
    for name, part in zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True):
        members = np.zeros(len(labels), dtype=bool)
        members[part] = True
        low, high = confidence[part[[0, -1]]] if len(part) else (np.nan, np.nan)
        detail = f"probability of the right class {low:.3f} to {high:.3f}"
        found.append(Group("confidence", name, detail, members))
    return [group for group in found if group.members.any()]


def _of_tests(artefact: Artefact, name: str, test_id: Ids) -> NDArray[Any]:
    """Return an array's values for some test samples, by the last dim."""
    if name not in artefact.tensors:
        raise CorruptArtefactError(artefact.path, f"it has no array {name!r}")
    have, order = sorted_ids(artefact, "test_id")
    if not np.isin(test_id, have).all():
        raise LeaveoutError(
            f"{artefact.path}: it lacks test samples of the ground truth. Make both from the same "
            "setting."
        )
    return artefact.tensors[name][..., order[np.searchsorted(have, test_id)]]


def subgroups(
    metric: str,
    truth: Path,
    data: Path,
    predictions: Path,
    csvs: Sequence[Path],
    scores: Sequence[Path],
    *,
    setting: str,
    methods: Sequence[str],
    root_seed: int,
    bootstrap: int,
) -> str:
    """Evaluate methods on subgroups of the test samples; one row a method and subgroup.

    Args:
        metric: ``lds``, ``loo`` or ``pbrf``.
        truth: Artefact of that kind.
        data: The setting's ``data`` artefact, for the classes.
        predictions: Its ``predictions`` artefact.
        csvs: The metric's CSV of each method.
        scores: Their ``score`` artefacts, in any order.
        setting: Name of the setting.
        methods: Names of the methods, in the order of ``csvs``.
        root_seed: Root seed of the setting; halves and resampling derive from it.
        bootstrap: Number of bootstrap replicates.

    Returns:
        The text of a CSV with the columns ``COLUMNS``.

    Raises:
        LeaveoutError: A file is missing or damaged, or the files do not fit together.
    """
    if len(csvs) != len(methods):
        raise LeaveoutError(f"{len(methods)} methods, but {len(csvs)} CSVs: give one of each.")
    ground = load_ground_truth(metric, truth)
    confidence = np.exp(-_of_tests(read(predictions, "predictions"), "loss", ground.test_id))
    labels = _of_tests(read(data, "data", leave=_INPUTS), "test_labels", ground.test_id)
    report = split(ground.test_id, setting, root_seed)["report"]
    parts = groups(labels.astype(np.int64), confidence.mean(axis=0), report)
    n_units, n_test = ground.runs.shape[1:]
    counts = resample_counts(
        seeds.generator(root_seed, setting, "bootstrap", metric, "units", n_units),
        n_units,
        bootstrap,
    )
    test_counts = np.zeros((len(parts), n_test, bootstrap), dtype=np.float32)
    for row, group in zip(test_counts, parts, strict=True):
        draw = seeds.generator(
            root_seed, setting, "bootstrap", metric, "tests", group.by, group.name
        )
        row[group.members] = resample_counts(draw, int(group.members.sum()), bootstrap)

    files = _headers(scores, setting)
    rows = []
    for method, metric_csv in zip(methods, csvs, strict=True):
        label = chosen(metric_csv)
        if (method, label) not in files:
            raise LeaveoutError(f"{metric_csv}: no score file of {method}, {label} is given.")
        artefact = read(files[method, label], "score", leave=["score"])
        why = not_computed(artefact)
        nothing = np.full((n_units, n_test), np.nan)
        predict: Predict = (
            (lambda tests, nothing=nothing: nothing[:, tests])  # type: ignore[misc]
            if why
            else ground.predict(aligned(artefact, ground, truth, metric))
        )
        values, broken, drawn = _measure(ground, predict, counts, test_counts)
        for place, group in enumerate(parts):
            value = values[group.members]
            low, high = interval(drawn[place], mean(value), limits(ground.kind))
            lost = broken[group.members]
            rows.append(
                (
                    *(setting, metric, method, label, group.by, group.name, group.detail),
                    *map(number, (mean(value), low, high)),
                    *(len(value), int(lost.sum()), int((np.isnan(value) & ~lost).sum()), why),
                )
            )
    return rows_text(COLUMNS, rows)


_INPUTS = ("train_inputs", "test_inputs")
"""What is not looked at, and can be large."""


def _headers(scores: Sequence[Path], setting: str) -> dict[tuple[str, str], Path]:
    """Return score files by method and label of hyper-parameters."""
    found = {}
    for path in scores:
        meta = read(path, "score", leave=ALL).meta
        if meta.get("setting") != setting:
            raise LeaveoutError(f"{path}: its setting is not {setting!r}.")
        found[str(meta.get("method")), str(meta.get("label"))] = path
    return found


def _measure(
    ground: GroundTruth,
    predict: Predict,
    counts: NDArray[np.uint16],
    test_counts: NDArray[np.float32],
) -> tuple[NDArray[np.float64], Bools, NDArray[np.float64]]:
    """Return each test sample's value, whether it is broken, and the groups' replicates.

    Args:
        ground: What is compared with.
        predict: Gives the predictions of some test samples.
        counts: (unit, replicate).
        test_counts: (group, test, replicate).

    Returns:
        (test,), (test,) and (group, replicate).
    """
    n_units, n_test = ground.runs.shape[1:]
    outcome = ground.runs.mean(axis=0)
    values, broken = np.empty(n_test), np.empty(n_test, dtype=bool)
    sums = np.zeros((2, 1, len(test_counts), counts.shape[1]))
    size = max(1, _BLOCK_BYTES // (16 * n_units))
    for start in range(0, n_test, size):
        tests = slice(start, min(start + size, n_test))
        # only what is in a group is resampled
        wanted = np.flatnonzero(test_counts[:, tests].any(axis=(0, 2)))
        columns = [predict(tests), outcome[:, tests]]
        values[tests] = correlate(ground.kind, *columns)
        broken[tests] = is_broken(columns[0]) | is_broken(columns[1])
        sums += replicate_sums(
            ground.kind,
            [column[:, wanted] for column in columns],
            [[(0, 1)]],
            counts,
            test_counts[:, tests][:, wanted],
            np.isfinite(values[tests][None, wanted]),
        )
    return values, broken, means(sums)[0]
