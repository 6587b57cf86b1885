"""Gradients of each sample alone, whatever the model does: mapped where it can be, else in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from leaveout.problem.call import slow_paths, work_with
from leaveout.problem.trees import Tree, rows, tensors, tree_map

State = Mapping[str, Tensor]

Value = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch of one sample, the number that is differentiated."""


def sample_gradients(
    module: nn.Module, params: State, fixed: State, value: Value, samples: Tree
) -> tuple[Tensor, ...]:
    """Differentiate a number of each sample in some parameters.

    Args:
        module: The architecture, in evaluation mode.
        params: Where the gradients are taken.
        fixed: Other parameters and buffers that are replaced.
        value: What is differentiated.
        samples: A tree of tensors with a row a sample.

    Returns:
        (samples, numbers) of each parameter, in their order.

    Example:
        >>> value = lambda model, x: model(x).square().sum()
        >>> [g.shape for g in sample_gradients(module, params, {}, value, torch.ones(5, 3))]
    """

    def loss(p: State, sample: Tree) -> Tensor:
        found: Tensor = work_with(module, {**p, **fixed}, lambda: value(module, sample))
        return found

    found = tensors(samples)

    def mapped(*row: Tensor) -> tuple[Tensor, ...]:
        left = iter(row)
        sample = tree_map(lambda v: next(left)[None] if v.dim() else v, samples)
        gradients = grad(loss)(dict(params), sample)
        return tuple(gradients[name].flatten() for name in params)

    with torch.enable_grad(), slow_paths():
        try:
            return tuple(vmap(mapped)(*found))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it looks at values, or holds what neither vmap nor grad knows
            each = [
                gradients_alone(module, params, fixed, value, rows(samples, slice(i, i + 1)))
                for i in range(len(found[0]))
            ]
            return tuple(torch.stack(column) for column in zip(*each, strict=True))


def gradients_alone(
    module: nn.Module, params: State, fixed: State, value: Value, sample: Tree
) -> tuple[Tensor, ...]:
    """Differentiate in some parameters by plain autograd; see :func:`sample_gradients`.

    Returns:
        (numbers,) of each parameter, in their order.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}

    def work() -> None:
        total = value(module, sample)
        if total.requires_grad:
            total.backward()

    with torch.enable_grad(), slow_paths():
        work_with(module, {**leaves, **fixed}, work)
    return tuple(_dense(leaf).flatten() for leaf in leaves.values())


def _dense(leaf: Tensor) -> Tensor:
    gradient = leaf.grad
    if gradient is None:
        return torch.zeros_like(leaf).detach()
    return gradient.to_dense() if gradient.is_sparse else gradient
