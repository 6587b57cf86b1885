"""ASTRA: Neumann iterations preconditioned by EK-FAC.

Paper: Wang et al. 2025, Better Training Data Attribution via Better Inverse Hessian-Vector
Products, arXiv:2507.14740.
Formula: score[i, j] = g_i' x_j after ``iterations`` steps of
x <- x - step (P + damping I)^-1 (A_b x + damping x - g_j), P the EK-FAC of the true Fisher over all
training samples and A_b the Gauss-Newton matrix (or Hessian) of the mean loss of a mini-batch, at
the final state of full run 0.
The first step is a whole one from 0, so that one iteration is EK-FAC's answer; the limit, with all
samples in a batch, is (A + damping I)^-1 g_j.
Cost: EK-FAC once, then iterations x n_test curvature-vector products over ``batch`` samples each,
and as many in the preconditioner's basis; memory of a few n_test x parameters matrices.
Approximated: the iterations stop before the limit, and mini-batches are noisy. The step is
shortened by the largest eigenvalue of (P + damping I)^-1 (A + damping I) where that is above 1, as
it must be to converge where the curvature couples layers; that takes some products with one vector.
Where the Hessian plus damping has negative eigenvalues there is no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, repeat

import torch
from torch import Tensor

from leaveout.attribution.if_kfac import fisher_samples
from leaveout.attribution.solved import solved_scores
from leaveout.attribution.task import Task
from leaveout.curvature.ekfac import ekfac
from leaveout.curvature.kinds import curvature_products, minibatch_products
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import n_parameters
from leaveout.seeds import generator

POWER_STEPS = 20
"""Steps of the power method that finds the largest eigenvalue."""
MARGIN = 1.1
"""The power method's estimate is multiplied by this, as it may be too small."""
MUCH = 10.0
"""An answer so many times longer than any solution means that the iterations have diverged."""


def attribute(
    task: Task,
    *,
    damping: float,
    iterations: int = 20,
    batch: int = 0,
    curvature: str = "gauss_newton",
) -> Iterator[Tensor]:
    """Yield g_i' x_j with x_j near (A + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the diagonal of the curvature and of its preconditioner.
        iterations: Steps.
        batch: Training samples in a step; 0 takes all of them.
        curvature: ``gauss_newton`` or ``hessian``.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        NotComputableError: The iterations diverge.
    """
    solve = inverse(task, damping=damping, iterations=iterations, batch=batch, curvature=curvature)
    yield from solved_scores(task, solve, 10)


def inverse(
    task: Task,
    *,
    damping: float,
    iterations: int = 20,
    batch: int = 0,
    curvature: str = "gauss_newton",
) -> Callable[[Tensor], Tensor]:
    """Take EK-FAC, and return the function from rows v to rows near (A + damping I)^-1 v."""
    if iterations < 1 or batch < 0:
        raise LeaveoutError(
            f"astra: iterations = {iterations}, batch = {batch}: expected at least one iteration "
            "and no negative batch"
        )
    train, model = task.train, (task.module, task.full[0].final)
    factored = ekfac(fisher_samples(task, "true")).to(task.like.dtype)
    total = len(train)
    size = total if batch == 0 else min(batch, total)

    def precondition(rows: Tensor) -> Tensor:
        return factored.solve(rows, damping)

    def solve(vectors: Tensor) -> Tensor:
        uses = iterations * len(vectors) if size == total else 0
        everything = curvature_products(curvature, *model, train, uses)
        stream = generator(task.seed, task.setting, "astra batches", size)
        batches = minibatch_products(curvature, *model, train, size, stream)
        x = precondition(vectors)
        step = 1 / max(1.0, _largest(task, everything, precondition, damping))
        for product in islice(batches if size < total else repeat(everything), iterations - 1):
            residual = product(x).add_(x, alpha=damping).sub_(vectors)
            x -= step * precondition(residual)
        # |(A + damping I)^-1 v| <= |v| / damping, unless eigenvalues are negative
        bound = MUCH * vectors.norm(dim=1) / damping if damping > 0 else x.new_tensor(torch.inf)
        if not bool((x.norm(dim=1) <= bound).all()):
            raise NotComputableError("undefined", "the iterations diverge; raise the damping")
        return x

    return solve


def _largest(
    task: Task,
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    damping: float,
) -> float:
    """Return a little more than the largest eigenvalue of (P + damping I)^-1 (A + damping I)."""
    size = n_parameters(task.module)
    start = generator(task.seed, task.setting, "astra power").standard_normal((1, size))
    vector = torch.from_numpy(start).to(task.like)
    found = 1.0
    for _ in range(POWER_STEPS):
        vector = vector / vector.norm()
        vector = precondition(product(vector).add_(vector, alpha=damping))
        found = float(vector.norm())
    return MARGIN * found
