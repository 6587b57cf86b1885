"""The last linear layer: the features it sees, and the factors of its gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaveout.errors import NotComputableError
from leaveout.gradients.factors import Factor
from leaveout.training.losses import sample_losses

State = Mapping[str, Tensor]

BLOCK = 256
"""Samples that go through the model at once."""

GRADIENT_BLOCK = 1024
"""Samples differentiated at once; no activations before the last layer are kept."""


def last_linear(module: nn.Module, state: State, inputs: Tensor) -> str:
    """Return the name of the linear layer that is called last, whatever the order of definition.

    Raises:
        NotComputableError: There is none, or it sees more than one vector a sample.
    """
    calls: list[tuple[str, int]] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, args, out, name=name: calls.append((name, args[0].dim()))
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            functional_call(module, dict(state), (inputs[:1],))
    finally:
        for hook in hooks:
            hook.remove()
    name, dims = calls[-1] if calls else ("", 0)
    if dims != 2:
        what = f"{name} sees more than one vector a sample" if calls else "there is no linear layer"
        raise NotComputableError("undefined", f"no features: {what}")
    return name


def penultimate_features(module: nn.Module, state: State, inputs: Tensor) -> Tensor:
    """Return what the last linear layer sees; for a linear model, the flattened inputs.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).

    Returns:
        (samples, features).

    Raises:
        NotComputableError: The model has no such layer.
    """
    layer = module.get_submodule(last_linear(module, state, inputs))
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            for block in inputs.split(BLOCK):
                functional_call(module, dict(state), (block,))
    finally:
        hook.remove()
    return torch.cat(seen)


def last_layer_gradients(
    module: nn.Module, state: State, inputs: Tensor, labels: Tensor, name: str = ""
) -> list[Factor]:
    """Return each sample's gradient in the last linear layer; nothing before is differentiated.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).
        name: The layer, where it is known; to be found by default.

    Returns:
        The one factor, as of :func:`leaveout.gradients.factors.gradient_factors`.

    Raises:
        NotComputableError: The model has no such layer.
    """
    name = name or last_linear(module, state, inputs)
    layer = module.get_submodule(name)
    frozen = {key: value.detach() for key, value in state.items()}
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        seen.append((args[0].detach(), out.requires_grad_()))
        return out.clone()  # what follows may work in place

    hook = layer.register_forward_hook(note)
    deltas = []
    parts = inputs.split(GRADIENT_BLOCK)
    try:
        with torch.enable_grad():
            for x, y in zip(parts, labels.split(GRADIENT_BLOCK), strict=True):
                total = sample_losses(functional_call(module, frozen, (x,)), y).sum()
                deltas.append(torch.autograd.grad(total, seen[-1][1])[0])
    finally:
        hook.remove()
    features = [a for a, _ in seen]
    # the only layer sees the samples: no copy is needed
    own = inputs.is_contiguous() and all(
        a.data_ptr() == x.data_ptr() and a.numel() == x.numel() and a.is_contiguous()
        for a, x in zip(features, parts, strict=True)
    )
    return [
        Factor(
            name,
            inputs.flatten(1) if own else torch.cat(features),
            torch.cat(deltas),
            layer.bias is not None,
        )
    ]
