"""The ground truth of a bank, which a user's own loop trained, for scores to be held against."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leaveout.banks.layout import IDS, BankError, full_file, loo_file, read_ids, read_metadata
from leaveout.banks.loaders import Loader
from leaveout.banks.truth import (
    TargetFunc,
    calculate_loo_ground_truth,
    check_there,
    convergence,
    lds_targets,
    targets_under,
)
from leaveout.doors.scores import Truth
from leaveout.interop.truths import FULL_TARGET, lds_arrays, loo_arrays, mask_of
from leaveout.retraining.layout import TRUTH_DIMS
from leaveout.store.contents import Arrays, save

_Tensors = dict[str, NDArray[Any]]


def truth_of_bank(
    target_func: TargetFunc,
    retrain_dir: str | PathLike[str],
    test_dataloader: Loader,
    *,
    model: nn.Module | None = None,
) -> Truth:
    """Return the ground truth of a bank, with all its runs, for :meth:`Scores.against`.

    Scores are matched by the ids of the training samples, which are the bank's, and by the places
    of the test samples.

    Args:
        target_func: ``target_func(checkpoint, test_dataloader)`` returns the target of every test
            sample, its loss, (test,); small where the model is right.
        retrain_dir: The folder that ``retrain_lds``, ``retrain_loo`` or ``retrain_pbrf`` made;
            ``ground_truth.safetensors`` is written there.
        test_dataloader: Handed to ``target_func``; it must not shuffle.
        model: A module of the architecture. If given, ``target_func`` gets a copy of it with the
            weights loaded, in place of a path.

    Raises:
        BankError: The bank is not whole or a file in it damaged, or ``target_func`` returned no
            value a test sample.

    Example:
        >>> truth = truth_of_bank(test_loss, "bank/lds", test_loader)  # doctest: +SKIP
        >>> print(scores.against(truth))  # doctest: +SKIP
    """
    folder = Path(retrain_dir)
    metadata = read_metadata(folder)
    metric, train_id = metadata["mode"], np.sort(read_ids(folder / IDS))
    note = {}
    if metric == "lds":
        targets, kept = lds_targets(target_func, folder, test_dataloader, model)
        places = np.stack([np.searchsorted(train_id, np.sort(ids)) for ids in kept])
        mask = mask_of(places, len(train_id), folder)
        tensors: _Tensors = lds_arrays(targets.float().numpy(), mask)
    elif metric == "loo":
        found, ids = calculate_loo_ground_truth(target_func, folder, test_dataloader, model=model)
        tensors = loo_arrays(found.float().numpy(), ids.numpy())
        note = {"full_target": FULL_TARGET}
    elif metric == "pbrf":
        points = np.array(metadata["indices"], dtype=np.int64)
        files = [loo_file(folder, int(index)) for index in points]
        files.append(full_file(folder))  # where it began
        check_there(folder, files, "retrain_pbrf")
        found = torch.stack([*targets_under(target_func, files, test_dataloader, model)])
        tensors = _pbrf(folder, found.float().numpy(), points)
    else:
        raise BankError(f"{folder}: its mode is {metric!r}, which has no ground truth")
    tensors |= {"train_id": train_id, "test_id": np.arange(tensors["target"].shape[-1])}
    path = folder / "ground_truth.safetensors"
    name = "own"
    save(path, Arrays(metric, tensors, TRUTH_DIMS[metric], note), {"key": "bank", "setting": name})
    return Truth(path, metric, name, 0)


def _pbrf(folder: Path, found: NDArray[np.float32], ids: NDArray[np.int64]) -> _Tensors:
    """Return the arrays of a ``pbrf`` artefact but for the ids of all samples.

    Args:
        folder: The bank.
        found: Targets without each sample and, last, of the model that it began with.
        ids: Of the samples.
    """
    records = [convergence(folder, int(index)) for index in ids]
    each: _Tensors = {
        "point_id": ids,
        "initial_norm": np.array([r["initial_norm"] for r in records], dtype=np.float64),
        "gradient_norm": np.array([r["gradient_norm"] for r in records], dtype=np.float64),
        "steps": np.array([r["steps"] for r in records], dtype=np.int64),
        "converged": np.array([r["converged"] for r in records], dtype=np.uint8),
    }
    target, full = found[:-1, None], found[-1:]
    again: _Tensors = {f"replicate_{name}": values[:0] for name, values in each.items()}
    nothing = {"replicate_target": target[:0, :0], "replicate_full_target": full[:0]}
    return {"target": target, "full_target": full, **each, **again, **nothing}
