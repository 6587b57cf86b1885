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
Approximated: what the iterations have not reached, and the noise of mini-batches. The step is
shortened by the largest eigenvalue of (P + damping I)^-1 (A + damping I) where that is above 1, as
it must be to converge where layers go together; that takes some products with one vector. Of a
Hessian plus damping with negative eigenvalues there is no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from leaveout.attribution.kronecker import task_samples
from leaveout.attribution.task import Task
from leaveout.curvature.ekfac import ekfac
from leaveout.curvature.kinds import curvature_products
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients
from leaveout.seeds import generator

POWER_STEPS = 20
"""Steps of the power method that finds the largest eigenvalue."""
MARGIN = 1.1
"""By how much the power method may fall short."""
MUCH = 10.0
"""Times larger than any solution can be: the iterations have diverged."""


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
    state = task.full[0].final
    right = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
    solved = inverse_products(
        task, right, damping=damping, iterations=iterations, batch=batch, curvature=curvature
    )
    for block in task.train_blocks():
        yield gradient_products(task.module, state, block.inputs, block.labels, solved)


def inverse_products(
    task: Task,
    vectors: Tensor,
    *,
    damping: float,
    iterations: int = 20,
    batch: int = 0,
    curvature: str = "gauss_newton",
) -> Tensor:
    """Return nearly (A + damping I)^-1 v for rows v, (vectors, parameters)."""
    if iterations < 1 or batch < 0:
        raise LeaveoutError(
            f"astra: iterations = {iterations}, batch = {batch}: expected at least one iteration "
            "and no negative batch"
        )
    factored = ekfac(task_samples(task, "true")).to(vectors.dtype)
    total = len(task.train.ids)
    size = total if batch == 0 else min(batch, total)

    def precondition(rows: Tensor) -> Tensor:
        return factored.solve(rows, damping)

    uses = iterations * len(vectors) if size == total else 0
    everything = _products(task, np.arange(total), curvature, uses)
    x = precondition(vectors)
    step = 1 / max(1.0, _largest(task, everything, precondition, damping))
    by_id = np.argsort(task.train.ids)
    rng = generator(task.seed, task.setting, "astra batches", size)
    for _ in range(iterations - 1):
        product = everything
        if size < total:
            product = _products(task, by_id[rng.choice(total, size, replace=False)], curvature)
        residual = product(x).add_(x, alpha=damping).sub_(vectors)
        x -= step * precondition(residual)
    # |(A + damping I)^-1 v| <= |v| / damping, unless eigenvalues are negative
    bound = MUCH * vectors.norm(dim=1) / damping if damping > 0 else x.new_tensor(torch.inf)
    if not bool((x.norm(dim=1) <= bound).all()):
        raise NotComputableError("undefined", "the iterations diverge; raise the damping")
    return x


def _products(
    task: Task, rows: np.ndarray, curvature: str, uses: int = 0
) -> Callable[[Tensor], Tensor]:
    inputs, labels = task.train.inputs, task.train.labels
    chosen = torch.from_numpy(rows).to(labels.device)
    return curvature_products(
        curvature, task.module, task.full[0].final, inputs[chosen], labels[chosen], uses
    )


def _largest(
    task: Task,
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    damping: float,
) -> float:
    """Return about the largest eigenvalue of (P + damping I)^-1 (A + damping I), a bit more."""
    size = sum(p.numel() for p in task.module.parameters())
    start = generator(task.seed, task.setting, "astra power").standard_normal((1, size))
    vector = torch.from_numpy(start).to(task.train.inputs)
    found = 1.0
    for _ in range(POWER_STEPS):
        vector = vector / vector.norm()
        vector = precondition(product(vector).add_(vector, alpha=damping))
        found = float(vector.norm())
    return MARGIN * found
