"""Products with curvature by plain autograd, vector by vector: for models torch.func can not run.

Such are recurrent layers, activation checkpoints, functions of a user's own with a backward alone,
and models that look at their values. It is exact too, but slower: H v is the gradient of <g, v>,
and J v the gradient in u of <J' u, v>, which does not depend on u.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from leaveout.errors import NotComputableError
from leaveout.problem.call import call, parts_of, slow_paths, work_with
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, count
from leaveout.training.memory import is_out_of_memory

State = Mapping[str, Tensor]
Given = TypeVar("Given")
Made = TypeVar("Made")

_UNUSED: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


def or_plain(
    work: Callable[[Given], Made], plain: Callable[[Given], Made]
) -> Callable[[Given], Made]:
    """Return work that goes another way from where the first one fails.

    A lack of memory is no such failure. What is wrong with a model itself fails in both.

    Args:
        work: By ``torch.func``.
        plain: The same, slower.

    Returns:
        Work that raises NotComputableError where both fail: torch has no second derivative.
    """
    failed = False

    def either(given: Given) -> Made:
        nonlocal failed
        if not failed:
            try:
                return work(given)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                failed = True
        with undefined_if_not_differentiated("twice"):
            return plain(given)

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


class PlainJacobian(NamedTuple):
    """Outputs of models, J v and J' c, as of :class:`leaveout.curvature.linearise.Linearised`."""

    outputs: Callable[[], Tensor]
    push: Callable[[State], Tensor]
    pull: Callable[[Tensor], dict[str, Tensor]]


def plain_jacobian(
    module: nn.Module,
    params: State,
    fixed: State,
    blocks: Sequence[Tree],
    rows_of: Callable[[Any], Tensor],
) -> PlainJacobian:
    """Return what linearises models by plain autograd, vector by vector.

    Args:
        module: The architecture, in evaluation mode.
        params: Stacked, (models, ...). One model serves any number of vectors; otherwise there is
            one vector a model.
        fixed: What else is replaced.
        blocks: Inputs, of some samples each.
        rows_of: From what the model returns, its outputs, (numbers, samples).
    """
    names = [*params]
    models = len(params[names[0]])

    def each(row: int, work: Callable[[Tensor, list[Tensor]], Tensor]) -> Iterator[Tensor]:
        """Yield what some work makes of the outputs of each block, at the model of a vector."""
        one = row if models > 1 else 0
        leaves = {name: params[name][one].detach().requires_grad_() for name in names}
        for block in blocks:

            def inside(block: Tree = block) -> Tensor:
                return work(rows_of(call(module, block)), [*leaves.values()])

            with torch.enable_grad(), slow_paths():
                yield work_with(module, {**leaves, **fixed}, inside)

    def outputs() -> Tensor:
        return torch.stack(
            [torch.cat([*each(k, lambda h, _: h.detach())], dim=1) for k in range(models)]
        )

    def push(vectors: State) -> Tensor:
        def moved(row: int) -> Tensor:
            def work(h: Tensor, leaves: list[Tensor]) -> Tensor:
                if not h.requires_grad:
                    return torch.zeros_like(h)
                u = torch.zeros_like(h, requires_grad=True)
                slope = _flat(h, leaves, u, create_graph=True)
                along = torch.cat([vectors[name][row].flatten() for name in names])
                (found,) = torch.autograd.grad(slope @ along, u, **_UNUSED)
                return found

            return torch.cat([*each(row, work)], dim=1)

        return torch.stack([moved(row) for row in range(len(vectors[names[0]]))])

    def pull(change: Tensor) -> dict[str, Tensor]:
        sizes = [count(block) for block in blocks]

        def pulled(row: int) -> Tensor:
            left = iter(change[row].split(sizes, dim=1))

            def work(h: Tensor, leaves: list[Tensor]) -> Tensor:
                along = next(left)
                if not h.requires_grad:
                    return torch.cat([torch.zeros_like(leaf).flatten() for leaf in leaves])
                return _flat(h, leaves, along)

            return torch.stack([*each(row, work)]).sum(0)

        found = torch.stack([pulled(row) for row in range(len(change))])
        shapes = [params[name].shape[1:] for name in names]
        parts = found.split([shape.numel() for shape in shapes], dim=1)
        return {n: p.view(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}

    return PlainJacobian(outputs, push, pull)


def _flat(value: Tensor, leaves: list[Tensor], along: Tensor | None = None, **kept: Any) -> Tensor:
    """Return the gradient in all parameters, (parameters,)."""
    found = torch.autograd.grad(value, leaves, along, **_UNUSED, **kept)
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
