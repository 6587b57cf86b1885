"""Hessian-vector products of the mean loss over all training samples, many vectors at once.

Exact (Pearlmutter 1994: the directional derivative of the gradient), never from one batch: the
result does not depend on how samples are batched beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from leaveout.curvature.stack_hvp import forward_backward, stack_products
from leaveout.training.losses import sample_losses
from leaveout.training.memory import in_blocks
from leaveout.training.stack import Layer, parse

State = Mapping[str, Tensor]

CHUNK_BYTES = 64 << 20
"""Aim for the largest intermediate: vectors x width x samples; bounds memory, not the result."""


def mean_loss(
    module: nn.Module, state: State, inputs: Tensor, labels: Tensor
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return the mean loss over some samples as a function of the parameters."""
    names = {name for name, _ in module.named_parameters()}
    buffers = {name: value for name, value in state.items() if name not in names}

    def loss(params: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(module, {**params, **buffers}, (inputs,))
        return sample_losses(outputs, labels).mean()

    return loss


def split(module: nn.Module, vectors: Tensor) -> dict[str, Tensor]:
    """Cut flat vectors, (vectors, parameters), into tensors of the parameters' shapes."""
    named = list(module.named_parameters())
    parts = vectors.split([p.numel() for _, p in named], dim=1)
    return {
        name: part.reshape(len(vectors), *p.shape)
        for (name, p), part in zip(named, parts, strict=True)
    }


def hessian_products(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    vectors: Tensor,
    by_hand: bool = True,
) -> Tensor:
    """Return H v for many vectors, H the Hessian of the mean loss over the given samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).
        vectors: (vectors, parameters).
        by_hand: Whether stacks of linear layers take the hand-written way; any other module takes
            ``torch.func``.

    Returns:
        (vectors, parameters).
    """
    params = {name: state[name].detach() for name, _ in module.named_parameters()}
    layers = parse(module) if by_hand else None
    samples, count = at_once(inputs, vectors)
    out = torch.zeros_like(vectors)
    share = 1 / len(inputs)
    for start in range(0, len(inputs), samples):
        x, y = inputs[start : start + samples], labels[start : start + samples]
        product = _product(module, state, params, layers, x, y, share)
        work = partial(_products_of_rows, module, product, vectors)
        for rows, found in in_blocks(work, len(vectors), count, "vectors multiplied at once"):
            out[rows] += torch.cat([found[name].flatten(1) for name in params], dim=1)
    return out


def _products_of_rows(
    module: nn.Module,
    product: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    vectors: Tensor,
    rows: slice,
) -> dict[str, Tensor]:
    return product(split(module, vectors[rows]))


def at_once(inputs: Tensor, vectors: Tensor) -> tuple[int, int]:
    """Return how many samples and vectors to take at once, to stay within CHUNK_BYTES."""
    width = 128 * vectors.element_size()  # a typical layer's width
    samples = min(len(inputs), 5000)
    return samples, max(1, min(len(vectors), CHUNK_BYTES // (samples * width)))


def _product(
    module: nn.Module,
    state: State,
    params: dict[str, Tensor],
    layers: list[Layer] | None,
    inputs: Tensor,
    labels: Tensor,
    share: float,
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return the product with the Hessian of ``share`` times the sum of some samples' losses."""
    if layers is not None:
        known = forward_backward(layers, params, inputs.flatten(1), labels, share)
        return lambda v: stack_products(layers, params, known, v, share)
    gradient = grad(mean_loss(module, state, inputs, labels))
    weight = share * len(inputs)

    def product(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: weight * t for k, t in jvp(gradient, (params,), (vector,))[1].items()}

    return vmap(product)
