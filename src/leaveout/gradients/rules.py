"""What a layer's inputs and output gradients say of its parameters' gradients, by exact type.

A rule holds for a layer that is called once, with samples in the first dimension, and whose weight
is used nowhere else. What has no rule, a subclass included, is differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.gradients.factors import Factor

UNFOLDED_BYTES = 16 << 20
"""Patches of a convolution's inputs held at once, at most; small, to stay in cache."""


@dataclass(frozen=True)
class Formed:
    """Gradients written out.

    Attributes:
        name: The layer, or the parameter.
        values: (samples, numbers).
    """

    name: str
    values: Tensor


Part = Factor | Formed

Rule = Callable[[Any, Tensor, Tensor], Tensor]
"""From layer, inputs (samples, ...) and output gradients, those of the weight, (samples, ...)."""


def rule_of(layer: nn.Module) -> Rule | None:
    """Return the rule of a layer in evaluation mode, or None where there is none."""
    if isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq):
        return None
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None:
        return None
    return RULES.get(type(layer))


def part_of(name: str, layer: Any, inputs: Tensor, deltas: Tensor, bias: bool) -> Part:
    """Return a layer's gradients.

    Args:
        name: The layer's name.
        layer: One that has a rule.
        inputs: What it saw, (samples, ...).
        deltas: The gradient of each sample's number in the layer's outputs.
        bias: Whether its bias counts; its gradient comes after the weight's.
    """
    if type(layer) is nn.Linear and inputs.dim() == 2:
        return Factor(name, inputs, deltas, bias)
    weight = RULES[type(layer)](layer, inputs, deltas).flatten(1)
    if not bias:
        return Formed(name, weight)
    # the bias is along the last dimension of a linear layer, of all that are normed, or channels
    own = layer.bias.dim() if isinstance(layer, nn.LayerNorm) else 1
    last = isinstance(layer, nn.Linear | nn.LayerNorm)
    summed = (
        deltas.reshape(len(deltas), -1, *deltas.shape[deltas.dim() - own :]).sum(1)
        if last
        else deltas.reshape(len(deltas), deltas.shape[1], -1).sum(2)
    )
    return Formed(name, torch.cat([weight, summed.flatten(1)], dim=1))


def _linear(_: nn.Linear, inputs: Tensor, deltas: Tensor) -> Tensor:
    if inputs.dim() == 2:
        return deltas[:, :, None] * inputs[:, None, :]
    return deltas.flatten(1, -2).mT @ inputs.flatten(1, -2)


def _convolved(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor, deltas: Tensor) -> Tensor:
    padding: Any = layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.kernel_size)
    if isinstance(layer, nn.Conv1d):  # an image of one row
        inputs, deltas = inputs[:, :, None], deltas[:, :, None]
    size, dilation, stride, padding = (
        _image(value, none)
        for value, none in (
            (layer.kernel_size, 1),
            (layer.dilation, 1),
            (layer.stride, 1),
            (padding, 0),
        )
    )
    d = deltas.flatten(2).unflatten(1, (layer.groups, -1))  # (samples, groups, out, places)
    patch = layer.in_channels // layer.groups * size[0] * size[1]
    held = max(1, UNFOLDED_BYTES // (layer.groups * patch * d.shape[3] * d.element_size()))
    formed: Tensor = d.new_empty(len(d), layer.out_channels, patch)
    for start in range(0, len(d), held):
        part = slice(start, start + held)
        a = functional.unfold(inputs[part], size, dilation, padding, stride)
        a = a.unflatten(1, (layer.groups, patch))
        formed[part] = (d[part] @ a.mT).flatten(1, 2)
    return formed


def _image(value: tuple[int, ...], none: int) -> tuple[int, ...]:
    return value if len(value) == 2 else (none, *value)


def _embedding(layer: nn.Embedding, ids: Tensor, deltas: Tensor) -> Tensor:
    n, ids = len(ids), ids.reshape(len(ids), -1)
    d = deltas.reshape(n, ids.shape[1], -1)
    if layer.padding_idx is not None:  # is never trained
        d = d * (ids != layer.padding_idx)[..., None]
    formed = d.new_zeros(n, layer.num_embeddings, d.shape[2])
    return formed.scatter_add_(1, ids[..., None].expand_as(d), d)


def _over_last(normed: Tensor, deltas: Tensor, shape: tuple[int, ...]) -> Tensor:
    return (normed * deltas).reshape(len(deltas), -1, *shape).sum(1)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, deltas: Tensor) -> Tensor:
    normed = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _over_last(normed, deltas, layer.normalized_shape)


def _rms_norm(layer: nn.RMSNorm, inputs: Tensor, deltas: Tensor) -> Tensor:
    normed = functional.rms_norm(inputs, [*layer.normalized_shape], eps=layer.eps)
    return _over_last(normed, deltas, layer.normalized_shape)


def _over_places(normed: Tensor, deltas: Tensor) -> Tensor:
    return (normed * deltas).reshape(len(deltas), deltas.shape[1], -1).sum(2)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, deltas: Tensor) -> Tensor:
    normed = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return _over_places(normed, deltas)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor, deltas: Tensor) -> Tensor:
    normed = functional.batch_norm(
        inputs, layer.running_mean, layer.running_var, training=False, eps=layer.eps
    )
    return _over_places(normed, deltas)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolved,
    nn.Conv2d: _convolved,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
