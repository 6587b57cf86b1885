"""kronfluence's files for the linear datamodeling score: `masks.pt` and `losses.pt`.

The scripts among its examples read both as arrays of NumPy that were saved with `torch.save`:
`masks` (subset, train), 1 where the sample is kept, int8; `losses` (subset, test), the loss itself
(they turn the prediction round instead), float32, runs averaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError
from leaveout.interop import files
from leaveout.interop.truths import check_tests, chosen_runs, lds_arrays
from leaveout.store.artefacts import Artefact

NAMES = ("masks.pt", "losses.pt")


def write_ground_truth(truth: Artefact, folder: Path, run: int | None = None) -> list[Path]:
    """Write `masks.pt` and `losses.pt`.

    Args:
        truth: An `lds` artefact.
        folder: Where to.
        run: Which run of each subset; by default the mean of all.

    Returns:
        The files.

    Raises:
        LeaveoutError: It is no `lds` artefact, or there is no such run.
    """
    if truth.kind != "lds":
        raise LeaveoutError(
            f"{truth.path}: kronfluence has no files for what is of kind {truth.kind!r}, only for "
            "the ground truth of lds"
        )
    masks, losses = (folder / name for name in NAMES)
    files.save(masks, truth.tensors["mask"].astype(np.int8))
    files.save(losses, chosen_runs(truth, run))
    return [masks, losses]


def read_ground_truth(folder: Path, data: Artefact) -> tuple[dict[str, NDArray[Any]], list[Path]]:
    """Read `masks.pt` and `losses.pt`.

    Args:
        folder: Where they lie.
        data: The `data` artefact whose samples they are about, in its order.

    Returns:
        The arrays of an `lds` artefact with one run, and the files.

    Raises:
        LeaveoutError: A file is missing, damaged or of another shape than the other or the data.
    """
    paths = [folder / name for name in NAMES]
    masks, losses = (files.load_array(path) for path in paths)
    wanted = (len(losses), len(data.tensors["train_id"]))
    if masks.ndim != 2 or losses.ndim != 2 or masks.shape != wanted:
        raise LeaveoutError(
            f"{paths[0]}: masks {masks.shape} and losses {losses.shape}, expected (subset, train) "
            f"and (subset, test) with {wanted[1]} training samples, as in {data.path}"
        )
    if not np.isin(masks, (0, 1)).all():
        raise LeaveoutError(f"{paths[0]}: it has other values than 0 (left out) and 1 (kept)")
    check_tests(losses, data, paths[1])
    target = losses.astype(np.float32)[:, None]
    return lds_arrays(target, masks.astype(np.uint8)), paths
