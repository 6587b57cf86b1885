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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.problem.call import refuse_mixing, trained

Outputs = Callable[[nn.Module, Any, int], tuple[Tensor, Iterable[Tensor]]]
"""From a module, a batch and the number of samples before it: outputs, and gradients in them.

The curvature is that of the squares of these gradients, summed. Outputs are (samples, ...); each
gradient has the same shape. Gradients are taken one after the other, so a generator is enough.
"""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NORMS = (*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)

CHECKED = 2
"""Samples on which layers are compared with autograd: with one alone, no axis tells itself."""


@dataclass(frozen=True)
class Layer:
    """A layer whose curvature is known how to estimate.

    Attributes:
        name: Its name in the model.
        module: The layer.
        names: Names of its parameters in ``model.named_parameters()``: weight and, where there is
            one, bias.
        matrix: Whether its gradients are d a' (``nn.Linear``, convolutions); else it is a
            normalisation, whose output is weight * a + bias number by number.
        axis: Which dimension of its inputs are samples: 0, also where positions are flattened
            behind them, or 1 in a sequence that runs first.
    """

    name: str
    module: nn.Module
    names: tuple[str, ...]
    matrix: bool
    axis: int = 0

    @property
    def bias(self) -> bool:
        """Whether the layer has a bias."""
        return len(self.names) == 2


def supported(model: nn.Module) -> list[Layer]:
    """Return the layers of a model that have parameters and a known form, in order.

    They are known by their exact type: a subclass may do something else with its weight. A layer
    that shares a parameter with another one, or is not trained whole, is left out.
    """
    owners = Counter(
        id(p)
        for m in dict.fromkeys(model.modules())
        for p in m._parameters.values()
        if p is not None
    )
    known = {id(p): name for name, p in trained(model).items()}
    found = []
    for name, module in model.named_modules():
        own = [(key, p) for key, p in module._parameters.items() if p is not None]
        kind = type(module)
        matrix = kind is nn.Linear or (
            kind in _CONVOLUTIONS and getattr(module, "groups", None) == 1
        )
        if not (matrix or kind in _NORMS) or not own:
            continue
        # a parametrised layer (weight norm, LoRA) has other parameters than these two
        usual = [key for key, _ in own] in (["weight"], ["weight", "bias"])
        if usual and all(owners[id(p)] == 1 and id(p) in known for _, p in own):
            found.append(Layer(name, module, tuple(known[id(p)] for _, p in own), matrix))
    return found


def checked(
    layers: list[Layer],
    run: Callable[[Any], Tensor],
    batch: Any,
    rights: Sequence[Mapping[str, Tensor]],
) -> list[Layer]:
    """Compare what layers show of samples with autograd's own gradients, and find their axes.

    It tells a model that flattens positions inside its forward pass, or runs time first, from one
    that does not, and a weight that is used past its layer from one that is not.

    Args:
        layers: From :func:`supported`.
        run: From a batch, numbers of each sample, (samples, ...).
        batch: Some samples.
        rights: Of the first of these, each one's :func:`own_gradients`.

    Returns:
        The layers, with the axis of their samples.

    Raises:
        NotComputableError: Of some layer the gradients are others; names it.
    """
    good: dict[str, int] = {}
    for axis in (0, 1):
        trial = [replace(layer, axis=axis) for layer in layers if layer.name not in good]
        if trial:
            with _noting(trial) as calls, torch.enable_grad():
                values = run(batch)
            good |= dict.fromkeys(_agreeing(values, trial, calls, rights), axis)
    odd = [layer.name for layer in layers if layer.name not in good]
    if odd:
        raise NotComputableError(
            "undefined",
            f"the gradient in layer {odd[0]!r} is not what its inputs and outputs give for a "
            "sample: its weight is used outside of it too, or samples are neither the first nor "
            "the second dimension of what it sees",
        )
    return [replace(layer, axis=good[layer.name]) for layer in layers]


def _weighed(values: Tensor) -> Tensor:
    """Return one number a sample that depends on all of its outputs, (samples,)."""
    flat = values.reshape(len(values), -1)
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(flat.shape[1], generator=draw, dtype=torch.float64).to(flat)
    return flat @ weights


