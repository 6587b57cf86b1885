"""Products with curvature by plain autograd, vector by vector: for models torch.func can not run.

Such are recurrent layers, activation checkpoints, functions of a user's own with a backward alone,
and models that look at their values. It is exact too, but slower: H v is the gradient of <g, v>,
and J v the gradient in u of <J' u, v>, which does not depend on u.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leaveout.errors import NotComputableError
from leaveout.problem.call import call, parts_of, slow_paths, work_with
from leaveout.problem.samples import Samples
from leaveout.training.memory import is_out_of_memory

State = Mapping[str, Tensor]
Products = Callable[[Tensor], Tensor]


def or_plain(products: Products, plain: Products) -> Products:
    """Return products that take another way from where the first one fails.

    A lack of memory is no such failure. What is wrong with a model itself fails in both.

    Args:
        products: From rows v to rows A v, (vectors, parameters).
        plain: The same, slower.

    Returns:
        Products that raise NotComputableError where both fail: torch has no second derivative.
    """
    failed = False

    def either(vectors: Tensor) -> Tensor:
        nonlocal failed
        if not failed:
            try:
                return products(vectors)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                failed = True
        with undefined_if_not_differentiated("twice"):
            return plain(vectors)

    return either


@contextmanager
def undefined_if_not_differentiated(how: str) -> Iterator[None]:
    """Say that a method is undefined for a model that runs, but that torch can't differentiate.

    A lack of memory is no such failure.

    Args:
        how: In which way.

    Raises:
        NotComputableError: It can't, with torch's own words.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NotComputableError(
            "undefined", f"torch does not differentiate the model {how}: {error}"
        ) from error


def plain_hessian(
    module: nn.Module, state: State, samples: Samples, size: int, vectors: Tensor
) -> Tensor:
    """Return H v, H the Hessian of the mean loss; see :func:`leaveout.curvature.hvp.hessian_map`.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose losses the mean is of.
        size: Samples at once.
        vectors: (vectors, parameters).
    """

    def work(leaves: list[Tensor], part: Samples) -> Tensor:
        loss = part.losses(call(module, part.inputs)).sum() / len(samples)
        slope = _flat(loss, leaves, create_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(vectors)
        return torch.stack([_flat(slope @ v, leaves, retain_graph=True) for v in vectors])

    return _summed(module, state, samples, size, vectors, work)


def plain_gauss_newton(
    module: nn.Module, state: State, samples: Samples, size: int, vectors: Tensor
) -> Tensor:
    """Return G v, G the Gauss-Newton matrix of the mean loss; arguments of :func:`plain_hessian`.

    Raises:
        NotComputableError: The objective states no curvature.
    """
    known = samples.objective.need("likelihood", "this needs its curvature in the outputs")

    def work(leaves: list[Tensor], part: Samples) -> Tensor:
        outputs = known.outputs(call(module, part.inputs))
        if not outputs.requires_grad:
            return torch.zeros_like(vectors)
        fixed, u = outputs.detach(), torch.zeros_like(outputs, requires_grad=True)
        slope = _flat(outputs, leaves, u, create_graph=True)
        found = []
        for v in vectors:
            (moved,) = torch.autograd.grad(
                slope @ v, u, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            change = known.curve(fixed, part.targets, moved) / len(samples)
            found.append(_flat(outputs, leaves, change, retain_graph=True))
        return torch.stack(found)

    return _summed(module, state, samples, size, vectors, work)


def _flat(value: Tensor, leaves: list[Tensor], along: Tensor | None = None, **kept: Any) -> Tensor:
    """Return the gradient in all parameters, (parameters,)."""
    found = torch.autograd.grad(
        value, leaves, along, allow_unused=True, materialize_grads=True, **kept
    )
    return torch.cat([gradient.flatten() for gradient in found])


def _summed(
    module: nn.Module,
    state: State,
    samples: Samples,
    size: int,
    vectors: Tensor,
    work: Callable[[list[Tensor], Samples], Tensor],
) -> Tensor:
    """Return the sum over parts of the samples of some work on them, (vectors, parameters)."""
    params, fixed = parts_of(module, state)
    given = {name: value.requires_grad_() for name, value in params.items()}
    leaves = [*given.values()]
    out = torch.zeros_like(vectors)
    for part in samples.split(size):
        with torch.enable_grad(), slow_paths():
            now = {**given, **fixed}
            out += work_with(module, now, partial(work, leaves, part)).detach()
    return out
