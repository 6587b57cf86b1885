"""The last linear layer: the features it sees, and the factors of its gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leaveout.errors import NotComputableError
from leaveout.gradients.factors import Factor
from leaveout.problem.call import call_with, slow_paths
from leaveout.problem.samples import Samples

State = Mapping[str, Tensor]

BLOCK = 256
"""Samples that go through the model at once."""

GRADIENT_BLOCK = 1024
"""Samples differentiated at once; no activations before the last layer are kept."""


def last_linear(module: nn.Module, state: State, samples: Samples) -> str:
    """Return the name of the linear layer that is called last, whatever the order of definition.

    Raises:
        NotComputableError: There is none, it sees more than one vector a sample, or its outputs are
            not the last that is computed of them with parameters.
    """
    calls: list[tuple[str, torch.Size]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, args, out, name=name: calls.append((name, args[0].shape))
        )
        for name, layer in module.named_modules()
        if type(layer) is nn.Linear
    ]
    try:
        with torch.no_grad(), slow_paths():
            call_with(module, state, samples[:2].inputs)
    finally:
        for hook in hooks:
            hook.remove()
    name, shape = calls[-1] if calls else ("", torch.Size())
    if len(shape) != 2 or shape[0] != len(samples[:2]):
        what = f"{name} sees more than one vector a sample" if calls else "there is no linear layer"
        raise NotComputableError("undefined", f"no features: {what}")
    if [call[0] for call in calls].count(name) > 1:
        raise NotComputableError("undefined", f"no features: {name} is used more than once")
    return name


def penultimate_features(module: nn.Module, state: State, samples: Samples) -> Tensor:
    """Return what the last linear layer sees; for a linear model, the flattened inputs.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: The samples.

    Returns:
        (samples, features).

    Raises:
        NotComputableError: The model has no such layer.
    """
    layer = module.get_submodule(last_linear(module, state, samples))
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()))
    try:
        with torch.no_grad(), slow_paths():
            for block in samples.split(BLOCK):
                call_with(module, state, block.inputs)
    finally:
        hook.remove()
    return torch.cat(seen)


def last_layer_gradients(
    module: nn.Module, state: State, samples: Samples, name: str = ""
) -> list[Factor]:
    """Return each sample's gradient in the last linear layer; nothing before is differentiated.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose objective is differentiated.
        name: The layer, where it is known; to be found by default.

    Returns:
        The one factor, as of :func:`leaveout.gradients.factors.gradient_factors`.

    Raises:
        NotComputableError: The model has no such layer.
    """
    name = name or last_linear(module, state, samples)
    layer = module.get_submodule(name)
    frozen = {key: value.detach() for key, value in state.items()}
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        seen.append((args[0].detach(), out.requires_grad_()))
        return out.clone()  # what follows may work in place

    hook = layer.register_forward_hook(note)
    deltas = []
    parts = [*samples.split(GRADIENT_BLOCK)]
    try:
        with torch.enable_grad(), slow_paths():
            for part in parts:
                total = part.losses(call_with(module, frozen, part.inputs)).sum()
                deltas.append(torch.autograd.grad(total, seen[-1][1])[0])
    finally:
        hook.remove()
    features = [a for a, _ in seen]
    return [
        Factor(
            name,
            _own_inputs(samples, parts, features),
            torch.cat(deltas),
            layer.bias is not None,
        )
    ]


def _own_inputs(samples: Samples, parts: list[Samples], features: list[Tensor]) -> Tensor:
    """Return the features together; where the only layer sees the samples, without a copy."""
    inputs = samples.inputs
    own = (
        isinstance(inputs, Tensor)
        and inputs.is_contiguous()
        and all(
            a.data_ptr() == part.inputs.data_ptr()
            and a.numel() == part.inputs.numel()
            and a.is_contiguous()
            for a, part in zip(features, parts, strict=True)
        )
    )
    return inputs.flatten(1) if own else torch.cat(features)
