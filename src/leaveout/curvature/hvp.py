"""Hessian-vector products of the mean loss over all training samples, many vectors at once.

Exact (Pearlmutter 1994: the directional derivative of the gradient), never from one batch: the
result does not depend on how samples are batched beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, jvp, vmap

from leaveout.curvature.plain import or_plain, plain_hessian
from leaveout.curvature.softmax_hvp import matrix_products, prepare_matrices, worthwhile
from leaveout.curvature.stack_hvp import prepare, stack_products
from leaveout.errors import NotComputableError
from leaveout.problem.call import call_with, parts_of, slow_paths, trained, without_padding
from leaveout.problem.samples import Samples
from leaveout.problem.trees import tensors
from leaveout.training.memory import in_blocks
from leaveout.training.stack import stack_of

State = Mapping[str, Tensor]
Products = Callable[[Tensor], Tensor]

CHUNK_BYTES = 64 << 20
"""Aim for the largest intermediate: vectors x width x samples; bounds memory, not the result."""


def mean_loss(
    module: nn.Module, state: State, samples: Samples
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return the mean loss over some samples as a function of the trained parameters."""
    _, fixed = parts_of(module, state)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return samples.losses(call_with(module, {**params, **fixed}, samples.inputs)).mean()

    return loss


def split(module: nn.Module, vectors: Tensor) -> dict[str, Tensor]:
    """Cut flat vectors, (vectors, parameters), into tensors of the parameters' shapes."""
    named = trained(module)
    parts = vectors.split([p.numel() for p in named.values()], dim=1)
    return {
        name: part.reshape(len(vectors), *p.shape)
        for (name, p), part in zip(named.items(), parts, strict=True)
    }


def hessian_map(module: nn.Module, state: State, samples: Samples) -> Products:
    """Return the products with the Hessian of the mean loss of any module, by ``torch.func``.

    Where that can not run a model, plain autograd takes vector by vector.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose losses the mean is of.

    Returns:
        From rows v to rows H v, (vectors, parameters).
    """
    params, _ = parts_of(module, state)
    size, count = at_once(module, state, samples)
    symmetric = False

    def over(some: Samples) -> Products:
        def products(vectors: Tensor) -> Tensor:
            out = torch.zeros_like(vectors)
            with slow_paths():
                for part in some.split(size):
                    product = _product(module, state, params, part, len(part) / len(some))
                    out += products_of_rows(module, product, vectors, count)
            return out

        return or_plain(products, partial(plain_hessian, module, state, some, size))

    whole = over(samples)

    def checked(vectors: Tensor) -> Tensor:
        nonlocal symmetric
        if not symmetric:
            _check_symmetric(over(samples[:2]), vectors)
            symmetric = True
        return whole(vectors)

    return checked


def _check_symmetric(products: Products, like: Tensor) -> None:
    """See that <u, H v> = <v, H u> for two random vectors.

    Raises:
        NotComputableError: It is not: a forward pass that detaches values, say, has gradients that
            are no function's, and whose derivative is no Hessian.
    """
    drawn = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, like.shape[1], generator=drawn, dtype=like.dtype).to(like.device)
    (u, v), (hu, hv) = vectors, products(vectors)
    if (u @ hv - v @ hu).abs() > 1e-3 * (hu.norm() + hv.norm()):
        raise NotComputableError(
            "undefined",
            "the derivative of the model's gradient is not symmetric, so it is no Hessian: some "
            "part of the model has another gradient than its values",
        )


def hessian_products(module: nn.Module, state: State, samples: Samples, vectors: Tensor) -> Tensor:
    """Return H v for many vectors, (vectors, parameters), the fastest way."""
    products = stack_map(module, state, samples, False, len(vectors))
    return (products or hessian_map(module, state, samples))(vectors)


