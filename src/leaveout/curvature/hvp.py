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

from leaveout.curvature.softmax_hvp import matrix_products, prepare_matrices, worthwhile
from leaveout.curvature.stack_hvp import prepare, stack_products
from leaveout.training.losses import sample_losses
from leaveout.training.memory import in_blocks
from leaveout.training.stack import parse

State = Mapping[str, Tensor]
Products = Callable[[Tensor], Tensor]

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


def hessian_map(module: nn.Module, state: State, inputs: Tensor, labels: Tensor) -> Products:
    """Return the products with the Hessian of the mean loss of any module, by ``torch.func``.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).

    Returns:
        From rows v to rows H v, (vectors, parameters).
    """
    params = {name: state[name].detach() for name, _ in module.named_parameters()}
    samples, count = at_once(inputs)

    def products(vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)
        for x, y in zip(inputs.split(samples), labels.split(samples), strict=True):
            product = _product(module, state, params, x, y, len(x) / len(inputs))
            out += products_of_rows(module, product, vectors, count)
        return out

    return products


def hessian_products(
    module: nn.Module, state: State, inputs: Tensor, labels: Tensor, vectors: Tensor
) -> Tensor:
    """Return H v for many vectors, (vectors, parameters), the fastest way."""
    samples = (module, state, inputs, labels)
    products = stack_map(*samples, False, len(vectors)) or hessian_map(*samples)
    return products(vectors)


def stack_map(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    gauss_newton: bool,
    uses: int,
) -> Products | None:
    """Return what multiplies with the Hessian of a stack of linear layers; None for other modules.

    Args:
        module: As for :func:`hessian_map`, and so the others.
        state: Parameters.
        inputs: (samples, ...).
        labels: (samples,).
        gauss_newton: Whether to use only the Gauss-Newton part.
        uses: How many vectors will be multiplied; this changes the speed only.
    """
    layers = parse(module)
    if layers is None:
        return None
    params = {name: state[name].detach() for name, _ in module.named_parameters()}
    flat = inputs.flatten(1)
    samples, count = at_once(inputs)
    product: Callable[[State], State]
    if len(layers) == 1 and worthwhile(flat, layers[0].width, uses):
        matrices = prepare_matrices(layers[0], params, flat, samples)
        product = partial(matrix_products, matrices)
    else:
        net = prepare(layers, params, flat, labels, samples)
        product = partial(stack_products, net, gauss_newton=gauss_newton)
    return lambda vectors: products_of_rows(module, product, vectors, count)


def products_of_rows(
    module: nn.Module, product: Callable[[State], State], vectors: Tensor, count: int
) -> Tensor:
    """Take a product with some vectors at once, and flatten it.

    Args:
        module: The architecture.
        product: From vectors split by :func:`split` to as many of the same shapes.
        vectors: (vectors, parameters).
        count: How many at once.

    Returns:
        (vectors, parameters).
    """
    names = [name for name, _ in module.named_parameters()]
    out = torch.empty_like(vectors)
    work = partial(_some, module, product, vectors)
    for rows, found in in_blocks(work, len(vectors), count, "vectors multiplied at once"):
        torch.cat([found[name].flatten(1) for name in names], dim=1, out=out[rows])
    return out


def _some(
    module: nn.Module, product: Callable[[State], State], vectors: Tensor, rows: slice
) -> State:
    return product(split(module, vectors[rows]))


def at_once(inputs: Tensor) -> tuple[int, int]:
    """Return how many samples and vectors to take at once, to stay within CHUNK_BYTES."""
    width = 128 * inputs.element_size()  # a typical layer's width
    samples = min(len(inputs), 1000)  # fewer, and matrix products lose speed; so do fewer vectors
    return samples, max(1, CHUNK_BYTES // (samples * width))


def _product(
    module: nn.Module,
    state: State,
    params: dict[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    weight: float,
) -> Callable[[State], State]:
    """Return the product with the Hessian of ``weight`` times the mean of some samples' losses."""
    gradient = grad(mean_loss(module, state, inputs, labels))

    def product(vector: State) -> dict[str, Tensor]:
        return {k: weight * t for k, t in jvp(gradient, (params,), (dict(vector),))[1].items()}

    return vmap(product)
