"""Stacks of any module, through ``torch.func``.

The parameters gain a model dimension and the training step is mapped over it.
In a step the models are grouped by how many samples they see, and each group is one ``vmap`` over
compact batches, so that layers whose outputs depend on the whole batch (batch norm) see exactly
what they would see alone. Batch norm keeps its running statistics out of place, because ``vmap``
does not allow them to be updated in place under ``grad``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, stack_module_state, vmap

from leaveout.config import Recipe
from leaveout.problem.call import call_with, numbers, slow_paths, state_of
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, floating, join, rows, tree_map
from leaveout.training.dropout import MaskStreams, Site, dropout_sites, dropped
from leaveout.training.memory import is_out_of_memory
from leaveout.training.optimisers import (
    decays,
    new_slots,
    rate,
    step,
    total_epochs,
    total_steps,
)
from leaveout.training.precision import forward_precision
from leaveout.training.transfer import to_device
from leaveout.training.trials import Index, Trial, padded_rows

State = dict[str, Tensor]


class FunctionalBatchNorm(nn.Module):
    """Batch norm that returns new running statistics instead of updating them in place.

    Attributes:
        updated: After training forward passes, (running_mean, running_var, num_batches_tracked);
            a further pass goes on from them.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Take over a batch norm, in the mode it is in."""
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.momentum, self.eps = norm.momentum, norm.eps
        self.updated: tuple[Tensor, Tensor, Tensor] | None = None
        self.train(norm.training)

    def forward(self, values: Tensor) -> Tensor:
        """Normalise by the batch's statistics while training, by the running ones otherwise."""
        if self.running_mean is not None and not self.training:
            assert self.running_var is not None
            return self._normal(values, self.running_mean, self.running_var)
        others = [d for d in range(values.dim()) if d != 1]
        count = values.numel() // values.shape[1]
        if count == 1 and self.training:  # in torch's words
            raise ValueError(
                "Expected more than 1 value per channel when training, got input size "
                f"{values.shape}"
            )
        exact = values if self.weight is None else values.to(self.weight.dtype)
        mean, var = exact.mean(others), exact.var(others, unbiased=False)
        if self.running_mean is not None:
            self._update(mean.detach(), var.detach() * count / (count - 1))
        return self._normal(values, mean, var)

    def _update(self, mean: Tensor, var: Tensor) -> None:
        stored = (self.running_mean, self.running_var, self.num_batches_tracked)
        before: Any = self.updated or stored
        number = before[2] + 1
        share = 1 / number.to(mean) if self.momentum is None else self.momentum
        self.updated = (
            (1 - share) * before[0] + share * mean,
            (1 - share) * before[1] + share * var,
            number,
        )

    def _normal(self, values: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        shape = [1, -1, *[1] * (values.dim() - 2)]
        exact = values.to(mean.dtype)  # statistics are never in bfloat16
        normal = (exact - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
        if self.weight is not None and self.bias is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(values.dtype)

    def take(self, name: str) -> State:
        """Return the new statistics by their names in a model, and forget them.

        Args:
            name: Of the batch norm there.

        Returns:
            Nothing where no training pass went through it.
        """
        updated, self.updated = self.updated, None
        names = ("running_mean", "running_var", "num_batches_tracked")
        prefix = f"{name}." if name else ""
        return {f"{prefix}{k}": value for k, value in zip(names, updated or (), strict=False)}


def replace_modules(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace, in place, each submodule for which ``replace`` returns another.

    A submodule with several names, or places, is replaced by one other in all of them.
    """
    found = {id(child): replace(child) for child in module.modules() if child is not module}
    for parent in [*module.modules()]:
        for name, child in [*parent._modules.items()]:
            new = None if child is None else found[id(child)]
            if new is not None:
                setattr(parent, name, new)


def _functional_norm(module: nn.Module) -> nn.Module | None:
    return FunctionalBatchNorm(module) if is_batch_norm(module) else None


def is_batch_norm(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Return whether a module is torch's own batch norm, not a subclass that does other things."""
    return getattr(type(module), "forward", None) is nn.modules.batchnorm._BatchNorm.forward


def stack_states(modules: Sequence[nn.Module]) -> State:
    """Stack the states of equal modules, (models, ...)."""
    params, buffers = stack_module_state(list(modules))
    names = state_of(modules[0])  # buffers that no state has stay as they are built
    return {n: v.detach().clone() for n, v in {**params, **buffers}.items() if n in names}


def functional_outputs(module: nn.Module, state: State, inputs: Tree) -> Any:
    """Return the outputs of every model on the same samples, in evaluation mode.

    Args:
        module: The architecture.
        state: Stacked parameters and buffers, (models, ...).
        inputs: Of the samples.

    Returns:
        What the model returns, with a model dimension: (models, samples, ...).
    """
    module = copy.deepcopy(module)
    replace_modules(module, _functional_norm)
    module.eval()
    with slow_paths():
        try:
            return vmap(lambda s: call_with(module, s, inputs))(state)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
        # what torch.func can't map goes one by one
        models = [{name: value[k] for name, value in state.items()} for k in range(_models(state))]
        each = [call_with(module, one, inputs) for one in models]
    return join([tree_map(lambda value: value[None], outputs) for outputs in each])


def _models(state: State) -> int:
    return len(next(iter(state.values())))


@dataclass(frozen=True)
class _Group:
    """Models that see equally many samples in a step.

    Attributes:
        models: Which, (models,).
        batch: Their samples, (models, samples).
        places: Where these stand in their rows, (models, samples).
    """

    models: Tensor
    batch: Tensor
    places: Tensor


def _groups(rows: Index) -> list[tuple[Index, Index, Index]]:
    """Group the models of one step by how many samples they see, as :class:`_Group` says.

    Args:
        rows: (models, batch size), with holes and padding negative.
    """
    seen = rows >= 0
    counts = seen.sum(axis=1)
    found = []
    for count in np.unique(counts[counts > 0]):
        models = np.flatnonzero(counts == count)
        places = np.nonzero(seen[models])[1].reshape(len(models), count)
        found.append((models, rows[models[:, None], places], places))
    return found


def _epoch(
    trials: Sequence[Trial],
    n: int,
    epoch: int,
    batch_size: int,
    device: torch.device,
    left: Sequence[int] | None,
) -> list[tuple[Index, list[_Group]]]:
    """Return an epoch's steps: samples in each model's row, holes included, and the groups.

    All indices go to the device as one array: a copy for each would keep it waiting. Where a recipe
    counts iterations, there are at most as many steps as are left.
    """
    batches = padded_rows(trials, n, epoch, batch_size)
    if left is not None:
        batches = batches[:, : max(left)]
    lengths = (batches != -2).sum(axis=2)
    steps = [_groups(batches[:, number]) for number in range(batches.shape[1])]
    arrays = [array for groups in steps for group in groups for array in group]
    if not arrays:
        return []
    there = to_device(np.concatenate([array.reshape(-1) for array in arrays]), device)
    parts = iter(there.split([array.size for array in arrays]))
    return [
        (
            lengths[:, number],
            [_Group(*(next(parts).view(array.shape) for array in group)) for group in groups],
        )
        for number, groups in enumerate(steps)
    ]


def train_functional(
    module: nn.Module,
    state: State,
    trials: Sequence[Trial],
    samples: Samples,
    recipe: Recipe,
    snapshot_epochs: Collection[int] = (),
) -> list[State]:
    """Train many models of any architecture at once.

    Args:
        module: The architecture; copied, not changed.
        state: Initial parameters and buffers, stacked, (models, ...); trained in place.
        trials: One a model; of a recipe by iterations all with equally many samples.
        samples: Training samples with the objective that is minimised.
        recipe: Optimiser and sizes.
        snapshot_epochs: As for :func:`leaveout.training.reference.train_one`.

    Returns:
        Stacked states at ``snapshot_epochs`` and at the end, in order.
    """
    module = copy.deepcopy(module).train()  # before: a norm may be one that stays in evaluation
    replace_modules(module, _functional_norm)
    sites = dropout_sites(module, samples[:1].inputs)
    device, n = samples.device, len(samples)
    streams = MaskStreams([trial.dropout_generator() for trial in trials], sites, device)
    gradients = _gradients(module, sites, samples, recipe)
    move = _Move(module, state, trials, n, recipe, device)
    steps, epochs = move.steps, max(total_epochs(recipe, trial.size(n)) for trial in trials)
    kept, snapshots, done = {*snapshot_epochs, recipe.iterations or epochs}, [], 0
    for epoch in range(epochs):
        left = [most - done for most in steps] if recipe.iterations else None
        for lengths, groups in _epoch(trials, n, epoch, recipe.batch_size, device, left):
            masks = streams.draw(lengths, recipe.batch_size) if sites else []
            for each in groups:
                which = each.models
                group_masks = [mask[which[:, None], each.places] for mask in masks]
                every = len(which) == len(trials)
                group = state if every else {k: v[which] for k, v in state.items()}
                params = {name: group[name] for name in move.names}
                buffers = {k: v for k, v in group.items() if k not in params}
                some = rows((samples.inputs, samples.targets), each.batch)
                with slow_paths():
                    found, updated = gradients(params, buffers, *some, group_masks)
                move(params, found, which, every)
                for name, tensor in updated.items():
                    state[name][which] = tensor
            move.rows += lengths > 0
            done += 1
            if recipe.iterations and done in kept:
                snapshots.append({name: value.clone() for name, value in state.items()})
        if not recipe.iterations and epoch + 1 in kept:
            snapshots.append({name: value.clone() for name, value in state.items()})
    return snapshots


def _gradients(
    module: nn.Module, sites: Sequence[Site], samples: Samples, recipe: Recipe
) -> Callable[..., tuple[State, State]]:
    """Return what differentiates the batch losses of stacked models, and updates statistics."""
    norms = {n: m for n, m in module.named_modules() if isinstance(m, FunctionalBatchNorm)}
    dtype = numbers(module).dtype

    def loss(
        params: State, buffers: State, x: Tree, y: Tree, masks: list[Tensor]
    ) -> tuple[Tensor, State]:
        with dropped(sites, masks), forward_precision(recipe, samples.device):
            outputs = call_with(module, {**params, **buffers}, x)
        value = samples.objective.batch_loss(floating(outputs, dtype), y)
        new: State = {}
        for name, norm in norms.items():
            new |= norm.take(name)
        return value, new

    return vmap(grad(loss, has_aux=True))


class _Move:
    """Moves parameters of stacked models along their gradients, in place.

    Attributes:
        names: The parameters that are trained.
        steps: How many steps each model takes.
        rows: How many of its batches each model has gone through, (models,).
    """

    def __init__(
        self,
        module: nn.Module,
        state: State,
        trials: Sequence[Trial],
        samples: int,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.recipe, self.names, self.state = recipe, list(own), state
        self.steps = [total_steps(recipe, trial.size(samples)) for trial in trials]
        self.rows = np.zeros(len(trials), dtype=np.int64)
        self.taken = torch.zeros(len(trials), dtype=state[self.names[0]].dtype, device=device)
        self.slots = new_slots(recipe, {name: state[name] for name in self.names})
        decay = decays(recipe, own)
        self.decay = decay
        self.stacked = vmap(lambda p, g, s, t, r: step(recipe, p, g, s, t, r, decay))

    def __call__(self, params: State, gradients: State, which: Tensor, every: bool) -> None:
        """Take one step of some models."""
        recipe = self.recipe
        plain = recipe.optimizer == "sgd" and recipe.clip is None and not recipe.nesterov
        if plain and recipe.schedule == "constant" and not recipe.warmup:
            self._plain(params, gradients, which, every)
            return
        like, models = params[self.names[0]], which.tolist()
        rates = [rate(recipe, int(self.rows[m]), self.steps[m]) for m in models]
        slots = {
            slot: {name: value[which] for name, value in values.items()}
            for slot, values in self.slots.items()
        }
        moved, after = self.stacked(
            params,
            gradients,
            slots,
            self.taken[which],
            torch.tensor(rates, dtype=torch.float64).to(like),
        )
        for name in self.names:
            self.state[name][which] = moved[name]
            for slot, values in after.items():
                self.slots[slot][name][which] = values[name]
        self.taken[which] += 1

    def _plain(self, params: State, gradients: State, which: Tensor, every: bool) -> None:
        recipe, momenta = self.recipe, self.slots.get("velocity", {})
        for name in self.names:
            value = params[name]
            step_by = gradients[name] + self.decay[name] * value
            if recipe.momentum:
                buffer = momenta[name] if every else momenta[name][which]
                step_by = buffer.mul_(recipe.momentum).add_(step_by)
            value.sub_(step_by, alpha=recipe.learning_rate)
            if not every:
                self.state[name][which] = value
                if recipe.momentum:
                    momenta[name][which] = step_by
