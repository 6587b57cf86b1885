"""Per-sample gradients of chosen parameters of any module, layer by layer.

A layer that has a rule (``rules``) gets its gradients from its inputs and output gradients, by one
backward pass for all samples; a linear one that sees one vector a sample keeps them as factors,
which are never multiplied out. All other parameters are differentiated sample by sample. Nothing
before the first chosen layer is differentiated. Whether a rule holds is checked against autograd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leaveout.errors import LeaveoutError
from leaveout.gradients.alone import gradients_alone, sample_gradients
from leaveout.gradients.factors import Factor, agree, factored_dots, factored_norms, form
from leaveout.gradients.rules import Formed, Part, part_of, rule_of
from leaveout.problem.call import slow_paths
from leaveout.problem.trees import rows, tensors

Losses = Callable[[Any, Any], Tensor]
"""Outputs and targets of some samples in, the loss of each out, (samples,)."""


class Shared:
    """An argument of the model that all samples share, such as a table of positions.

    It is no dataclass, which would be a tree whose tensors have a row a sample.

    Attributes:
        value: A tensor, or a tree of them, whose rows are no samples.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Chosen:
    """Which parameters' gradients are computed, and how.

    Attributes:
        layers: Layers with a rule, whose inputs and output gradients are noted.
        bias: Those of them whose bias counts.
        rest: Parameters differentiated sample by sample.
    """

    layers: dict[str, nn.Module] = field(default_factory=dict)
    bias: set[str] = field(default_factory=set)
    rest: list[str] = field(default_factory=list)

    def own(self, name: str) -> list[str]:
        """Return the names of a layer's parameters that count, in order."""
        kinds = ["weight", "bias"] if name in self.bias else ["weight"]
        return [f"{name}.{kind}".removeprefix(".") for kind in kinds]

    def give_up(self, name: str) -> None:
        """Let a layer be differentiated sample by sample."""
        self.rest += self.own(name)
        del self.layers[name]
        self.bias.discard(name)


def choose(model: nn.Module, parameters: Iterable[str]) -> Chosen:
    """Choose how to differentiate in some parameters.

    Args:
        model: The module, in evaluation mode.
        parameters: Names as in ``model.named_parameters()``.
    """
    wanted = list(parameters)
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = Chosen()
    for name, module in model.named_modules():
        if rule_of(module) is None:
            continue
        weight, bias = (f"{name}.{p}".removeprefix(".") for p in ("weight", "bias"))
        own = [p for p in (weight, bias) if p in wanted]
        if weight not in own or any(uses[id(p)] > 1 for p in module.parameters()):
            continue
        found.layers[name] = module
        found.bias |= {name} if bias in own else set()
        wanted = [p for p in wanted if p not in own]
    found.rest = wanted
    return found


def fit(model: nn.Module, chosen: Chosen, losses: Losses, batch: Sequence[Any]) -> int:
    """Compare two samples with autograd; what differs is differentiated sample by sample.

    So a layer is found whose first dimension is not the samples, that is called twice, whose
    weight is used elsewhere, too, or whose outputs a hook changes.

    Args:
        model: The module, in evaluation mode.
        chosen: From :func:`choose`; changed in place.
        losses: The loss of each sample.
        batch: Arguments of the model and, last, targets.

    Returns:
        How many numbers of a sample's gradient are formed.
    """
    n = len(tensors(batch)[0])
    two = rows(batch, [0, 1] if n > 1 else [0, 0])
    for name in _wrong(model, chosen, losses, two):
        chosen.give_up(name)
    parts = gradient_parts(model, chosen, losses, rows(batch, slice(0, 1)))
    return sum(part.values.numel() for part in parts if isinstance(part, Formed))


