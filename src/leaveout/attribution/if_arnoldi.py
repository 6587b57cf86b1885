"""Influence function in the leading eigenspace, found by Arnoldi's iteration.

Paper: Schioppa et al. 2021, Scaling Up Influence Functions, arXiv:2112.03052.
Formula: score[i, j] = sum_k (g_i' u_k) (u_k' g_j) / (l_k + damping), with the Ritz pairs (l_k, u_k)
of largest |l_k| of the curvature of the mean training loss at the final state of full run 0, in the
Krylov space of a random vector.
Cost: ``iterations`` Hessian-vector products, for all samples together, and memory for as many
vectors.
Approximated: the part of a gradient outside the Krylov space is dropped, although the inverse would
magnify it. Negative eigenvalues are kept, as in the inverse of H + damping I; no root is taken of
them, so scores are real. Directions where l_k + damping is 0 up to rounding are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.arnoldi import ritz_pairs
from leaveout.curvature.kinds import curvature_products
from leaveout.errors import LeaveoutError
from leaveout.gradients.per_sample import gradient_products, n_parameters
from leaveout.seeds import generator


def attribute(
    task: Task,
    *,
    damping: float,
    iterations: int,
    projections: int = 100,
    curvature: str = "hessian",
) -> Iterator[Tensor]:
    """Yield g_i' U' (L + damping I)^-1 U g_j.

    Args:
        task: The task.
        damping: Added to the Ritz values.
        iterations: Dimension of the Krylov space.
        projections: Ritz pairs kept, at most; the panel's 100 are all of 50 iterations.
        curvature: ``hessian`` or ``gauss_newton``.

    Yields:
        (train, test), in blocks of rows.
    """
    state = task.full[0].final
    weights, rows = _pairs(task, damping, iterations, projections, curvature)
    test = gradient_products(task.module, state, task.test, rows)
    for block in task.train_blocks():
        train = gradient_products(task.module, state, block, rows)
        yield (train * weights) @ test.T


def inverse(
    task: Task,
    *,
    damping: float,
    iterations: int,
    projections: int = 100,
    curvature: str = "hessian",
) -> Callable[[Tensor], Tensor]:
    """Find the Krylov space, and return the function from rows v to U' (L + damping I)^-1 U v."""
    weights, rows = _pairs(task, damping, iterations, projections, curvature)
    return lambda vectors: ((vectors @ rows.T) * weights) @ rows


def _pairs(
    task: Task, damping: float, iterations: int, projections: int, curvature: str
) -> tuple[Tensor, Tensor]:
    """Return 1 / (l_k + damping), (kept,), and the Ritz vectors u_k, (kept, parameters)."""
    if iterations < 1 or projections < 1:
        raise LeaveoutError(
            f"if_arnoldi: iterations = {iterations}, projections = {projections}: both must be "
            "positive"
        )
    like, size = task.like, n_parameters(task.module)
    count = min(iterations, size)
    task.need(
        2.0 * count * size * like.element_size(), f"a Krylov space of {count} x {size:,} numbers"
    )
    product = curvature_products(curvature, task.module, task.full[0].final, task.train)
    drawn = generator(task.seed, task.setting, "arnoldi start").standard_normal(size)
    start = torch.from_numpy(drawn).to(like)
    values, rows = (found[:projections] for found in ritz_pairs(product, start, iterations))
    damped = values + damping
    kept = damped.abs() > torch.finfo(like.dtype).eps * values.abs().max()
    return damped[kept].reciprocal().to(like.dtype), rows[kept]
