"""Per-sample gradients of chosen parameters of any module, layer by layer.

A linear layer that sees one vector a sample keeps its gradients as factors (``factors``), which are
never multiplied out. Those of convolutions, and of linear layers on sequences, are formed from the
layer's inputs and output gradients, by one backward pass for all samples. All other parameters are
differentiated sample by sample. Nothing before the first chosen layer is differentiated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional

from leaveout.gradients.factors import Factor, agree, factored_dots, factored_norms, form
from leaveout.problem.trees import one_by_one, rows, tensors

UNFOLDED_BYTES = 16 << 20
"""Patches of a convolution's inputs held at once, at most; small, to stay in cache."""

Losses = Callable[[Any, Any], Tensor]
"""Outputs and targets of some samples in, the loss of each out, (samples,)."""


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


@dataclass
class Chosen:
    """Which parameters' gradients are computed, and how.

    Attributes:
        layers: Linear layers and convolutions whose inputs and output gradients are noted.
        bias: Those of them whose bias counts.
        rest: Parameters differentiated sample by sample.
    """

    layers: dict[str, nn.Linear | nn.Conv2d] = field(default_factory=dict)
    bias: set[str] = field(default_factory=set)
    rest: list[str] = field(default_factory=list)


def choose(model: nn.Module, parameters: Iterable[str]) -> Chosen:
    """Choose how to differentiate in some parameters.

    Args:
        model: The module.
        parameters: Names as in ``model.named_parameters()``.
    """
    wanted = list(parameters)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = Chosen()
    for name, module in model.named_modules():
        # a subclass may do something else with its weight, and a parametrised layer is one
        if type(module) not in (nn.Linear, nn.Conv2d):
            continue
        assert isinstance(module, nn.Linear | nn.Conv2d)
        weight, bias = (f"{name}.{p}".removeprefix(".") for p in ("weight", "bias"))
        own = [p for p in (weight, bias) if p in wanted]
        shared = any(uses[id(p)] > 1 for p in module.parameters())
        plain = isinstance(module, nn.Linear) or (
            module.groups == 1 and module.padding_mode == "zeros"
        )
        if weight not in own or shared or not plain:
            continue
        found.layers[name] = module
        found.bias |= {name} if bias in own else set()
        wanted = [p for p in wanted if p not in own]
    found.rest = wanted
    return found


def fit(model: nn.Module, chosen: Chosen, losses: Losses, batch: Sequence[Any]) -> int:
    """Try one sample and two, and differentiate layers used in odd ways sample by sample.

    Args:
        model: The module, in evaluation mode.
        chosen: From :func:`choose`; changed in place.
        losses: The loss of each sample.
        batch: Arguments of the model and, last, targets.

    Returns:
        How many numbers of a sample's gradient are formed.
    """
    for count in (1, 2):  # a layer whose first dimension is another one shows at one of them
        sample = rows(batch, slice(0, count))
        found = _noted(model, chosen, losses, sample)
        n = len(tensors(sample)[0])
        for name, (calls, inputs, _) in found.items():
            if calls == 1 and inputs.dim() > 1 and len(inputs) == n:
                continue
            _decline(chosen, name)
    for place in range(min(2, len(tensors(batch)[0]))):
        _compare(model, chosen, losses, rows(batch, slice(place, place + 1)))
    sample = rows(batch, slice(0, 1))
    parts = gradient_parts(model, chosen, losses, sample)
    return sum(part.values.numel() for part in parts if isinstance(part, Formed))


def _decline(chosen: Chosen, name: str) -> None:
    """Differentiate in a layer's parameters sample by sample."""
    del chosen.layers[name]
    chosen.rest.append(f"{name}.weight".removeprefix("."))
    if name in chosen.bias:
        chosen.rest.append(f"{name}.bias".removeprefix("."))


def _compare(model: nn.Module, chosen: Chosen, losses: Losses, sample: Sequence[Any]) -> None:
    """Compare one sample's gradients with autograd's own, and decline layers that differ.

    A weight can be used past its layer too, as ``functional.linear(h, layer.weight)`` does.
    """
    layers = Chosen(chosen.layers, chosen.bias)
    if not layers.layers:
        return
    known = dict(model.named_parameters())
    names = {
        name: [f"{name}.{key}".removeprefix(".") for key in ("weight", "bias")][
            : 1 + (name in chosen.bias)
        ]
        for name in layers.layers
    }
    own = {k: known[k].detach().requires_grad_() for found in names.values() for k in found}
    with torch.enable_grad():
        outputs = functional_call(model, own, tuple(sample[:-1]))
        right = torch.autograd.grad(
            losses(outputs, sample[-1]).sum(),
            [*own.values()],
            allow_unused=True,
            materialize_grads=True,
        )
    expected = dict(zip(own, right, strict=True))
    for part in gradient_parts(model, layers, losses, sample):
        mine = form([part])[0] if isinstance(part, Factor) else part.values[0]
        whole = torch.cat([expected[key].flatten() for key in names[part.name]])
        if not agree(mine, whole):
            _decline(chosen, part.name)


