"""What layers take in and what gradients arrive at their outputs, by hooks on any module.

A layer with a weight matrix W and inputs a_t at positions t of a sample has the gradient sum_t d_t
a_t' for that sample, d_t the gradient in its outputs; the bias is a column of ones appended to a.
Positions are what a linear layer is applied to in a sample (one for (samples, features) inputs, the
tokens of a sequence), the places of a convolution's kernel, and the calls of a layer that is used
several times. The user's forward pass stays as it is written: hooks note inputs and outputs, and
autograd differentiates in the outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.errors import LeaveoutError

Outputs = Callable[[nn.Module, Any, int], tuple[Tensor, Iterable[Tensor]]]
"""From a module, a batch and the number of samples before it: outputs, and gradients in them.

The curvature is that of the squares of these gradients, summed. Outputs are (samples, ...); each
gradient has the same shape. Gradients are taken one after the other, so a generator is enough.
"""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Layer:
    """A layer whose curvature is known how to estimate.

    Attributes:
        name: Its name in the model.
        module: The layer.
        names: Names of its parameters in ``model.named_parameters()``: weight and, where there is
            one, bias.
        matrix: Whether its gradients are d a' (``nn.Linear``, ``nn.Conv2d``); else it is a
            normalisation, whose output is weight * a + bias number by number.
    """

    name: str
    module: nn.Module
    names: tuple[str, ...]
    matrix: bool

    @property
    def bias(self) -> bool:
        """Whether the layer has a bias."""
        return len(self.names) == 2


def supported(model: nn.Module) -> list[Layer]:
    """Return the layers of a model that have parameters and a known form, in order.

    A layer that shares a parameter with another one is left out: its gradient is not its own.
    """
    owners = Counter(
        id(p)
        for m in dict.fromkeys(model.modules())
        for p in m._parameters.values()
        if p is not None
    )
    known = {id(p): name for name, p in model.named_parameters()}
    found = []
    for name, module in model.named_modules():
        own = list(module._parameters.items())
        names = [known[id(p)] for _, p in own if p is not None]
        matrix = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        )
        if not (matrix or isinstance(module, _NORMS)) or not names:
            continue
        # a parametrised layer (weight norm, LoRA) has other parameters than these two
        usual = [key for key, _ in own] == ["weight", "bias"] and own[0][1] is not None
        if usual and all(owners[id(p)] == 1 for _, p in own if p is not None):
            found.append(Layer(name, module, tuple(names), matrix))
    return found


@dataclass(frozen=True)
class Batch:
    """What one batch shows of the layers that were called.

    Attributes:
        samples: How many samples it has.
        inputs: By layer, a: (samples, positions, in), ones appended where there is a bias; of a
            normalisation (samples, positions, features), what its weight multiplies.
        deltas: The gradients in the layers' outputs, one set for each gradient in the outputs, by
            layer (samples, positions, out).
        positions: By layer, how many positions count, over all samples.
    """

    samples: int
    inputs: dict[str, Tensor]
    deltas: Iterator[dict[str, Tensor]]
    positions: dict[str, int]


@contextmanager
def _noting(layers: list[Layer]) -> Iterator[dict[str, list[tuple[Tensor, int, Tensor]]]]:
    """Note input, its version and output of every call of the layers."""
    calls: dict[str, list[tuple[Tensor, int, Tensor]]] = {}
    hooks = []
    for layer in layers:

        def note(
            module: nn.Module, args: tuple[Tensor, ...], out: Tensor, name: str = layer.name
        ) -> Tensor:
            given = _normalised(module, args[0]) if isinstance(module, _NORMS) else args[0]
            given = given.detach()
            # where no parameter below asks for gradients, this output must start the graph
            out = out if out.requires_grad else out.detach().requires_grad_()
            calls.setdefault(name, []).append((given, given._version, out))
            return out.clone()  # what follows may change it in place

        hooks.append(layer.module.register_forward_hook(note))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def sweep(
    model: nn.Module,
    layers: list[Layer],
    batches: Iterable[Any],
    outputs: Outputs,
    mask: Callable[[Any], Tensor] | None = None,
) -> Iterator[Batch]:
    """Run a model over batches and give what its layers see.

    Args:
        model: The model, in evaluation mode.
        layers: From :func:`supported`.
        batches: The samples.
        outputs: Runs the model.
        mask: From a batch, which positions count, (samples, positions); for layers whose inputs
            have as many. None where all count.

    Raises:
        LeaveoutError: The model changes the input of a layer in place after its use.
    """
    start = 0
    for batch in batches:
        with _noting(layers) as calls, torch.enable_grad():
            values, gradients = outputs(model, batch, start)
        start += len(values)
        kept = None if mask is None else mask(batch)
        used = [layer for layer in layers if layer.name in calls]
        inputs, positions, masks = {}, {}, {}
        for layer in used:
            parts = []
            for given, version, _ in calls[layer.name]:
                if given._version != version:
                    raise LeaveoutError(
                        f"the input of layer {layer.name!r} is changed in place after the layer "
                        "has used it, so its curvature cannot be taken; use the out-of-place form"
                    )
                parts.append(_columns(layer, given))
            found = torch.cat(parts, dim=1)
            count = found.shape[1] // len(parts)
            if kept is not None and count > 1 and kept.flatten(1).shape[1] == count:
                chosen = kept.flatten(1).to(found).repeat(1, len(parts))[:, :, None]
                masks[layer.name] = chosen
                found = found * chosen
                positions[layer.name] = int(chosen.sum())
            else:
                positions[layer.name] = found.shape[0] * found.shape[1]
            inputs[layer.name] = found
        yield Batch(
            len(values), inputs, _differentiate(values, gradients, used, calls, masks), positions
        )


def _differentiate(
    values: Tensor,
    gradients: Iterable[Tensor],
    layers: list[Layer],
    calls: dict[str, list[tuple[Tensor, int, Tensor]]],
    masks: dict[str, Tensor],
) -> Iterator[dict[str, Tensor]]:
    ends = [out for layer in layers for _, _, out in calls[layer.name]]
    for gradient in gradients:
        found = iter(
            torch.autograd.grad(
                values, ends, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
        deltas = {}
        for layer in layers:
            parts = [_rows(layer, next(found)) for _ in calls[layer.name]]
            deltas[layer.name] = torch.cat(parts, dim=1)
            if layer.name in masks:
                deltas[layer.name] = deltas[layer.name] * masks[layer.name]
        yield deltas


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    """Return what the weight of a normalisation multiplies."""
    x = x.detach()
    match module:
        case nn.LayerNorm():
            return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        case nn.GroupNorm():
            return functional.group_norm(x, module.num_groups, eps=module.eps)
        case nn.modules.batchnorm._BatchNorm(running_mean=Tensor(), running_var=Tensor()):
            return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
    raise LeaveoutError(
        "a batch norm without running statistics mixes the samples of a batch, so that no sample "
        "has a gradient of its own; keep track_running_stats, or take a group norm"
    )


def _columns(layer: Layer, given: Tensor) -> Tensor:
    """Return a layer's inputs as (samples, positions, in), ones appended where it has a bias."""
    module = layer.module
    if not layer.matrix:
        return _rows(layer, given)
    if isinstance(module, nn.Conv2d):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
        patches = functional.unfold(
            padded, module.kernel_size, dilation=module.dilation, stride=module.stride
        )
        found = patches.transpose(1, 2)
    else:
        found = given.reshape(len(given), -1, given.shape[-1])
    return functional.pad(found, (0, 1), value=1.0) if layer.bias else found


def _rows(layer: Layer, values: Tensor) -> Tensor:
    """Return numbers shaped as a layer's outputs as (samples, positions, out)."""
    if isinstance(layer.module, nn.Linear):
        return values.reshape(len(values), -1, values.shape[-1])
    if isinstance(layer.module, nn.LayerNorm):
        size = layer.module.weight.numel()
        return values.reshape(len(values), -1, size)
    return values.reshape(*values.shape[:2], -1).transpose(1, 2)
