"""What all ways of handing ground truth over share: which runs, and the artefact that is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.retraining.layout import TRUTH_DIMS
from leaveout.store import stamps
from leaveout.store.artefacts import Artefact
from leaveout.store.contents import Arrays, save
from leaveout.workflow.provenance import provenance

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]

FULL_TARGET = "unknown: the mean of target stands in, which the correlation does not depend on"


def chosen_runs(truth: Artefact, run: int | None) -> Floats:
    """Return the losses of one run of each unit, or the mean of all its runs, (unit, test).

    Raises:
        LeaveoutError: There is no such run.
    """
    target = truth.tensors["target"]
    runs = target.shape[1]
    if run is None:
        return np.asarray(target.mean(axis=1, dtype=np.float64), dtype=np.float32)
    if not 0 <= run < runs:
        raise LeaveoutError(f"{truth.path}: it has runs 0 to {runs - 1}; there is no run {run}")
    return np.asarray(target[:, run], dtype=np.float32)


def mask_of(indices: Positions, n_train: int, where: Path) -> NDArray[np.uint8]:
    """Turn a list of kept positions for each subset into a mask (subset, train).

    Args:
        indices: (subset, size).
        n_train: How many training samples there are.
        where: The file, for messages.

    Raises:
        LeaveoutError: A position lies outside, or is twice in a subset.
    """
    check_positions(indices, n_train, where)
    mask = np.zeros((len(indices), n_train), dtype=np.uint8)
    np.put_along_axis(mask, indices, 1, axis=1)
    twice = np.flatnonzero(mask.sum(axis=1) != indices.shape[1])
    if len(twice):
        raise LeaveoutError(f"{where}: subset {twice[0]} names a training sample twice")
    return mask


def check_positions(positions: Positions, n_train: int, where: Path) -> None:
    """See that positions lie in the training samples.

    Raises:
        LeaveoutError: One does not.
    """
    outside = positions[(positions < 0) | (positions >= n_train)]
    if outside.size:
        raise LeaveoutError(
            f"{where}: position {outside.flat[0]} lies outside the {n_train} training samples of "
            "the data given. Give the data that the models were trained on."
        )


def check_tests(target: NDArray[Any], data: Artefact, where: Path) -> None:
    """See that there is a value for every test sample.

    Raises:
        LeaveoutError: There is not.
    """
    n_test = len(data.tensors["test_id"])
    if target.shape[-1] != n_test:
        raise LeaveoutError(
            f"{where}: it has values of {target.shape[-1]} test samples, {data.path} has {n_test}. "
            "Give the data that the models were tested on."
        )


def lds_arrays(target: Floats, mask: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `lds` artefact but for the ids.

    Args:
        target: Losses, (subset, run, test).
        mask: (subset, train), 1 where the sample is kept.
    """
    return {"target": target, "mask": mask, "subset_id": np.arange(len(mask))}


def loo_arrays(target: Floats, removed_id: Positions) -> dict[str, NDArray[Any]]:
    """Return the arrays of a `loo` artefact but for the ids; full models' losses are not known.

    Args:
        target: Losses without each sample, (removed, test).
        removed_id: (removed,).
    """
    n_test = target.shape[1]
    return {
        "target": target[:, None],
        "removed_id": removed_id,
        "full_target": target.mean(axis=0, dtype=np.float64).astype(np.float32)[None],
        "replicate_target": np.zeros((0, 0, n_test), np.float32),
        "replicate_removed_id": np.zeros(0, np.int64),
        "replicate_full_target": np.zeros((0, n_test), np.float32),
    }


def write_truth(
    metric: str,
    arrays: dict[str, NDArray[Any]],
    setting: Setting,
    data: Artefact,
    source: str,
    files: Sequence[Path],
    out: Path,
) -> None:
    """Write the ground truth artefact of what another library made.

    Its stamp names the files it came from, so the workflow never takes it for its own.

    Args:
        metric: ``lds`` or ``loo``.
        arrays: See :func:`lds_arrays`, :func:`loo_arrays`.
        setting: The setting it is for.
        data: The setting's ``data`` artefact, which gives the ids.
        source: The other library.
        files: What was read.
        out: The file to write.
    """
    key = json.dumps({"step": "import", "from": source, "metric": metric, "setting": setting.name})
    note = {"full_target": FULL_TARGET} if metric == "loo" else {}
    truth = Arrays(
        metric,
        {**arrays, **{name: data.tensors[name] for name in ("train_id", "test_id")}},
        TRUTH_DIMS[metric],
        {"imported_from": source, **note},
    )
    save(out, truth, provenance(setting, key, stamps.sources([data.path, *files])))
