"""Ground truth from a bank: the target of every test sample under every model."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leaveout.banks.layout import (
    METADATA,
    BankError,
    convergence_file,
    indices_file,
    lds_file,
    loo_file,
    read_ids,
    read_metadata,
    read_state,
)
from leaveout.banks.loaders import Loader, count, draws_in_one_order
from leaveout.problem.randomness import preserved

TargetFunc = Callable[..., Any]


def _check_loader(loader: Loader) -> int | None:
    """Return how many test samples there are, None where the loader can't tell."""
    if not draws_in_one_order(loader):
        raise BankError(
            "test_dataloader shuffles: the test samples would be in another order under every "
            "model. Give it without shuffling"
        )
    return count(loader)


def check_there(folder: Path, files: Sequence[Path], again: str) -> None:
    """See that a bank is whole.

    Raises:
        BankError: It is not.
    """
    missing = [file for file in files if not file.exists()]
    if missing:
        names = ", ".join(str(file.relative_to(folder)) for file in missing[:3])
        raise BankError(
            f"{folder}: the bank is not whole: {len(missing)} of {len(files)} checkpoints are "
            f"missing ({names}{', ...' if len(missing) > 3 else ''}). {again} with the same "
            f"arguments trains what is missing; {METADATA} says what is to be there"
        )


def targets_under(
    target_func: TargetFunc, files: Sequence[Path], loader: Loader, model: nn.Module | None
) -> Iterator[Tensor]:
    """Yield the targets of the test samples under one model after the other, (test,)."""
    n = _check_loader(loader)
    model = copy.deepcopy(model)
    broken = 0
    for file in files:
        state = read_state(file)  # also where only the path is handed on: nothing damaged is
        with preserved():
            if model is not None:
                model.load_state_dict(state)
            try:
                found = target_func(file if model is None else model, loader)
            except Exception as error:
                error.add_note(
                    f"while target_func was given "
                    f"{'the path' if model is None else 'the model'} of {file}"
                    + (
                        "; to be given models, pass one of their kind by `model=`"
                        if model is None
                        else ""
                    )
                )
                raise
        values = torch.as_tensor(found).detach().cpu()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        n = len(values) if n is None and values.ndim == 1 else n
        if tuple(values.shape) != (n,):
            raise BankError(
                f"target_func returned an array of shape {tuple(values.shape)}; one value a test "
                f"sample is needed, shape ({'test samples' if n is None else n},)"
            )
        broken += not bool(torch.isfinite(values).all())
        yield values
    if broken:
        warnings.warn(
            f"{broken} of {len(files)} models have a target that is not finite; it is kept as it "
            "is",
            stacklevel=4,
        )


def _by_sample(
    target_func: TargetFunc,
    folder: Path,
    indices: Sequence[int],
    loader: Loader,
    model: nn.Module | None,
) -> tuple[Tensor, Tensor]:
    """Return the targets under the models without each sample, (samples, test), and the ids."""
    files = [loo_file(folder, index) for index in indices]
    values = torch.stack(list(targets_under(target_func, files, loader, model)))
    return values, torch.tensor(indices, dtype=torch.int64)


