"""Gradients of each sample's loss, and their inner products, within bounded memory.

Parameters are flattened in the order of ``module.named_parameters()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from leaveout.gradients.factors import (
    SampleFunction,
    factored_dots,
    factored_norms,
    form,
    gradient_factors,
    is_linear,
)
from leaveout.training.losses import sample_losses
from leaveout.training.memory import in_blocks

State = Mapping[str, Tensor]

CHUNK_BYTES = 64 << 20
"""Formed gradients held at once, at most."""


def n_parameters(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())


def per_sample_gradients(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    function: SampleFunction = sample_losses,
) -> Tensor:
    """Form the gradient of each sample's loss, or of another function of its outputs and label.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).
        function: What is differentiated.

    Returns:
        (samples, parameters).
    """
    factors = gradient_factors(module, state, inputs, labels, function)
    if factors is not None:
        return form(factors)
    names = [name for name, _ in module.named_parameters()]
    params = {name: state[name].detach() for name in names}
    buffers = {name: value for name, value in state.items() if name not in params}

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(module, {**p, **buffers}, (x[None],))
        return function(outputs, y[None])[0]

    found = vmap(grad(loss), in_dims=(None, 0, 0))(params, inputs, labels)
    return torch.cat([found[name].flatten(1) for name in names], dim=1)


def gradient_chunks(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    function: SampleFunction = sample_losses,
) -> Iterator[tuple[slice, Tensor]]:
    """Form gradients chunk by chunk, so that at most ``CHUNK_BYTES`` are held.

    Where a GPU has too little memory to form them, the chunks are halved.

    Yields:
        (which samples, their gradients).
    """
    size = max(1, CHUNK_BYTES // (n_parameters(module) * inputs.element_size()))
    yield from in_blocks(
        lambda part: per_sample_gradients(module, state, inputs[part], labels[part], function),
        len(inputs),
        size,
        "gradients formed at once",
    )


def gradient_products(
    module: nn.Module, state: State, inputs: Tensor, labels: Tensor, vectors: Tensor
) -> Tensor:
    """Return each sample's gradient times given vectors (vectors, parameters).

    Returns:
        (samples, vectors).
    """
    out = inputs.new_empty(len(inputs), len(vectors))
    for part, gradients in gradient_chunks(module, state, inputs, labels):
        out[part] = gradients @ vectors.T
    return out


def solved_products(
    module: nn.Module,
    state: State,
    solve: Callable[[Tensor], Tensor],
    blocks: Iterable[tuple[Tensor, Tensor]],
    right: tuple[Tensor, Tensor],
) -> Iterator[Tensor]:
    """Yield g_i' x_j for block after block of left samples, x_j = A^-1 g_j solved for once.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        solve: From rows v to rows A^-1 v, or near them, (vectors, parameters).
        blocks: Inputs and labels of left samples.
        right: Inputs and labels.

    Yields:
        (left samples of the block, right samples).
    """
    solved = solve(per_sample_gradients(module, state, *right))
    for inputs, labels in blocks:
        yield gradient_products(module, state, inputs, labels, solved)


def gradient_dots(
    module: nn.Module,
    state: State,
    left: tuple[Tensor, Tensor],
    right: tuple[Tensor, Tensor],
    cosine: bool = False,
) -> Tensor:
    """Return the inner products, or cosines, of the gradients of two sets of samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        left: Inputs and labels.
        right: Inputs and labels.
        cosine: Whether to divide by both norms; a zero gradient then has cosine 0 with everything.

    Returns:
        (left samples, right samples).
    """
    if is_linear(module):
        a, b = (gradient_factors(module, state, *samples) for samples in (left, right))
        if a is not None and b is not None:
            dots = factored_dots(a, b)
            return _divide(dots, factored_norms(a), factored_norms(b)) if cosine else dots
    dots = left[0].new_empty(len(left[0]), len(right[0]))
    left_norms = left[0].new_empty(len(left[0]))
    right_norms = right[0].new_empty(len(right[0]))
    for columns, r in gradient_chunks(module, state, *right):
        right_norms[columns] = r.norm(dim=1)
        for rows, g in gradient_chunks(module, state, *left):
            left_norms[rows] = g.norm(dim=1)
            dots[rows, columns] = g @ r.T
    return _divide(dots, left_norms, right_norms) if cosine else dots


def _divide(dots: Tensor, left_norms: Tensor, right_norms: Tensor) -> Tensor:
    tiny = torch.finfo(dots.dtype).tiny
    # one norm at a time: their product can underflow
    return dots.div_(left_norms.clamp_min(tiny)[:, None]).div_(right_norms.clamp_min(tiny))
