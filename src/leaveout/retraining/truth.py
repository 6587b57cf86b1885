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
from leaveout.retraining.layout import LDS_DIMS, LOO_DIMS, PBRF_DIMS

_DIMS = {"lds": LDS_DIMS, "loo": LOO_DIMS, "pbrf": PBRF_DIMS}
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


def _by_run(
    setting: Setting, layer: Literal["loo", "pbrf"], chunks: Sequence[Artefact]
) -> dict[str, NDArray[np.generic]]:
    """Join chunks of one run each: those of run 0, and those of run 1 as replicates."""
    names, tests = _EACH[layer], chunks[0].tensors["target"][:0]
    joined: dict[str, NDArray[np.generic]] = {}
    for run, prefix in ((0, ""), (1, "replicate_")):
        own = [c for c in chunks if int(c.tensors["run_id"][0]) == run]
        for name in ("target", *names):
            parts = [c.tensors[name] for c in own]
            joined[f"{prefix}{name}"] = np.concatenate([chunks[0].tensors[name][:0], *parts])
        found = joined[f"{prefix}{names[0]}"]
        ids = np.sort(chunks[0].tensors["train_id"])
        expected = [int(ids[place]) for place, r in items(setting, layer) if r == run]
        _check_whole(found.tolist(), expected, chunks)
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
    setting: Setting, kind: Literal["lds", "loo", "pbrf"], chunk_paths: Sequence[Path], out: Path
) -> None:
    """Write the ``lds``, ``loo`` or ``pbrf`` artefact from its chunks.

    Args:
        setting: Says what must be there.
        kind: Which ground truth.
        chunk_paths: The chunks, in order.
        out: The file to write.

    Raises:
        CorruptArtefactError: A chunk is damaged, missing, twice there or of another setting.
    """
    part = "lds" if kind == "lds" else f"{kind}-chunk"
    chunks = [artefacts.read(path, part) for path in chunk_paths]
    _check_ids(chunks)
    n_train = len(chunks[0].tensors["train_id"])
    if n_train != setting.dataset.n_train:
        raise CorruptArtefactError(
            chunks[0].path,
            f"it is of {n_train} training samples, {setting.name} has {setting.dataset.n_train}",
        )
    joined = _lds(setting, chunks) if kind == "lds" else _by_run(setting, kind, chunks)
    for name in ("train_id", "test_id"):
        joined[name] = chunks[0].tensors[name]
    artefacts.write(
        out,
        kind,
        joined,
        _DIMS[kind],
        provenance(
            setting, truth_key(setting, kind), by_name(chunks), str(chunks[0].meta["device"])
        ),
    )
