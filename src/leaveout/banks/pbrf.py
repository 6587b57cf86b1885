"""Checkpoints of a user's own model at the optima of the proximal Bregman objective."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import default_collate

from leaveout.banks.layout import (
    BankError,
    convergence_file,
    full_file,
    is_whole,
    loo_file,
    open_bank,
    write_state,
)
from leaveout.banks.loaders import Loader, find_samples
from leaveout.banks.retrain import grow_indices, wanted_ids
from leaveout.errors import LeaveoutError
from leaveout.problem.call import call, numbers
from leaveout.problem.samples import Samples
from leaveout.problem.torch_losses import Given, objective_of
from leaveout.retraining.proximal import Proximal, Solver, solve_proximal
from leaveout.store.artefacts import atomic_path
from leaveout.training.progress import progress_bar


def _state_sha256(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().contiguous()
        sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        sha.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _collated(loader: Loader, positions: NDArray[np.int64]) -> tuple[Any, Any]:
    """Return the inputs and targets of some samples, collated as the loader does."""
    collate = default_collate if loader.batch_sampler is None else loader.collate_fn
    batch = collate([loader.dataset[int(position)] for position in positions])
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise BankError(
            "the loader's batches must be pairs of inputs and targets, or several inputs and, "
            f"last, targets; got {type(batch).__name__}"
        )
    *inputs, targets = batch
    return inputs[0] if len(inputs) == 1 else tuple(inputs), targets


def _name_of(loss: Given) -> str:
    """Return what a loss is called in the bank's record."""
    if isinstance(loss, nn.Module):
        weights = {k: v.tolist() for k, v in loss.state_dict().items()}
        named = {k: v for k, v in vars(loss).items() if isinstance(v, str | int | float)}
        return f"{type(loss).__name__} {json.dumps([named, weights], sort_keys=True)}"
    return loss if isinstance(loss, str) else objective_of(loss).name


def _write_point(folder: Path, index: int, found: Proximal, row: int) -> None:
    record = {
        "converged": bool(found.converged[row]),
        "gradient_norm": float(found.gradient_norm[row]),
        "initial_norm": float(found.initial_norm[row]),
        "steps": int(found.steps[row]),
    }
    # first, so that where there is a checkpoint there is its record
    with atomic_path(convergence_file(folder, index)) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_state(
        loo_file(folder, index), {name: value[row].clone() for name, value in found.state.items()}
    )


def retrain_pbrf(
    model: nn.Module,
    dataloader: Loader,
    path: str | PathLike[str],
    indices: Iterable[int] | None = None,
    *,
    damping: float = 1e-3,
    epsilon: float | None = None,
    loss: Given = "cross_entropy",
    solver: Solver = "newton_cg",
    steps: int = 50,
    tolerance: float = 1e-4,
    learning_rate: float = 0.01,
) -> None:
    """Move a trained model to where a sample no longer counts (PBRF, arXiv 2209.05364, 2308.03296).

    For each sample, the optimum of the proximal Bregman objective: the model's outputs on all
    samples are held by a Bregman divergence, its parameters by a distance, and the sample's loss is
    taken out. There is no chance in it. What is already there and whole is not solved again; calls
    for different ``indices`` may run in any order, in any number of processes.

    Args:
        model: The trained model, theta_s; neither it nor its mode is changed. Dropout is off, batch
            norm in evaluation mode. It is solved on the device it is on.
        dataloader: Loader of all training samples, in pairs of inputs and targets: tensors, or
            trees of them, with a row a sample. All are held in memory.
        path: The folder of the bank: ``metadata.yml``, ``ids.txt``, ``model_weights.pt`` (theta_s),
            and for each sample ``index_ID/model_weights.pt``, a state dict on the CPU, parameters
            in float64, and ``index_ID/convergence.json``: the norm of the objective's gradient at
            the end and at theta_s, the steps taken, and whether the sample has converged.
        indices: Ids of the samples, by default all of the loader's.
        damping: lambda, the weight of half the squared distance from theta_s; positive.
        epsilon: Change of the sample's weight, where all weights are 1 / samples; by default minus
            that, which removes it.
        loss: What ``model`` was trained on: ``cross_entropy``, ``squared_error`` (half of it),
            ``binary_cross_entropy`` or another of our objectives by name; an objective; or a torch
            loss module with any of its options. It needs a curvature in the outputs.
        solver: ``newton_cg``, or plain full-batch steps of ``sgd`` or ``adam``.
        steps: Steps at most.
        tolerance: A sample has converged when the gradient's norm has fallen to this part of what
            it was at theta_s.
        learning_rate: Of the plain steps.

    Raises:
        BankError: An index is no id of the loader's, the targets do not fit the loss, or the folder
            holds a bank made by a different call; the message says what differs.
        NotComputableError: The loss states no curvature.
    """
    if not damping > 0:
        raise BankError(f"damping is {damping}; it must be positive")
    if solver not in get_args(Solver):
        raise BankError(f"solver is {solver!r}; it can be {', '.join(get_args(Solver))}")
    try:
        objective = objective_of(loss)
    except LeaveoutError as error:
        raise BankError(str(error)) from error
    samples = find_samples(dataloader)
    asked = wanted_ids(indices, samples)
    if epsilon is None:
        epsilon = -1 / len(samples.ids)
    made_by = {
        "mode": "pbrf",
        "data_length": len(samples.ids),
        "model": type(model).__name__,
        "model_sha256": _state_sha256(model),
        "epsilon": float(epsilon),
        "damping": float(damping),
        "loss": _name_of(loss),
        "solver": solver,
        "steps": int(steps),
        "tolerance": float(tolerance),
        **({} if solver == "newton_cg" else {"learning_rate": float(learning_rate)}),
    }
    folder = Path(path)
    open_bank(folder, made_by, samples.ids, grow_indices(asked))
    if not is_whole(full_file(folder)):
        write_state(full_file(folder), model.state_dict())
    todo = [
        index
        for index in asked
        if not (convergence_file(folder, index).exists() and is_whole(loo_file(folder, index)))
    ]
    if not todo:
        return
    inputs, targets = _collated(dataloader, samples.positions)
    there = Samples(inputs, targets, objective).to(numbers(model).device)
    try:
        there = there.asked(objective.averaged(targets))
        with torch.no_grad():
            there[:1].losses(call(copy.deepcopy(model).eval(), there[:1].inputs))
    except (LeaveoutError, RuntimeError, TypeError, IndexError) as error:
        raise BankError(
            f"loss: {_name_of(loss)} can't be taken of the model's outputs and these targets "
            f"({error}). Name the loss that the model was trained on: loss=..."
        ) from error
    points = np.searchsorted(samples.ids, todo).tolist()
    missed = []
    with progress_bar(len(todo), "PBRF points", "point") as bar:
        for solved, found in solve_proximal(
            model,
            there,
            points,
            epsilon=epsilon,
            damping=damping,
            solver=solver,
            steps=steps,
            tolerance=tolerance,
            learning_rate=learning_rate,
            progress=bar.update,
        ):
            for row, point in enumerate(solved):
                index = int(samples.ids[point])
                _write_point(folder, index, found, row)
                if not found.converged[row]:
                    missed.append(index)
    if missed:
        warnings.warn(
            f"{len(missed)} of {len(todo)} samples have not converged in {steps} steps and will "
            f"not be counted: {', '.join(map(str, missed))}",
            stacklevel=2,
        )