def calculate_lds_ground_truth(
    target_func: TargetFunc,
    retrain_dir: str | PathLike[str],
    test_dataloader: Loader,
    *,
    model: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ground truth of the linear datamodeling score (arXiv 2303.14186) from a bank.

    Args:
        target_func: ``target_func(checkpoint, test_dataloader)`` returns the target of every test
            sample, e.g. its loss, (test,). ``checkpoint`` is the path of a state dict, whose
            contents have been verified.
        retrain_dir: The folder made by ``retrain_lds``.
        test_dataloader: Handed to ``target_func``; it must not shuffle.
        model: A module of the architecture. If given, ``target_func`` gets a copy of it with the
            weights loaded, on the device it is on, in place of the path.

    Returns:
        Minus the target, the mean over a subset's runs, (num_subsets, test): it rises with a good
        prediction, which is the sum of the scores of the samples kept, where a positive score is a
        helpful sample. And the ids of the samples each subset keeps, (num_subsets, subset_size),
        int64.

    Raises:
        BankError: The bank is not whole or a file in it damaged (the message names it), or
            ``target_func`` returned no value a test sample.
    """
    found, kept = lds_targets(target_func, Path(retrain_dir), test_dataloader, model)
    values = -found.double().mean(1)
    return values.to(found.dtype), torch.stack([torch.from_numpy(ids) for ids in kept])


def lds_targets(
    target_func: TargetFunc, folder: Path, loader: Loader, model: nn.Module | None
) -> tuple[Tensor, list[NDArray[np.int64]]]:
    """Return the target under each run of each subset, (subsets, runs, test), and the ids kept.

    Arguments and errors are those of :func:`calculate_lds_ground_truth`.
    """
    metadata = read_metadata(folder, "lds")
    subsets, runs = range(metadata["num_subsets"]), range(metadata["num_runs_per_subset"])
    files = [lds_file(folder, subset, run) for subset in subsets for run in runs]
    check_there(folder, files, "retrain_lds")
    kept = [read_ids(indices_file(folder, subset)) for subset in subsets]
    sizes = [len(ids) for ids in kept]
    odd = next((subset for subset in subsets if sizes[subset] != sizes[0]), None)
    if odd is not None:
        raise BankError(
            f"{indices_file(folder, odd)}: {sizes[odd]} ids, but subset 0 has {sizes[0]}; one of "
            "the two has been altered"
        )
    values = torch.stack([*targets_under(target_func, files, loader, model)])
    return values.view(len(subsets), len(runs), -1), kept


def calculate_loo_ground_truth(
    target_func: TargetFunc,
    retrain_dir: str | PathLike[str],
    test_dataloader: Loader,
    *,
    model: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ground truth of leave-one-out (arXiv 1703.04730) from a bank.

    Args:
        target_func: ``target_func(checkpoint, test_dataloader)`` returns the target of every test
            sample, e.g. its loss, (test,). ``checkpoint`` is the path of a state dict, whose
            contents have been verified.
        retrain_dir: The folder made by ``retrain_loo``.
        test_dataloader: Handed to ``target_func``; it must not shuffle.
        model: A module of the architecture. If given, ``target_func`` gets a copy of it with the
            weights loaded, on the device it is on, in place of the path.

    Returns:
        The target under each model, (num_models, test), large where the sample left out was
        helpful; minus the target of the full model, which correlations do not ask for, it is the
        effect of leaving it out. And the ids left out, (num_models,), int64, ascending.

    Raises:
        BankError: The bank is not whole or a file in it damaged (the message names it), or
            ``target_func`` returned no value a test sample.
    """
    folder = Path(retrain_dir)
    indices = read_metadata(folder, "loo")["indices"]
    check_there(folder, [loo_file(folder, index) for index in indices], "retrain_loo")
    return _by_sample(target_func, folder, indices, test_dataloader, model)


def convergence(folder: Path, index: int) -> dict[str, Any]:
    """Return the record of how near a sample's PBRF came to its optimum."""
    path = convergence_file(folder, index)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "converged": bool(found["converged"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BankError(f"{path}: it cannot be read ({error!r})") from error


def calculate_pbrf_ground_truth(
    target_func: TargetFunc,
    retrain_dir: str | PathLike[str],
    test_dataloader: Loader,
    *,
    model: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ground truth of PBRF (arXiv 2209.05364) from a bank.

    Args:
        target_func: ``target_func(checkpoint, test_dataloader)`` returns the target of every test
            sample, e.g. its loss, (test,). ``checkpoint`` is the path of a state dict, whose
            contents have been verified. Its parameters are float64: a model in float32 rounds away
            part of what one sample of thousands changes.
        retrain_dir: The folder made by ``retrain_pbrf``.
        test_dataloader: Handed to ``target_func``; it must not shuffle.
        model: A module of the architecture. If given, ``target_func`` gets a copy of it with the
            weights loaded, on the device and in the precision it is in, in place of the path.

    Returns:
        The target under each model, (samples, test), large where the sample taken out was helpful,
        as for leave-one-out. And the ids of the samples, (samples,), int64, ascending. Samples that
        have not converged are in neither; a warning names them.

    Raises:
        BankError: The bank is not whole or a file in it damaged (the message names it), no sample
            has converged, or ``target_func`` returned no value a test sample.
    """
    folder = Path(retrain_dir)
    asked = read_metadata(folder, "pbrf")["indices"]
    check_there(folder, [loo_file(folder, index) for index in asked], "retrain_pbrf")
    indices = [index for index in asked if convergence(folder, index)["converged"]]
    missed = sorted(set(asked) - set(indices))
    if missed:
        warnings.warn(
            f"{folder}: {len(missed)} of {len(asked)} samples have not converged and are left out: "
            f"{', '.join(map(str, missed))}",
            stacklevel=2,
        )
    if not indices:
        raise BankError(f"{folder}: no sample has converged; ask retrain_pbrf for more steps")
    return _by_sample(target_func, folder, indices, test_dataloader, model)
