"""Stacks of any module, through ``torch.func``.

The parameters gain a model dimension and the training step is mapped over it.
In a step the models are grouped by how many samples they see, and each group is one ``vmap`` over
compact batches, so that layers whose outputs depend on the whole batch (batch norm) see exactly
what they would see alone. Batch norm keeps its running statistics out of place, because ``vmap``
does not allow them to be updated in place under ``grad``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

from leaveout.config import Recipe
from leaveout.training.dropout import MaskStreams, replace_modules, use_streams
from leaveout.training.losses import sample_losses
from leaveout.training.precision import forward_precision
from leaveout.training.transfer import to_device
from leaveout.training.trials import Index, Trial, padded_rows

State = dict[str, Tensor]


class FunctionalBatchNorm(nn.Module):
    """Batch norm that returns new running statistics instead of updating them in place.

    Attributes:
        updated: After a training forward pass, (running_mean, running_var, num_batches_tracked).
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Take over a batch norm that tracks running statistics."""
        super().__init__()
        if norm.running_mean is None or norm.momentum is None or norm.weight is None:
            raise ValueError(
                "batch norm without running statistics, with cumulative averages or not affine"
            )
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.momentum, self.eps = norm.momentum, norm.eps
        self.updated: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Normalise by the batch's statistics while training, by the running ones otherwise."""
        mean, var = self.running_mean, self.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        if not self.training:
            return functional.batch_norm(
                values, mean, var, self.weight, self.bias, False, self.momentum, self.eps
            )
        rounded, values = values.dtype, values.to(mean.dtype)  # statistics are never in bfloat16
        others = [d for d in range(values.dim()) if d != 1]
        batch_mean = values.mean(others)
        batch_var = values.var(others, unbiased=False)
        count = values.numel() / values.shape[1]
        keep = 1 - self.momentum
        assert isinstance(self.num_batches_tracked, Tensor)
        self.updated = (
            keep * mean + self.momentum * batch_mean.detach(),
            keep * var + self.momentum * batch_var.detach() * count / (count - 1),
            self.num_batches_tracked + 1,
        )
        shape = [1, -1, *[1] * (values.dim() - 2)]
        normal = (values - batch_mean.view(shape)) * torch.rsqrt(batch_var.view(shape) + self.eps)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(rounded)


def _functional_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return FunctionalBatchNorm(module)
    return None


def stack_states(modules: Sequence[nn.Module]) -> State:
    """Stack the parameters and buffers of equal modules, (models, ...)."""
    params, buffers = stack_module_state(list(modules))
    return {name: value.detach().clone() for name, value in {**params, **buffers}.items()}


def functional_outputs(module: nn.Module, state: State, inputs: Tensor) -> Tensor:
    """Return the outputs of every model on the same samples, in evaluation mode.

    Args:
        module: The architecture.
        state: Stacked parameters and buffers, (models, ...).
        inputs: (samples, ...).

    Returns:
        (models, samples, outputs).
    """
    module = copy.deepcopy(module)
    replace_modules(module, _functional_norm)
    module.eval()
    outputs: Tensor = vmap(lambda s: functional_call(module, s, (inputs,)))(state)
    return outputs


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
    trials: Sequence[Trial], n: int, epoch: int, batch_size: int, device: torch.device
) -> list[tuple[Index, list[_Group]]]:
    """Return an epoch's steps: samples in each model's row, holes included, and the groups.

    All indices go to the device as one array: a copy for each would keep it waiting.
    """
    rows = padded_rows(trials, n, epoch, batch_size)
    lengths = (rows != -2).sum(axis=2)
    steps = [_groups(rows[:, step]) for step in range(rows.shape[1])]
    arrays = [array for groups in steps for group in groups for array in group]
    if not arrays:
        return []
    there = to_device(np.concatenate([array.reshape(-1) for array in arrays]), device)
    parts = iter(there.split([array.size for array in arrays]))
    return [
        (
            lengths[:, step],
            [_Group(*(next(parts).view(array.shape) for array in group)) for group in groups],
        )
        for step, groups in enumerate(steps)
    ]


def train_functional(
    module: nn.Module,
    state: State,
    trials: Sequence[Trial],
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    snapshot_epochs: Collection[int] = (),
) -> list[State]:
    """Train many models of any architecture at once.

    Args:
        module: The architecture; copied, not changed.
        state: Initial parameters and buffers, stacked, (models, ...); trained in place.
        trials: One a model.
        inputs: Training inputs, (samples, ...).
        labels: Training labels, (samples,).
        recipe: Optimiser and sizes.
        snapshot_epochs: After which epochs, counted from 1, the state is kept; the last epoch
            always is.

    Returns:
        Stacked states at ``snapshot_epochs`` and at the end, in order.
    """
    module = copy.deepcopy(module)
    replace_modules(module, _functional_norm)
    dropouts = use_streams(module, inputs[:1])
    layers = [(layer.unit_shape, layer.probability) for layer in dropouts]
    norms = {n: m for n, m in module.named_modules() if isinstance(m, FunctionalBatchNorm)}
    streams = MaskStreams([trial.dropout_generator() for trial in trials], layers, inputs.device)
    names = [name for name, _ in module.named_parameters()]
    momenta = {name: torch.zeros_like(state[name]) for name in names}
    module.train()

    def loss(
        params: State, buffers: State, x: Tensor, y: Tensor, masks: list[Tensor]
    ) -> tuple[Tensor, State]:
        for layer, mask in zip(dropouts, masks, strict=True):
            layer.mask = mask
        with forward_precision(recipe, inputs.device):
            outputs = functional_call(module, {**params, **buffers}, (x,))
        value = sample_losses(outputs.to(inputs.dtype), y).mean()
        new = {}
        for name, norm in norms.items():
            assert norm.updated is not None
            for buffer, tensor in zip(
                ("running_mean", "running_var", "num_batches_tracked"), norm.updated, strict=True
            ):
                new[f"{name}.{buffer}"] = tensor
            norm.updated = None
        return value, new

    gradients = vmap(grad(loss, has_aux=True))
    n, kept_epochs, snapshots = len(inputs), {*snapshot_epochs, recipe.epochs}, []
    for epoch in range(recipe.epochs):
        for lengths, groups in _epoch(trials, n, epoch, recipe.batch_size, inputs.device):
            masks = streams.draw(lengths, recipe.batch_size) if layers else []
            for each in groups:
                which = each.models
                group_masks = [mask[which[:, None], each.places] for mask in masks]
                every = len(which) == len(trials)
                group = state if every else {k: v[which] for k, v in state.items()}
                params = {name: group[name] for name in names}
                buffers = {k: v for k, v in group.items() if k not in params}
                found, updated = gradients(
                    params, buffers, inputs[each.batch], labels[each.batch], group_masks
                )
                for name in names:
                    buffer = momenta[name] if every else momenta[name][which]
                    step_by = found[name] + recipe.weight_decay * params[name]
                    buffer = buffer.mul_(recipe.momentum).add_(step_by)
                    params[name].sub_(buffer, alpha=recipe.learning_rate)
                    if not every:
                        momenta[name][which] = buffer
                        state[name][which] = params[name]
                for name, tensor in updated.items():
                    state[name][which] = tensor
        if epoch + 1 in kept_epochs:
            snapshots.append({name: value.clone() for name, value in state.items()})
    return snapshots