def stack_map(
    module: nn.Module, state: State, samples: Samples, gauss_newton: bool, uses: int
) -> Products | None:
    """Return what multiplies with the Hessian of a stack of linear layers under cross-entropy.

    Args:
        module: As for :func:`hessian_map`, and so the others.
        state: Parameters.
        samples: The samples.
        gauss_newton: Whether to use only the Gauss-Newton part.
        uses: How many vectors will be multiplied; this changes the speed only.

    Returns:
        As :func:`hessian_map`; None for other modules, objectives and samples.
    """
    layers = stack_of(module, samples)
    if layers is None or len(trained(module)) < 2 * len(layers):
        return None
    params, _ = parts_of(module, state)
    flat = samples.inputs.flatten(1)
    size, count = stacked_at_once(flat)
    product: Callable[[State], State]
    if len(layers) == 1 and worthwhile(flat, layers[0].width, uses):
        matrices = prepare_matrices(layers[0], params, flat, size)
        product = partial(matrix_products, matrices)
    else:
        net = prepare(layers, params, flat, samples.targets, size)
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
    names = [*trained(module)]
    out = torch.empty_like(vectors)
    work = partial(_some, module, product, vectors)
    for rows, found in in_blocks(work, len(vectors), count, "vectors multiplied at once"):
        length = rows.stop - rows.start
        torch.cat([found[name].reshape(length, -1) for name in names], dim=1, out=out[rows])
    return out


def _some(
    module: nn.Module, product: Callable[[State], State], vectors: Tensor, rows: slice
) -> State:
    return product(split(module, vectors[rows]))


def stacked_at_once(inputs: Tensor) -> tuple[int, int]:
    """Return how many samples and vectors a stack takes at once, to stay within CHUNK_BYTES."""
    width = 128 * inputs.element_size()  # a typical layer's width
    samples = min(len(inputs), 1000)  # fewer, and matrix products lose speed; so do fewer vectors
    return samples, max(1, CHUNK_BYTES // (samples * width))


def at_once(module: nn.Module, state: State, samples: Samples) -> tuple[int, int]:
    """Return how many samples and vectors any module takes at once, within about CHUNK_BYTES.

    It is run on one sample. The larger counts: what its layers give out, or what autograd keeps,
    which also knows what a model computes outside of layers.
    """
    params, fixed = parts_of(module, state)
    given = {name: value.requires_grad_() for name, value in params.items()}
    own = {value.untyped_storage().data_ptr() for value in (*given.values(), *fixed.values())}
    kept: dict[int, int] = {}
    numbers = [0]

    def note(_: nn.Module, __: object, out: object) -> None:
        numbers[0] += sum(value.numel() * value.element_size() for value in tensors(out))

    def count(value: Tensor) -> None:  # kept itself, an output would keep its own graph for good
        place = value.untyped_storage().data_ptr()
        if place not in own:
            size = value.numel() * value.element_size()
            kept[place] = max(size, kept.get(place, 0))

    leaves = [layer for layer in module.modules() if not [*layer.children()]]
    hooks = [layer.register_forward_hook(note) for layer in leaves]
    try:
        with torch.enable_grad(), slow_paths(), saved_tensors_hooks(count, _never):
            call_with(module, {**given, **fixed}, samples[:1].inputs)
    finally:
        for hook in hooks:
            hook.remove()
    each = max(1, numbers[0], sum(kept.values()))
    size = max(1, min(len(samples), 1000, CHUNK_BYTES // each))
    return size, max(1, CHUNK_BYTES // (size * each))


def _never(_: None) -> Tensor:
    raise AssertionError("nothing is differentiated")


def _product(
    module: nn.Module,
    state: State,
    params: dict[str, Tensor],
    samples: Samples,
    weight: float,
) -> Callable[[State], State]:
    """Return the product with the Hessian of ``weight`` times the mean of some samples' losses."""
    gradient = grad(mean_loss(module, state, samples))

    def product(vector: State) -> dict[str, Tensor]:
        return {k: weight * t for k, t in jvp(gradient, (params,), (dict(vector),))[1].items()}

    mapped = vmap(product)
    return lambda vectors: mapped(without_padding(module, vectors))
