"""Factored gradients of linear layers.

The gradient of one sample is d a', with the layer's input a and output gradient d. So the inner
product of two samples' gradients is <a_i, a_j><d_i, d_j> a layer (plus <d_i, d_j> for the bias),
and no gradient needs to be formed: n_train x n_test products cost two small matrix products instead
of one over all parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leaveout.gradients.alone import gradients_alone
from leaveout.problem.call import call, call_with, parts_of, trained
from leaveout.problem.objective import Losses
from leaveout.problem.samples import Samples
from leaveout.training.stack import parse

State = Mapping[str, Tensor]

AGREES = 64
"""Rounding errors by which a gradient of ours may differ from autograd's, relative to its size."""


@dataclass(frozen=True)
class Factor:
    """One linear layer's gradients of many samples.

    Attributes:
        name: The layer's name in the module.
        inputs: a, (samples, in).
        deltas: d, the gradient of each sample's loss (or of another function) in the layer's
            outputs, (samples, out).
        bias: Whether the layer has a bias.
    """

    name: str
    inputs: Tensor
    deltas: Tensor
    bias: bool


def is_linear(module: nn.Module) -> bool:
    """Return whether all trained parameters belong to linear layers, each to one: they factor."""
    owned = [
        id(p)
        for m in module.modules()
        if type(m) is nn.Linear  # a subclass may do something else with its weight
        for p in m.parameters()
    ]
    return len(owned) == len({*owned}) and {*owned} == {id(p) for p in trained(module).values()}


def gradient_factors(
    module: nn.Module, state: State, samples: Samples, function: Losses | None = None
) -> list[Factor] | None:
    """Return the factors of every sample's gradient.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose objective is differentiated.
        function: What is differentiated instead.

    Returns:
        One factor a layer, in the order of ``module.named_parameters()``; None if the module has
        other parameters than those of linear layers used once on (samples, features) inputs.
    """
    if not is_linear(module):
        return None
    asked = function or samples.objective.losses
    layers = {name: m for name, m in module.named_modules() if type(m) is nn.Linear}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    calls: list[str] = []
    hooks = []
    for name, layer in layers.items():

        def note(_: nn.Module, args: tuple[Tensor], out: Tensor, name: str = name) -> Tensor:
            calls.append(name)
            # when the first layer's weights need no gradient, its output must start the graph
            tracked = out if out.requires_grad else out.requires_grad_()
            seen[name] = (args[0].detach(), tracked)
            return tracked.clone()  # what follows may work in place, as ReLU(inplace=True) does

        hooks.append(layer.register_forward_hook(note))
    try:
        frozen = {name: value.detach() for name, value in state.items()}
        with torch.enable_grad():
            total = asked(call_with(module, frozen, samples.inputs), samples.targets).sum()
            if sorted(calls) != sorted(layers):
                return None
            if any(a.dim() != 2 or len(a) != len(samples) for a, _ in seen.values()):
                return None
            deltas = torch.autograd.grad(total, [seen[name][1] for name in layers])
    finally:
        for hook in hooks:
            hook.remove()
    found = [
        Factor(name, seen[name][0], delta, layers[name].bias is not None)
        for name, delta in zip(layers, deltas, strict=True)
    ]
    if parse(module) is None and not _right(module, state, samples, asked, found):
        return None
    return found


def _right(
    module: nn.Module, state: State, samples: Samples, asked: Losses, factors: list[Factor]
) -> bool:
    """Compare one sample's gradient with autograd's: a weight may be used past its layer, too."""
    names, fixed = parts_of(module, state)
    one = samples[:1]

    def value(own: nn.Module, sample: Samples) -> Tensor:
        return asked(call(own, sample.inputs), sample.targets)[0]

    right = torch.cat(gradients_alone(module, names, fixed, value, one))
    mine = form([Factor(f.name, f.inputs[:1], f.deltas[:1], f.bias) for f in factors])[0]
    return agree(mine, right)


def agree(mine: Tensor, right: Tensor) -> bool:
    """Return whether two gradients are the same to rounding; what is not finite tells nothing."""
    if mine.shape != right.shape:
        return False
    if not right.isfinite().all():
        return True
    tolerance = AGREES * torch.finfo(right.dtype).eps * max(1.0, right.numel() ** 0.5 / 8)
    return bool((mine - right).norm() <= tolerance * right.norm())


def factored_dots(left: list[Factor], right: list[Factor]) -> Tensor:
    """Return all inner products of two sets of gradients, (left samples, right samples)."""
    total = left[0].inputs.new_zeros(len(left[0].inputs), len(right[0].inputs))
    for a, b in zip(left, right, strict=True):
        products = a.inputs @ b.inputs.T
        if a.bias:
            products += 1
        total += products.mul_(a.deltas @ b.deltas.T)
    return total


def factored_norms(factors: list[Factor]) -> Tensor:
    """Return the Euclidean norm of each sample's gradient, (samples,)."""
    squares = sum(
        (f.inputs.square().sum(1) + (1 if f.bias else 0)) * f.deltas.square().sum(1)
        for f in factors
    )
    assert isinstance(squares, Tensor)
    return squares.sqrt()


def form(factors: list[Factor]) -> Tensor:
    """Form the gradients, (samples, parameters), in the order of ``named_parameters()``."""
    parts = []
    for f in factors:
        parts.append((f.deltas[:, :, None] * f.inputs[:, None, :]).flatten(1))
        if f.bias:
            parts.append(f.deltas)
    return torch.cat(parts, dim=1)