def gradient_parts(
    model: nn.Module, chosen: Chosen, losses: Losses, batch: Sequence[Any]
) -> list[Part]:
    """Differentiate each sample's loss in the chosen parameters.

    Args:
        model: The module, in evaluation mode, none of whose parameters requires a gradient.
        chosen: From :func:`choose`, after :func:`fit`.
        losses: The loss of each sample.
        batch: Arguments of the model and, last, targets.

    Returns:
        One part a layer or parameter.
    """
    parts: list[Part] = []
    for name, (_, inputs, deltas) in _noted(model, chosen, losses, batch).items():
        layer, bias = chosen.layers[name], name in chosen.bias
        if isinstance(layer, nn.Conv2d):
            parts.append(Formed(name, _convolved(layer, inputs, deltas, bias)))
        elif inputs.dim() == 2:
            parts.append(Factor(name, inputs, deltas, bias))
        else:
            d, a = deltas.flatten(1, -2), inputs.flatten(1, -2)
            formed = [(d.mT @ a).flatten(1)] + [d.sum(1)] * bias
            parts.append(Formed(name, torch.cat(formed, dim=1)))
    if chosen.rest:
        known = dict(model.named_parameters())
        parameters = {name: known[name].detach() for name in chosen.rest}

        def loss(values: dict[str, Tensor], sample: Sequence[Any]) -> Tensor:
            outputs = functional_call(model, values, tuple(sample[:-1]))
            return losses(outputs, sample[-1])[0]

        def gradient(sample: Sequence[Any]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                found = grad(loss)(parameters, sample)
            return tuple(found[name].flatten() for name in chosen.rest)

        found = one_by_one(gradient, batch)
        parts += [Formed(n, value) for n, value in zip(chosen.rest, found, strict=True)]
    return parts


def _noted(
    model: nn.Module, chosen: Chosen, losses: Losses, batch: Sequence[Any]
) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Return the chosen layers' calls, inputs, and gradients in their outputs."""
    if not chosen.layers:
        return {}
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}
    hooks = []
    for name, layer in chosen.layers.items():

        def note(_: nn.Module, args: tuple[Tensor], out: Tensor, name: str = name) -> Tensor:
            # nothing before the first chosen layer requires a gradient: its output starts the graph
            tracked = out if out.requires_grad else out.requires_grad_()
            seen[name] = (seen[name][0] + 1 if name in seen else 1, args[0].detach(), tracked)
            return tracked.clone()  # what follows may work in place, as ReLU(inplace=True) does

        hooks.append(layer.register_forward_hook(note))
    try:
        with torch.enable_grad():
            total = losses(model(*batch[:-1]), batch[-1]).sum()
            # a layer that was not called has gradient 0
            outputs = [seen[name][2] for name in seen]
            deltas = torch.autograd.grad(total, outputs, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    noted = {
        name: (seen[name][0], seen[name][1], torch.zeros_like(out) if delta is None else delta)
        for name, out, delta in zip(seen, outputs, deltas, strict=True)
    }
    empty = total.detach().new_zeros(0)
    return {name: noted.get(name, (0, empty, empty)) for name in chosen.layers}


def _convolved(layer: nn.Conv2d, inputs: Tensor, deltas: Tensor, bias: bool) -> Tensor:
    """Form the gradients of a convolution from its inputs and output gradients."""
    padding = layer.padding
    if isinstance(padding, str):  # "valid" or "same"
        pads = layer._reversed_padding_repeated_twice
        inputs, padding = functional.pad(inputs, pads), (0, 0)
    patch = inputs.shape[1] * layer.kernel_size[0] * layer.kernel_size[1]
    d = deltas.flatten(2)
    size = max(1, UNFOLDED_BYTES // (patch * d.shape[2] * d.element_size()))
    formed = d.new_empty(len(d), d.shape[1] * patch + (d.shape[1] if bias else 0))
    for start in range(0, len(d), size):
        part = slice(start, start + size)
        a = functional.unfold(
            inputs[part], layer.kernel_size, layer.dilation, padding, layer.stride
        )
        formed[part, : d.shape[1] * patch] = (d[part] @ a.mT).flatten(1)
    if bias:
        formed[:, d.shape[1] * patch :] = d.sum(2)
    return formed


def dots(left: Sequence[Part], right: Sequence[Part]) -> Tensor:
    """Return all inner products of two sets of gradients, (left samples, right samples)."""
    total: Tensor | None = None
    for a, b in zip(left, right, strict=True):
        if isinstance(a, Factor) and isinstance(b, Factor):
            found = factored_dots([a], [b])
        else:
            assert isinstance(a, Formed)
            assert isinstance(b, Formed)
            found = a.values @ b.values.T
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def squared_norms(parts: Sequence[Part]) -> Tensor:
    """Return the squared Euclidean norm of each sample's gradient, (samples,)."""
    squares = [
        factored_norms([part]).square() if isinstance(part, Factor) else part.values.square().sum(1)
        for part in parts
    ]
    return torch.stack(squares).sum(0)


def form_parts(parts: Sequence[Part]) -> Tensor:
    """Write the gradients out, (samples, numbers), part by part."""
    formed = [form([part]) if isinstance(part, Factor) else part.values for part in parts]
    return torch.cat(formed, dim=1)
