"""Put the chunks of a retraining together into one ground truth, and check that it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leaveout import artefacts, trainings
from leaveout.artefacts import Artefact, CorruptArtefactError
from leaveout.config import Setting
from leaveout.plan import items, truth_key
from leaveout.provenance import by_name, provenance
from leaveout.retraining.layout import LDS_DIMS, LOO_DIMS


def _check_ids(chunks: Sequence[Artefact]) -> None:
    first = chunks[0]
    for other in chunks[1:]:
        for name in ("train_id", "test_id"):
            if not np.array_equal(other.tensors[name], first.tensors[name]):
                raise CorruptArtefactError(other.path, f"its {name} differ from {first.path}'s")


def _check_whole(setting: Setting, kind: Literal["lds", "loo"], chunks: Sequence[Artefact]) -> None:
    name = {"lds": "subset_id", "loo": "removed_id"}[kind]
    found = [(int(i), int(c.tensors["run_id"][0])) for c in chunks for i in c.tensors[name]]
    expected = items(setting, kind)
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


def _loo(chunks: Sequence[Artefact]) -> dict[str, NDArray[np.generic]]:
    joined: dict[str, NDArray[np.generic]] = {}
    for run, prefix in ((0, ""), (1, "replicate_")):
        own = _of_run(chunks, run)
        n_test = len(chunks[0].tensors["test_id"])
        removed = np.concatenate([np.zeros(0, np.int64), *(c.tensors["removed_id"] for c in own)])
        empty = np.zeros((0, n_test), dtype=np.float32)
        joined[f"{prefix}removed_id"] = removed
        targets = np.concatenate([empty, *(c.tensors["target"] for c in own)])
        joined[f"{prefix}target"] = (
            targets[:, None] if own else np.zeros((0, 0, n_test), np.float32)
        )
        # each chunk trained the full run anew; they agree to rounding
        joined[f"{prefix}full_target"] = own[0].tensors["full_target"][None] if own else empty
        for other in own[1:]:
            if not np.allclose(
                other.tensors["full_target"], own[0].tensors["full_target"], 1e-2, 1e-4, True
            ):
                raise CorruptArtefactError(
                    other.path, f"its full run differs from {own[0].path}'s beyond rounding"
                )
    return joined


def merge_truth(
    setting: Setting, kind: Literal["lds", "loo"], chunk_paths: Sequence[Path], out: Path
) -> None:
    """Write the ``lds`` or ``loo`` artefact from its chunks.

    Args:
        setting: Says what must be there.
        kind: Which ground truth.
        chunk_paths: The chunks, in order.
        out: The file to write.

    Raises:
        CorruptArtefactError: A chunk is damaged, missing, twice there or of another setting.
    """
    chunks = [artefacts.read(path, f"{kind}-chunk") for path in chunk_paths]
    _check_ids(chunks)
    _check_whole(setting, kind, chunks)
    joined = _lds(setting, chunks) if kind == "lds" else _loo(chunks)
    for name in ("train_id", "test_id"):
        joined[name] = chunks[0].tensors[name]
    artefacts.write(
        out,
        kind,
        joined,
        LDS_DIMS if kind == "lds" else LOO_DIMS,
        {
            **provenance(
                setting, truth_key(setting, kind), by_name(chunks), str(chunks[0].meta["device"])
            ),
            **trainings.joined(chunks),
        },
    )
