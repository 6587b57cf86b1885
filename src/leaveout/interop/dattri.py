"""dattri's files: its benchmark's ground truth, its checkpoints, and what its retraining writes.

A benchmark of dattri (0.3.0) is a folder, here as `leaveout export` fills it:

    lds/indices_lds.pt        int64 (subset, size), positions of the kept training samples
    lds/target_values_lds.pt  float32 (subset, test), minus the loss, runs averaged
    loo/indices_loo.pt        (removed,), positions of the training samples left out
    loo/target_values_loo.pt  float32 (removed, test), the loss itself without the sample
    models_full/0/model_weights_0.pt, models_half/...   state dicts

Everything is by position in the data set, where leaveout has ids. Its retraining writes
`3/indices.txt` and `3/model_weights_0.pt` for subsets, `index_7/model_weights.pt` for LOO.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from leaveout.errors import LeaveoutError
from leaveout.interop import files
from leaveout.interop.truths import (
    Floats,
    Positions,
    check_positions,
    check_tests,
    chosen_runs,
    lds_arrays,
    loo_arrays,
    mask_of,
)
from leaveout.store.artefacts import Artefact

Losses = Callable[[Path], Floats]
"""Takes a checkpoint, gives the loss of every test sample under it, (test,)."""


def ground_truth(truth: Artefact, run: int | None = None) -> tuple[Tensor, Tensor]:
    """Return a ground truth as dattri's metrics take it: (target values, indices).

    Args:
        truth: An `lds` or `loo` artefact.
        run: Which run of each subset or removed sample; by default the mean of all.

    Returns:
        For LDS: minus the loss (subset, test) and the kept positions (subset, size). For LOO: the
        loss (removed, test) and the positions left out (removed,), in order of position, which is
        the order in which `dattri.metric.loo_corr` takes the rows of a score.

    Raises:
        LeaveoutError: The artefact is of another kind, there is no such run, or the subsets are of
            different sizes, which dattri's tensor can't hold.
    """
    if truth.kind == "lds":
        sizes = truth.tensors["mask"].sum(axis=1)
        if (sizes != sizes[0]).any():
            raise LeaveoutError(
                f"{truth.path}: dattri holds subsets as one tensor, and these have {sizes.min()} "
                f"to {sizes.max()} samples. kronfluence's masks can hold them."
            )
        kept = np.nonzero(truth.tensors["mask"])[1].reshape(len(sizes), -1)
        # 0 - x has no negative zero
        return torch.from_numpy(0 - chosen_runs(truth, run)), torch.from_numpy(kept)
    if truth.kind == "loo":
        order = np.argsort(train := truth.tensors["train_id"])
        removed = order[np.searchsorted(train, truth.tensors["removed_id"], sorter=order)]
        rows = np.argsort(removed)
        return torch.from_numpy(chosen_runs(truth, run)[rows]), torch.from_numpy(removed[rows])
    raise LeaveoutError(f"{truth.path}: it is of kind {truth.kind!r}, no ground truth of dattri's")


def write_ground_truth(truth: Artefact, folder: Path, run: int | None = None) -> list[Path]:
    """Write `indices_METRIC.pt` and `target_values_METRIC.pt`; see :func:`ground_truth`.

    Returns:
        The files.
    """
    values, indices = ground_truth(truth, run)
    paths = _truth_paths(truth.kind, folder)
    for path, tensor in zip(paths, (indices, values), strict=True):
        files.save(path, tensor)
    return paths


def write_models(models: Sequence[Artefact], folder: Path) -> list[Path]:
    """Write the final state of each run as `RUN/model_weights_0.pt`.

    Args:
        models: `models` artefacts.
        folder: Where to.

    Returns:
        The files, in order of run.
    """
    written = {}
    for artefact in models:
        for row, run in enumerate(artefact.tensors["run_id"].tolist()):
            state = {
                name.removeprefix("state."): torch.from_numpy(array[row, -1].copy())
                for name, array in artefact.tensors.items()
                if name.startswith("state.")
            }
            written[run] = folder / str(run) / "model_weights_0.pt"
            files.save(written[run], state)
    return [written[run] for run in sorted(written)]


def read_ground_truth(
    metric: str, folder: Path, data: Artefact
) -> tuple[dict[str, NDArray[Any]], list[Path]]:
    """Read `indices_METRIC.pt` and `target_values_METRIC.pt`.

    Args:
        metric: ``lds`` or ``loo``.
        folder: Where they lie.
        data: The `data` artefact whose samples they are about, in its order.

    Returns:
        The arrays of the ground truth artefact, with one run, and the files.

    Raises:
        LeaveoutError: A file is missing, damaged or of another shape than the other or the data.
    """
    paths = _truth_paths(metric, folder)
    found, values = (files.load_array(path) for path in paths)
    indices = found.astype(np.int64)
    if values.ndim != 2 or indices.shape[:1] != values.shape[:1] or (indices != found).any():
        raise LeaveoutError(
            f"{paths[0]}: {found.dtype} {found.shape}, beside target values {values.shape}: these "
            "are no indices of the same models"
        )
    if indices.ndim != {"lds": 2, "loo": 1}[metric]:
        raise LeaveoutError(f"{paths[0]}: its shape {indices.shape} is not that of {metric}")
    check_tests(values, data, paths[1])
    values = values.astype(np.float32)
    train_id = data.tensors["train_id"]
    if metric == "lds":
        return lds_arrays(0 - values[:, None], mask_of(indices, len(train_id), paths[0])), paths
    check_positions(indices, len(train_id), paths[0])
    if len(np.unique(indices)) != len(indices):
        raise LeaveoutError(f"{paths[0]}: it names a training sample twice")
    return loo_arrays(values, train_id[indices]), paths


def _truth_paths(metric: str, folder: Path) -> list[Path]:
    return [folder / f"{name}_{metric}.pt" for name in ("indices", "target_values")]


def has_ground_truth(metric: str, folder: Path) -> bool:
    """Say whether a folder holds files of a ground truth (and not of retrained models)."""
    return any(path.is_file() for path in _truth_paths(metric, folder))


def read_retrained(
    metric: str, folder: Path, data: Artefact, losses: Losses
) -> tuple[dict[str, NDArray[Any]], list[Path]]:
    """Measure the models that dattri's `retrain_lds` or `retrain_loo` wrote, all runs of each.

    Folders are found by their names, wherever the whole was moved; the paths in `metadata.yml`,
    which dattri takes from the current folder, are not needed.

    Args:
        metric: ``lds`` or ``loo``.
        folder: Where they lie.
        data: The `data` artefact of the samples they were trained on, in its order.
        losses: Gives the loss of every test sample under a checkpoint.

    Returns:
        The arrays of the ground truth artefact, and the files.

    Raises:
        LeaveoutError: Models are missing, or can't be read; dattri's leave-one-out models are whole
            modules, which are refused.
    """
    if metric == "lds":
        return _retrained_lds(folder, len(data.tensors["train_id"]), losses)
    found = _numbered(folder, r"index_(\d+)")
    indices = np.array(sorted(found), dtype=np.int64)
    check_positions(indices, len(data.tensors["train_id"]), folder)
    paths = [found[i] / "model_weights.pt" for i in indices.tolist()]
    target = np.stack([losses(path) for path in paths])
    return loo_arrays(target, data.tensors["train_id"][indices]), paths


def _retrained_lds(
    folder: Path, n_train: int, losses: Losses
) -> tuple[dict[str, NDArray[Any]], list[Path]]:
    found = _numbered(folder, r"(\d+)")
    _check_all_there(folder, found)
    texts = [found[i] / "indices.txt" for i in sorted(found)]
    masks, runs, read = [], [], []
    for text in texts:
        masks.append(mask_of(_indices(text)[None], n_train, text)[0])
        models = _numbered(text.parent, r"model_weights_(\d+)\.pt")
        runs.append([models[run] for run in sorted(models)])
        if len(runs[-1]) != len(runs[0]):
            raise LeaveoutError(
                f"{text.parent}: {len(runs[-1])} models, but {len(runs[0])} in {texts[0].parent}; "
                "every subset needs as many"
            )
        read += [text, *runs[-1]]
    target = np.stack([np.stack([losses(path) for path in paths]) for paths in runs])
    return lds_arrays(target, np.stack(masks)), read


def _indices(path: Path) -> Positions:
    try:
        return np.array([int(line) for line in path.read_text(encoding="utf-8").split()], np.int64)
    except FileNotFoundError as error:
        raise LeaveoutError(f"{path}: no such file, though the subset's folder is there") from error
    except (ValueError, OverflowError) as error:
        raise LeaveoutError(f"{path}: expected one index a line ({error})") from error


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Return what in a folder is named by a number."""
    entries = folder.iterdir() if folder.is_dir() else []
    found = {int(m[1]): p for p in entries if (m := re.fullmatch(pattern, p.name))}
    if not found:
        raise LeaveoutError(f"{folder}: nothing there is named like {pattern}, as dattri does it")
    return found


def _check_all_there(folder: Path, found: dict[int, Path]) -> None:
    """See that the folders are as many as `metadata.yml` says, where it can be read."""
    try:
        text = (folder / "metadata.yml").read_text(encoding="utf-8")
        expected = int(yaml.safe_load(text)["num_subsets"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    if missing := sorted(set(range(expected)) - set(found)):
        raise LeaveoutError(
            f"{folder}: metadata.yml says {expected} subsets; {missing[:5]} are not there"
        )
