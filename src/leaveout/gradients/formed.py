"""Inner products of gradients that are formed, where they are no products of vectors.

A test sample's gradient has as many numbers as the model has parameters: those that fit are held,
and the training samples are gone through once for each such block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from leaveout.gradients.per_sample import State, gradient_chunks, n_parameters
from leaveout.problem.call import numbers
from leaveout.problem.samples import Samples


def formed_dots(
    module: nn.Module,
    states: Sequence[State],
    weights: Sequence[float],
    blocks: Iterable[Samples],
    right: Samples,
    cosine: bool,
    room: float,
) -> Iterator[Tensor]:
    """Do :func:`leaveout.gradients.summed.summed_dots` with gradients that are formed.

    Where those of all right samples at all states do not fit into ``room``, all products are held
    instead of a block of them.
    """
    like = numbers(module, states[0])
    size = max(1.0, room / (n_parameters(module) * like.element_size()))
    if len(states) * len(right) <= size:
        held = [_formed(module, state, right, cosine) for state in states]
        for block in blocks:
            total = like.new_zeros(len(block), len(right))
            for state, weight, gradients in zip(states, weights, held, strict=True):
                _add(total, module, state, weight, block, gradients, cosine)
            yield total
        return
    left = list(blocks)
    totals = [like.new_zeros(len(block), len(right)) for block in left]
    some = min(len(right), int(size))
    for state, weight in zip(states, weights, strict=True):
        for start in range(0, len(right), some):
            columns = slice(start, start + some)
            gradients = _formed(module, state, right[columns], cosine)
            for block, total in zip(left, totals, strict=True):
                _add(total[:, columns], module, state, weight, block, gradients, cosine)
            del gradients  # or it would live on beside the next ones
    yield from totals


def _add(
    total: Tensor,
    module: nn.Module,
    state: State,
    weight: float,
    block: Samples,
    gradients: Tensor,
    cosine: bool,
) -> None:
    """Add the products of some samples' gradients with those held, (samples, held), to a total."""
    for rows, g in gradient_chunks(module, state, block):
        total[rows].add_(_unit(g, cosine) @ gradients.T, alpha=weight)
        del g  # or it would live on while the next ones are formed


def _formed(module: nn.Module, state: State, samples: Samples, cosine: bool) -> Tensor:
    """Form gradients, (samples, parameters), a chunk at a time: each takes more while it is."""
    out = numbers(module, state).new_empty(len(samples), n_parameters(module))
    for rows, g in gradient_chunks(module, state, samples):
        out[rows] = _unit(g, cosine)
        del g
    return out


def _unit(gradients: Tensor, cosine: bool) -> Tensor:
    if not cosine:
        return gradients
    norms: Tensor = gradients.norm(dim=1, keepdim=True)
    return gradients.div_(norms.clamp_min(torch.finfo(gradients.dtype).tiny))
