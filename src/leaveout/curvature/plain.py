"""Products with curvature by plain autograd, vector by vector: for models torch.func can not run.

Such are recurrent layers, activation checkpoints, functions of a user's own with a backward alone,
and models that look at their values. It is exact too, but slower: H v is the gradient of <g, v>,
and J v the gradient in u of <J' u, v>, which does not depend on u.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaveout.problem.call import call, parts_of, slow_paths
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
        return plain(vectors)

    return either


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

    def work(leaves: list[Tensor], part: Samples, own: nn.Module) -> Tensor:
        loss = part.losses(call(own, part.inputs)).sum() / len(samples)
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

    def work(leaves: list[Tensor], part: Samples, own: nn.Module) -> Tensor:
        outputs = known.outputs(call(own, part.inputs))
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


class _Inside(nn.Module):
    """Work done while a module has other parameters: activation checkpoints run it again."""

    def __init__(self, module: nn.Module, work: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.module, self.work = module, work

    def forward(self) -> Tensor:
        return self.work(self.module)


def _summed(
    module: nn.Module,
    state: State,
    samples: Samples,
    size: int,
    vectors: Tensor,
    work: Callable[[list[Tensor], Samples, nn.Module], Tensor],
) -> Tensor:
    """Return the sum over parts of the samples of some work on them, (vectors, parameters)."""
    params, fixed = parts_of(module, state)
    given = {name: value.requires_grad_() for name, value in params.items()}
    leaves = [*given.values()]
    swapped = {f"module.{name}": value for name, value in {**given, **fixed}.items()}
    out = torch.zeros_like(vectors)
    for part in samples.split(size):
        inside = _Inside(module, partial(work, leaves, part))
        with torch.enable_grad(), slow_paths():
            out += functional_call(inside, swapped, ()).detach()
    return out
