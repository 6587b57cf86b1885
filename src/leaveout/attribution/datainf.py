"""DataInf: a closed-form inverse, by swapping mean and inverse.

Paper: Kwon et al. 2024, DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and
Diffusion Models, arXiv:2310.00902.
Formula: score[k, j] = sum over layers of g_k' x_j, x_j = mean_i [g_j - g_i <g_i, g_j> / (damping +
|g_i|^2)] / damping, which is the mean over training samples of (g_i g_i' + damping I)^-1 g_j, all
gradients those of the layer at the final state of full run 0. A layer is a module with parameters:
weight and bias together.
Cost: one pass over the gradients of the training samples, with n_train x n_test x parameters
products for each of two steps; where layers are linear and training samples not too many, products
of factors of each pair instead, and no gradient is formed.
Approximated: the inverse of a mean by the mean of inverses; the Hessian by the empirical Fisher;
layers are independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from leaveout.attribution.solved import solved_scores
from leaveout.attribution.task import Task
from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import Factor, gradient_factors
from leaveout.gradients.per_sample import gradient_chunks
from leaveout.problem.call import trained

PAIR_ROWS = 512
"""Training samples paired with all others at once."""


def attribute(task: Task, *, damping: float) -> Iterator[Tensor]:
    """Yield g_k' x_j.

    Args:
        task: The task.
        damping: Added to the diagonal of every sample's g_i g_i'; positive.

    Yields:
        (train, test), in blocks of rows.
    """
    _check(damping)
    state, train = task.full[0].final, task.train
    right = gradient_factors(task.module, state, task.test)
    left = gradient_factors(task.module, state, train) if right else None
    held = len(train) * len(task.test) * task.like.element_size() * len(left or [])
    if left and right and held <= task.memory / 2 and _pairs_are_cheaper(left, right):
        yield from _by_pairs(left, right, damping)
        return
    solve = partial(inverse_products, task, damping=damping)
    yield from solved_scores(task, solve, 6)


def inverse_products(task: Task, vectors: Tensor, *, damping: float) -> Tensor:
    """Return mean_i (g_i g_i' + damping I)^-1 v, layer by layer, for rows v."""
    _check(damping)
    layers = _layers(task)
    removed = torch.zeros_like(vectors)
    state, train = task.full[0].final, task.train
    for _, gradients in gradient_chunks(task.module, state, train):
        for part in layers:
            g = gradients[:, part]
            weights = (g @ vectors[:, part].T) / (damping + g.square().sum(1, keepdim=True))
            removed[:, part] += weights.T @ g
    return (vectors - removed / len(train)) / damping


def _check(damping: float) -> None:
    if not damping > 0:
        raise LeaveoutError(f"datainf: damping = {damping:g} is not positive; it is divided by")


def _layers(task: Task) -> list[slice]:
    """Return which of the flat trained parameters are each module's; they are in its order."""
    parts: list[slice] = []
    owner, start = None, 0
    for name, p in trained(task.module).items():
        module = name.rpartition(".")[0]
        if module == owner:
            parts[-1] = slice(parts[-1].start, start + p.numel())
        else:
            parts.append(slice(start, start + p.numel()))
        owner, start = module, start + p.numel()
    return parts


def _pairs_are_cheaper(left: list[Factor], right: list[Factor]) -> bool:
    """Return whether products of pairs take fewer operations than products with gradients."""
    n, m = len(left[0].inputs), len(right[0].inputs)
    pairs = sum(n * n * (f.inputs.shape[1] + f.deltas.shape[1] + m) for f in left)
    formed = sum(3 * n * m * f.inputs.shape[1] * f.deltas.shape[1] for f in left)
    return pairs < formed


def _dots(left: Factor, right: Factor, rows: slice) -> Tensor:
    products = left.inputs[rows] @ right.inputs.T
    if left.bias:
        products += 1
    return products.mul_(left.deltas[rows] @ right.deltas.T)


def _by_pairs(left: list[Factor], right: list[Factor], damping: float) -> Iterator[Tensor]:
    """Yield the scores from inner products of gradients, layer by layer."""
    n, m = len(left[0].inputs), len(right[0].inputs)
    weights = []
    for f, r in zip(left, right, strict=True):
        squares = (f.inputs.square().sum(1) + (1 if f.bias else 0)) * f.deltas.square().sum(1)
        dots = torch.cat([_dots(f, r, slice(i, i + PAIR_ROWS)) for i in range(0, n, PAIR_ROWS)])
        weights.append(dots.div_((n * (damping + squares))[:, None]))
    for start in range(0, n, PAIR_ROWS):
        rows = slice(start, start + PAIR_ROWS)
        total = left[0].deltas.new_zeros(len(left[0].inputs[rows]), m)
        for f, r, w in zip(left, right, weights, strict=True):
            total += _dots(f, r, rows)
            total -= _dots(f, f, rows) @ w
        yield total.div_(damping)