def own_gradients(values: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return autograd's gradient in each parameter of one number made of a sample's outputs.

    Args:
        values: Outputs of one sample, (1, ...), that depend on the parameters. Their graph stays.
        parameters: By name.
    """
    found = torch.autograd.grad(
        _weighed(values).sum(),
        [*parameters.values()],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(parameters, found, strict=True))


def _agreeing(
    values: Tensor,
    layers: list[Layer],
    calls: dict[str, list[tuple[Tensor, int, Tensor]]],
    rights: Sequence[Mapping[str, Tensor]],
) -> list[str]:
    """Return the layers whose gradients are autograd's for these samples, or that are not used."""
    n = len(values)
    used = [layer for layer in layers if layer.name in calls]
    ends = [out for layer in used for _, _, out in calls[layer.name]]
    grads = iter(
        torch.autograd.grad(_weighed(values).sum(), ends, allow_unused=True, materialize_grads=True)
        if ends
        else ()
    )
    kept = []
    for layer in layers:
        if layer.name not in calls:
            zero = all(not g[name].any() for g in rights for name in layer.names)
            kept += [layer.name] * zero
            continue
        try:
            inputs = [_columns(layer, given, n) for given, _, _ in calls[layer.name]]
            deltas = [_rows(layer, next(grads), n) for _ in calls[layer.name]]
            mine = _per_sample(layer, torch.cat(inputs, 1), torch.cat(deltas, 1))[: len(rights)]
        except RuntimeError:  # it does not come apart into so many samples
            continue
        right = torch.stack(
            [torch.cat([g[name].flatten() for name in layer.names]) for g in rights]
        )
        if mine.shape == right.shape and _close(mine, right):
            kept.append(layer.name)
    return kept


def _per_sample(layer: Layer, a: Tensor, d: Tensor) -> Tensor:
    """Return each sample's gradient in a layer's weight and bias, flat, in their order."""
    if layer.matrix:
        both = d.transpose(1, 2) @ a
        width = both.shape[2] - layer.bias
        parts = [both[:, :, :width].flatten(1)] + [both[:, :, -1]] * layer.bias
    else:
        parts = [(d * a).sum(1)] + [d.sum(1)] * layer.bias
    return torch.cat(parts, dim=1)


def _close(mine: Tensor, right: Tensor) -> bool:
    """Return whether gradients are the same but for rounding; those not finite tell nothing."""
    if not right.isfinite().all():
        return True
    tolerance = torch.finfo(right.dtype).eps ** 0.5
    return bool(((mine - right).norm(dim=1) <= tolerance * (right.norm(dim=1) + 1e-30)).all())


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
            given = _normalised(module, args[0]) if type(module) in _NORMS else args[0]
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
        LeaveoutError: The model changes the input of a layer in place after its use, or the mask
            has another shape than what layers see.
    """
    start = 0
    for batch in batches:
        with _noting(layers) as calls, torch.enable_grad():
            values, gradients = outputs(model, batch, start)
        start += len(values)
        kept = None if mask is None else mask(batch)
        if kept is not None and len(kept) != len(values):
            raise LeaveoutError(
                f"mask: expected (samples, positions) for {len(values)} samples, got "
                f"{tuple(kept.shape)}"
            )
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
                parts.append(_columns(layer, given, len(values)))
            found = torch.cat(parts, dim=1)
            count = found.shape[1] // len(parts)
            if kept is not None and count > 1:
                if kept.shape[1:].numel() != count:
                    raise LeaveoutError(
                        f"mask: it has {kept.shape[1:].numel()} positions a sample, but layer "
                        f"{layer.name!r} sees {count}; give one for the positions that layers see, "
                        "or none"
                    )
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
    for gradient in gradients if ends else ():
        found = iter(
            torch.autograd.grad(
                values, ends, gradient, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
        deltas = {}
        for layer in layers:
            parts = [_rows(layer, next(found), len(values)) for _ in calls[layer.name]]
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
        case nn.RMSNorm():
            return functional.rms_norm(x, module.normalized_shape, eps=module.eps)
        case nn.modules.batchnorm._BatchNorm(running_mean=Tensor(), running_var=Tensor()):
            return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
    refuse_mixing(module)
    raise AssertionError(type(module))


def _columns(layer: Layer, given: Tensor, samples: int) -> Tensor:
    """Return a layer's inputs as (samples, positions, in), ones appended where it has a bias."""
    module = layer.module
    if not layer.matrix:
        return _rows(layer, given, samples)
    if isinstance(module, nn.Linear):
        found = _rows(layer, given, samples)
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        found = _patches(module, given.transpose(0, 1) if layer.axis else given)
    return functional.pad(found, (0, 1), value=1.0) if layer.bias else found


def _patches(module: nn.Conv1d | nn.Conv2d, given: Tensor) -> Tensor:
    """Return what a convolution multiplies with its weight, (samples, positions, in)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    sizes = [module.kernel_size, module.dilation, module.stride]
    if isinstance(module, nn.Conv1d):  # as an image of one row
        padded = padded.unsqueeze(2)
        sizes = [(1, *size) for size in sizes]
    kernel, dilation, stride = sizes
    unfolded = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    return unfolded.transpose(1, 2)


def _rows(layer: Layer, values: Tensor, samples: int) -> Tensor:
    """Return numbers shaped as a layer's outputs as (samples, positions, out).

    Raises:
        RuntimeError: They do not come apart into so many samples.
    """
    values = values.transpose(0, 1) if layer.axis and values.dim() > 1 else values
    module = layer.module
    if isinstance(module, nn.Linear):
        return values.reshape(samples, -1, values.shape[-1])
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        size = sum(p.numel() for p in [module.weight])
        return values.reshape(samples, -1, size)
    flat = values.reshape(*values.shape[:2], -1).transpose(1, 2)
    return flat.reshape(samples, -1, flat.shape[2])
