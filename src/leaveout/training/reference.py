"""One model at a time: the plain loop that every faster path is tested against.

It uses torch's own modules and optimisers; only the masks of dropout are ours, see
:mod:`leaveout.training.dropout`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.problem.call import call, numbers, state_of
from leaveout.problem.samples import Samples
from leaveout.problem.trees import floating
from leaveout.training.dropout import Site, draw_masks, dropout_sites, dropped, refuse_draws
from leaveout.training.optimisers import (
    decay_of,
    rate,
    steps_an_epoch,
    total_epochs,
    total_steps,
)
from leaveout.training.precision import forward_precision
from leaveout.training.trials import Index, Trial, epoch_rows

State = dict[str, Tensor]


def train_one(
    module: nn.Module,
    trial: Trial,
    samples: Samples,
    recipe: Recipe,
    snapshot_epochs: Collection[int] = (),
) -> list[State]:
    """Train one model.

    Args:
        module: Freshly initialised, on the device of the samples; trained in place.
        trial: Which samples, order and dropout masks.
        samples: Training samples with the objective that is minimised.
        recipe: Optimiser and sizes.
        snapshot_epochs: After which epochs, counted from 1, the state is kept; after which steps,
            where the recipe counts iterations. The end is always kept.

    Returns:
        State dicts at ``snapshot_epochs`` and at the end, in order.

    Raises:
        LeaveoutError: The model draws from a global generator, so no run of it can be repeated.
    """
    objective, n = samples.objective, len(samples)
    dtype = numbers(module).dtype
    sites = dropout_sites(module, samples[:1].inputs)
    stream = trial.dropout_generator()
    optimizer = torch_optimizer(module, recipe)
    steps, epochs = total_steps(recipe, trial.size(n)), total_epochs(recipe, trial.size(n))
    kept = {*snapshot_epochs, recipe.iterations or epochs}
    snapshots = []
    module.train()
    with refuse_draws():
        for epoch in range(epochs):
            done = epoch * steps_an_epoch(recipe, trial.size(n))
            order = epoch_rows(trial, n, epoch, recipe.batch_size)[: steps - done]
            for number, batch, masks in draw_steps(order, stream, sites, samples.device):
                for group in optimizer.param_groups:
                    group["lr"] = rate(recipe, done + number, steps)
                optimizer.zero_grad()
                some = samples[batch]
                with dropped(sites, masks):
                    with forward_precision(recipe, samples.device):
                        outputs = call(module, some.inputs)
                    objective.batch_loss(floating(outputs, dtype), some.targets).backward()
                if recipe.clip is not None:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
                optimizer.step()
                if recipe.iterations and done + number + 1 in kept:
                    snapshots.append(_state(module))
            if not recipe.iterations and epoch + 1 in kept:
                snapshots.append(_state(module))
    return snapshots


def _state(module: nn.Module) -> State:
    """Copy parameters and buffers: contiguous, whatever memory format the module is trained in."""
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in state_of(module).items()
    }


def same_step(before: Tensor, found: Tensor, known: Tensor) -> bool:
    """Return whether two values after a step differ by rounding only, beside what it moved."""
    if not known.is_floating_point():
        return torch.equal(found, known)
    if not known.numel():
        return True
    rounding = 1e-3 * (known - before).abs().max() + 1e-5 * known.abs().max()
    return bool((found - known).abs().max() <= rounding)


def torch_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return torch's own optimiser of a recipe, for the parameters that are trained."""
    by_decay: dict[float, list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            by_decay.setdefault(decay_of(recipe, parameter), []).append(parameter)
    groups = [{"params": some, "weight_decay": decay} for decay, some in by_decay.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)


def draw_steps(
    rows: Index, stream: np.random.Generator, sites: Sequence[Site], device: torch.device
) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
    """Draw the masks of one epoch's steps.

    Masks are drawn for holes, too, so that a removed sample changes nobody else's masks.

    Args:
        rows: From :func:`leaveout.training.trials.epoch_rows`.
        stream: The trial's dropout generator.
        sites: From :func:`leaveout.training.dropout.dropout_sites`.
        device: Where the samples are.

    Yields:
        Which row it is, positions of the step's samples, (samples,), and for each site the
        units kept, (samples, *units). Where the removed sample was alone in its batch there is
        no step.
    """
    for number, row in enumerate(rows):
        places = row[row != -2]
        stays = places != -1
        masks = draw_masks(stream, len(places), sites)
        if stays.any():
            yield (
                number,
                torch.from_numpy(places[stays]).to(device),
                [torch.from_numpy(mask[stays]).to(device) for mask in masks],
            )
