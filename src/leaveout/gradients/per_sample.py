"""Gradients of each sample's loss, and their inner products, within bounded memory.

Parameters are flattened in the order of ``module.named_parameters()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from leaveout.gradients.alone import sample_gradients
from leaveout.gradients.factors import form, gradient_factors
from leaveout.problem.call import call, numbers, parts_of, trained
from leaveout.problem.objective import Losses
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree
from leaveout.training.memory import in_blocks

State = Mapping[str, Tensor]

CHUNK_BYTES = 64 << 20
"""Formed gradients held at once, at most."""


def n_parameters(module: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for p in trained(module).values())


def per_sample_gradients(
    module: nn.Module, state: State, samples: Samples, function: Losses | None = None
) -> Tensor:
    """Form the gradient of what is asked of each sample, or of another function of its outputs.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose objective is differentiated.
        function: What is differentiated instead, from outputs and targets.

    Returns:
        (samples, trained parameters).
    """
    factors = gradient_factors(module, state, samples, function)
    if factors is not None:
        return form(factors)
    params, fixed = parts_of(module, state)
    asked = function or samples.objective.losses

    def value(own: nn.Module, batch: tuple[Tree, Tree]) -> Tensor:
        return asked(call(own, batch[0]), batch[1])[0]

    batch = samples.inputs, samples.targets
    return torch.cat(sample_gradients(module, params, fixed, value, batch), dim=1)


def gradient_chunks(
    module: nn.Module, state: State, samples: Samples, function: Losses | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Form gradients chunk by chunk, so that at most ``CHUNK_BYTES`` are held.

    Where a GPU has too little memory to form them, the chunks are halved.

    Yields:
        (which samples, their gradients).
    """
    size = max(1, CHUNK_BYTES // (n_parameters(module) * numbers(module, state).element_size()))
    yield from in_blocks(
        lambda part: per_sample_gradients(module, state, samples[part], function),
        len(samples),
        size,
        "gradients formed at once",
    )


def gradient_products(module: nn.Module, state: State, samples: Samples, vectors: Tensor) -> Tensor:
    """Return each sample's gradient times given vectors (vectors, parameters).

    Returns:
        (samples, vectors).
    """
    out = vectors.new_empty(len(samples), len(vectors))
    for part, gradients in gradient_chunks(module, state, samples):
        out[part] = gradients @ vectors.T
    return out


def solved_products(
    module: nn.Module,
    state: State,
    solve: Callable[[Tensor], Tensor],
    blocks: Iterable[Samples],
    right: Samples,
) -> Iterator[Tensor]:
    """Yield g_i' x_j for block after block of left samples, x_j = A^-1 g_j solved for once.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        solve: From rows v to rows A^-1 v, or near them, (vectors, parameters).
        blocks: Left samples.
        right: Right samples.

    Yields:
        (left samples of the block, right samples).
    """
    solved = solve(per_sample_gradients(module, state, right))
    for block in blocks:
        yield gradient_products(module, state, block, solved)
