"""Put the chunks of a retraining together into one ground truth, and check that it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leaveout.config import Setting
from leaveout.retraining import trainings
from leaveout.retraining.items import items
from leaveout.retraining.layout import TRUTH_DIMS
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact, CorruptArtefactError
from leaveout.store.contents import Arrays

_EACH = {
    "loo": ("removed_id",),
    "pbrf": ("point_id", "initial_norm", "gradient_norm", "steps", "converged"),
}
"""What a chunk holds of each sample taken out, beside its targets: first its id."""


def _check_ids(chunks: Sequence[Artefact]) -> None:
    first = chunks[0]
    for other in chunks[1:]:
        for name in ("train_id", "test_id"):
            if not np.array_equal(other.tensors[name], first.tensors[name]):
                raise CorruptArtefactError(other.path, f"its {name} differ from {first.path}'s")


def _check_whole(
    setting: Setting, kind: Literal["lds", "loo", "pbrf"], chunks: Sequence[Artefact]
) -> None:
    name = "subset_id" if kind == "lds" else _EACH[kind][0]
    found = [(int(i), int(c.tensors["run_id"][0])) for c in chunks for i in c.tensors[name]]
    expected = items(setting, kind)
    if kind != "lds":  # what is left out is named by its place in the slice
        ids = np.sort(chunks[0].tensors["train_id"])
        expected = [(int(ids[place]), run) for place, run in expected]
    if found != expected:
        missing = sorted(set(expected) - set(found))[:5]
        extra = sorted(set(found) - set(expected))[:5]
        raise CorruptArtefactError(
            chunks[0].path.parent,
            f"the chunks in this folder lack (item, run) {missing}, have too many {extra}, or are "
            "out of order",
        )


def _of_run(chunks: Sequence[Artefact], run: int) -> list[Artefact]:
    return [c for c in chunks if int(c.tensors["run_id"][0]) == run]


def _lds(setting: Setting, chunks: Sequence[Artefact]) -> dict[str, NDArray[np.generic]]:
    runs = []
    for run in range(setting.lds.runs):
        own = _of_run(chunks, run)
        runs.append(
            {
                name: np.concatenate([c.tensors[name] for c in own])
                for name in ("target", "mask", "subset_id")
            }
        )
        if not np.array_equal(runs[run]["mask"], runs[0]["mask"]):
            raise CorruptArtefactError(own[0].path, "its subsets are others than those of run 0")
    return {**runs[0], "target": np.stack([joined["target"] for joined in runs], axis=1)}


def _by_run(
    layer: Literal["loo", "pbrf"], chunks: Sequence[Artefact]
) -> dict[str, NDArray[np.generic]]:
    """Join chunks of one run each: those of run 0, and those of run 1 as replicates."""
    names, tests = _EACH[layer], chunks[0].tensors["target"][:0]
    joined: dict[str, NDArray[np.generic]] = {}
    for run, prefix in ((0, ""), (1, "replicate_")):
        own = _of_run(chunks, run)
        for name in ("target", *names):
            parts = [c.tensors[name] for c in own]
            joined[f"{prefix}{name}"] = np.concatenate([chunks[0].tensors[name][:0], *parts])
        joined[f"{prefix}target"] = (
            joined[f"{prefix}target"][:, None] if own else tests.reshape(0, 0, tests.shape[1])
        )
        # each chunk has the losses of the full run anew; they agree to rounding
        joined[f"{prefix}full_target"] = own[0].tensors["full_target"][None] if own else tests
        for other in own[1:]:
            if not np.allclose(
                other.tensors["full_target"], own[0].tensors["full_target"], 1e-2, 1e-4, True
            ):
                raise CorruptArtefactError(
                    other.path, f"its full run differs from {own[0].path}'s beyond rounding"
                )
    return joined


def merge_truth(
    setting: Setting, kind: Literal["lds", "loo", "pbrf"], chunk_paths: Sequence[Path]
) -> Arrays:
    """Return the ``lds``, ``loo`` or ``pbrf`` artefact from its chunks.

    Args:
        setting: Says what must be there.
        kind: Which ground truth.
        chunk_paths: The chunks, in order.

    Raises:
        CorruptArtefactError: A chunk is damaged, missing, twice there or of another setting.
    """
    chunks = [artefacts.read(path, f"{kind}-chunk") for path in chunk_paths]
    _check_ids(chunks)
    n_train = len(chunks[0].tensors["train_id"])
    if n_train != setting.dataset.n_train:
        raise CorruptArtefactError(
            chunks[0].path,
            f"it is of {n_train} training samples, {setting.name} has {setting.dataset.n_train}",
        )
    _check_whole(setting, kind, chunks)
    # where the models were trained, and what sets a second run apart: of the first that says it
    facts: dict[str, Any] = {
        name: chunk.meta[name]
        for chunk in reversed(chunks)
        for name in ("device", "second")
        if name in chunk.meta
    }
    joined = _lds(setting, chunks) if kind == "lds" else _by_run(kind, chunks)
    for name in ("train_id", "test_id"):
        joined[name] = chunks[0].tensors[name]
    return Arrays(kind, joined, TRUTH_DIMS[kind], {**facts, **trainings.joined(chunks)})
