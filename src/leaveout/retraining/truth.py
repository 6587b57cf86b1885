"""Put the chunks of a retraining together into one ground truth, and check that it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leaveout import artefacts
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


def _check_whole(found: Sequence[int], expected: Sequence[int], chunks: Sequence[Artefact]) -> None:
    if list(found) != list(expected):
        missing = sorted(set(expected) - set(found))[:5]
        extra = sorted(set(found) - set(expected))[:5]
        raise CorruptArtefactError(
            chunks[0].path.parent,
            f"the chunks in this folder lack {missing}, have too many {extra}, or are out of order",
        )


def _lds(setting: Setting, chunks: Sequence[Artefact]) -> dict[str, NDArray[np.generic]]:
    joined = {
        name: np.concatenate([c.tensors[name] for c in chunks])
        for name in ("target", "mask", "subset_id")
    }
    _check_whole(joined["subset_id"].tolist(), [i for i, _ in items(setting, "lds")], chunks)
    return joined


def _loo(setting: Setting, chunks: Sequence[Artefact]) -> dict[str, NDArray[np.generic]]:
    joined: dict[str, NDArray[np.generic]] = {}
    for run, prefix in ((0, ""), (1, "replicate_")):
        own = [c for c in chunks if int(c.tensors["run_id"][0]) == run]
        n_test = len(chunks[0].tensors["test_id"])
        removed = np.concatenate([np.zeros(0, np.int64), *(c.tensors["removed_id"] for c in own)])
        ids = np.sort(chunks[0].tensors["train_id"])
        expected = [int(ids[place]) for place, r in items(setting, "loo") if r == run]
        _check_whole(removed.tolist(), expected, chunks)
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
    kinds = {"lds": "lds", "loo": "loo-chunk"}
    chunks = [artefacts.read(path, kinds[kind]) for path in chunk_paths]
    _check_ids(chunks)
    n_train = len(chunks[0].tensors["train_id"])
    if n_train != setting.dataset.n_train:
        raise CorruptArtefactError(
            chunks[0].path,
            f"it is of {n_train} training samples, {setting.name} has {setting.dataset.n_train}",
        )
    joined = _lds(setting, chunks) if kind == "lds" else _loo(setting, chunks)
    for name in ("train_id", "test_id"):
        joined[name] = chunks[0].tensors[name]
    artefacts.write(
        out,
        kind,
        joined,
        LDS_DIMS if kind == "lds" else LOO_DIMS,
        provenance(
            setting, truth_key(setting, kind), by_name(chunks), str(chunks[0].meta["device"])
        ),
    )