def _wrong(model: nn.Module, chosen: Chosen, losses: Losses, two: Sequence[Any]) -> list[str]:
    """Return the layers whose rule does not hold for two samples."""
    try:
        noted = _noted(model, chosen, losses, two)
    except RuntimeError:  # such as of checkpoints: all by plain autograd, or that says why
        return list(chosen.layers)
    known = dict(model.named_parameters())
    params = {p: known[p].detach() for name in chosen.layers for p in chosen.own(name)}
    expected = [
        dict(
            zip(
                params,
                gradients_alone(model, params, {}, _value(losses), rows(two, slice(i, i + 1))),
                strict=True,
            )
        )
        for i in range(2)
        if params
    ]
    wrong = []
    for name, (calls, inputs, deltas) in noted.items():
        if calls != 1 or inputs.dim() < 1 or len(inputs) != 2 or len(deltas) != 2:
            wrong.append(name)
            continue
        try:
            part = part_of(name, chosen.layers[name], inputs, deltas, name in chosen.bias)
        except (RuntimeError, IndexError):  # inputs without a dimension of samples
            wrong.append(name)
            continue
        mine = _formed(part)
        right = torch.stack([torch.cat([e[p] for p in chosen.own(name)]) for e in expected])
        if not all(agree(a, b) for a, b in zip(mine, right, strict=True)):
            wrong.append(name)
    return wrong


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
        One part a layer or parameter, in the order of the model's parameters.
    """
    known = dict(model.named_parameters())
    n = len(tensors(batch)[0])
    parts: dict[str, Part] = {}
    odd = []
    for name, (calls, inputs, deltas) in _noted(model, chosen, losses, batch).items():
        if calls != 1 or len(inputs) != n:  # this batch goes another way than the ones tried
            odd.append(name)
            continue
        layer = chosen.layers[name]
        parts[chosen.own(name)[0]] = part_of(name, layer, inputs, deltas, name in chosen.bias)
    alone = chosen.rest + [p for name in odd for p in chosen.own(name)]
    if alone:
        params = {name: known[name].detach() for name in alone}
        found = dict(
            zip(alone, sample_gradients(model, params, {}, _value(losses), batch), strict=True)
        )
        parts |= {name: Formed(name, found[name]) for name in chosen.rest}
        for name in odd:
            own = [found[p] for p in chosen.own(name)]
            parts[chosen.own(name)[0]] = Formed(name, torch.cat(own, dim=1))
    return [parts[name] for name in known if name in parts]


def _value(losses: Losses) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: _asked(model, losses, batch, 1)[0]


def _asked(model: nn.Module, losses: Losses, batch: Sequence[Any], n: int) -> Tensor:
    """Call the model, and return the loss of each sample."""
    *arguments, targets = (v.value if isinstance(v, Shared) else v for v in batch)
    outputs = model(*arguments)
    try:
        return losses(outputs, targets)
    except (RuntimeError, ValueError, IndexError, LeaveoutError) as error:
        if n > 1 or not isinstance(outputs, Tensor) or outputs.shape[:1] == (1,):
            raise
        raise LeaveoutError(
            f"the model gave outputs of shape {tuple(outputs.shape)} for a batch of one sample, "
            f"and the loss can't take them ({error}). Their first dimension must be the samples: "
            "a model that ends in .squeeze() drops it where there is one; write .squeeze(-1)"
        ) from error


def _noted(
    model: nn.Module, chosen: Chosen, losses: Losses, batch: Sequence[Any]
) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Return the chosen layers' calls, inputs, and gradients in their outputs."""
    if not chosen.layers:
        return {}
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}
    hooks = []
    for name, layer in chosen.layers.items():

        def note(
            _: nn.Module, args: Any, named: dict[str, Any], out: Tensor, name: str = name
        ) -> Tensor:
            # nothing before the first chosen layer requires a gradient: its output starts the graph
            tracked = out if out.requires_grad else out.requires_grad_()
            given = args[0] if args else next(iter(named.values()))
            seen[name] = (seen[name][0] + 1 if name in seen else 1, given.detach(), tracked)
            return tracked.clone()  # what follows may work in place, as ReLU(inplace=True) does

        hooks.append(layer.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.enable_grad(), slow_paths():
            total = _asked(model, losses, batch, len(tensors(batch)[0])).sum()
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


def dots(left: Sequence[Part], right: Sequence[Part]) -> Tensor:
    """Return all inner products of two sets of gradients, (left samples, right samples)."""
    total: Tensor | None = None
    for a, b in zip(left, right, strict=True):
        if isinstance(a, Factor) and isinstance(b, Factor):
            found = factored_dots([a], [b])
        else:
            found = _formed(a) @ _formed(b).T
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
    return torch.cat([_formed(part) for part in parts], dim=1)


def _formed(part: Part) -> Tensor:
    return form([part]) if isinstance(part, Factor) else part.values
