"""Inner products of gradients, summed over several states of one model.

The gradient of a sample in a linear layer is d a', so the sum is sum_c w_c <a_i(c), a_j(c)><d_i(c),
d_j(c)> over states c. What the first layer sees are the samples, alike at every state: its sum is
<a_i, a_j><D_i, D_j> with the d of all states side by side, and the longest product of all is taken
once instead of once a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from leaveout.gradients.factors import (
    Factor,
    State,
    factored_dots,
    factored_norms,
    gradient_factors,
)
from leaveout.gradients.features import last_layer_gradients, last_linear
from leaveout.gradients.formed import formed_dots
from leaveout.gradients.last_layer import check_layers
from leaveout.problem.call import numbers
from leaveout.problem.samples import Samples

Projection = Callable[[int, Factor], Factor]
"""The number of a state and the last layer's factor in, a smaller factor out."""

Layers = list[list[Factor]]
"""By layer, the factor of each state; or one for all, whose deltas stand side by side."""

ROWS = 1024
"""Left samples whose factors at all states are held at once."""

TILE_BYTES = 1 << 20
"""Products held at once, at most; small, to stay in cache."""


def summed_dots(
    module: nn.Module,
    states: Sequence[State],
    weights: Sequence[float],
    blocks: Iterable[Samples],
    right: Samples,
    layers: str = "all",
    projection: Projection | None = None,
    cosine: bool = False,
    room: float = math.inf,
) -> Iterator[Tensor]:
    """Yield the sum over states c of w_c <g_i(c), g_j(c)> for block after block of left samples.

    The right samples are differentiated once, and their factors at all states are held.

    Args:
        module: The architecture, in evaluation mode.
        states: Parameters and buffers of each state.
        weights: Factor of each.
        blocks: Left samples.
        right: Right samples.
        layers: ``all``, or ``last`` for the gradient in the last linear layer alone.
        projection: With ``last``, what to make of each gradient first.
        cosine: Whether to divide by both norms; a zero gradient then has cosine 0 with everything.
        room: Bytes that right gradients may take where they have to be formed.

    Yields:
        (left samples of the block, right samples).

    Raises:
        LeaveoutError: ``layers`` is something else, or all layers are to be projected.
        NotComputableError: There is no last linear layer.
    """
    check_layers(layers, projection is not None)
    name = last_linear(module, states[0], right) if layers == "last" else ""

    def factors(number: int, samples: Samples) -> list[Factor] | None:
        if not name:
            found = gradient_factors(module, states[number], samples)
        else:
            found = last_layer_gradients(module, states[number], samples, name)
            found = [projection(number, f) for f in found] if projection else found
        return _unit(found) if cosine and found else found

    held = _of_all_states(factors, len(states), right)
    if held is None:
        yield from formed_dots(module, states, weights, blocks, right, cosine, room)
        return
    held = [_weighted(layer, weights) for layer in held]
    for block in blocks:
        total = numbers(module, states[0]).new_zeros(len(block), len(right))
        for part, rows in zip(block.split(ROWS), total.split(ROWS), strict=True):
            left = _of_all_states(factors, len(states), part)
            assert left is not None
            _multiply(left, held, len(states), rows)
        yield total


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same numbers; at once, if they are the same memory."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    there = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return there or torch.equal(one, other)


def _of_all_states(
    factors: Callable[[int, Samples], list[Factor] | None], count: int, samples: Samples
) -> Layers | None:
    """Return the factors of samples at all states; None where gradients do not factor."""
    by_state: list[list[Factor]] = []
    for number in range(count):
        found = factors(number, samples)
        if found is None:
            return None
        if by_state:  # equal inputs are held once
            found = [
                replace(f, inputs=first.inputs) if same(first.inputs, f.inputs) else f
                for first, f in zip(by_state[0], found, strict=True)
            ]
        by_state.append(found)
    return [_merged(list(layer)) for layer in zip(*by_state, strict=True)]


def _merged(layer: list[Factor]) -> list[Factor]:
    first = layer[0]
    if any(f.inputs is not first.inputs for f in layer):
        return layer
    return [replace(first, deltas=torch.cat([f.deltas for f in layer], dim=1))]


def _split(layer: list[Factor], count: int) -> list[Factor]:
    """Undo the merging."""
    if len(layer) == count:
        return layer
    return [replace(layer[0], deltas=d) for d in layer[0].deltas.chunk(count, dim=1)]


def _weighted(layer: list[Factor], weights: Sequence[float]) -> list[Factor]:
    scaled = [f.deltas * w for f, w in zip(_split(layer, len(weights)), weights, strict=True)]
    if len(layer) == 1:
        return [replace(layer[0], deltas=torch.cat(scaled, dim=1))]
    return [replace(f, deltas=d) for f, d in zip(layer, scaled, strict=True)]


def _unit(factors: list[Factor]) -> list[Factor]:
    """Divide gradients by their norms; a zero gradient stays."""
    norms = factored_norms(factors)
    norms = norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
    return [replace(f, deltas=f.deltas / norms) for f in factors]


def _multiply(left: Layers, right: Layers, count: int, out: Tensor) -> None:
    """Write all inner products, (left samples, right samples), tile by tile."""
    a: list[Factor] = []
    b: list[Factor] = []
    for mine, other in zip(left, right, strict=True):
        both = len(mine) == len(other)  # few samples' hidden units may be alike on one side alone
        a += mine if both else _split(mine, count)
        b += other if both else _split(other, count)
    size = max(1, TILE_BYTES // (max(1, out.shape[1]) * out.element_size()))
    for start in range(0, len(out), size):
        part = slice(start, start + size)
        tile = [replace(f, inputs=f.inputs[part], deltas=f.deltas[part]) for f in a]
        out[part] = factored_dots(tile, b)
