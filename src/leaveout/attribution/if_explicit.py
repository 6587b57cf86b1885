"""Influence function with the explicit Hessian.

Paper: Koh and Liang 2017, Understanding Black-box Predictions via Influence Functions,
arXiv:1703.04730.
Formula: score[i, j] = g_j' (H + damping I)^-1 g_i, H the Hessian of the mean training loss at the
final state of full run 0.
Cost: parameters^2 memory and parameters^3 time, in float64; for models of up to about 10,000
parameters.
Approximated: nothing but the model's own optimality; the damping makes H invertible and stands for
training that has not converged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.hessian import hessian
from leaveout.errors import LeaveoutError
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients


def attribute(task: Task, *, damping: float) -> Iterator[Tensor]:
    """Yield g_j' (H + damping I)^-1 g_i.

    Args:
        task: The task.
        damping: Added to the diagonal of the Hessian.

    Yields:
        (train, test), in blocks of rows.
    """
    state, samples = task.full[0].final, (task.train.inputs, task.train.labels)
    right = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
    solved = _solve(lambda: hessian(task.module, state, *samples), damping, right.double().T)
    vectors = solved.T.to(right.dtype)
    for block in task.train_blocks():
        yield gradient_products(task.module, state, block.inputs, block.labels, vectors)


def _solve(build: Callable[[], Tensor], damping: float, right: Tensor) -> Tensor:
    """Solve (H + damping I) x = b for the columns of ``right``, by Cholesky where H allows it."""
    matrix = build()
    matrix.diagonal().add_(damping)
    # in place, for a second matrix of this size would double the memory; the transpose of a
    # symmetric matrix is itself, and already in the order of columns that LAPACK wants
    lower, failed = matrix.mT, torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if not failed:
        return torch.cholesky_solve(right, lower)
    # the Hessian of a deep model need not be positive definite
    matrix = build()
    matrix.diagonal().add_(damping)
    solution, failed = torch.linalg.solve_ex(matrix, right)
    if failed:
        raise LeaveoutError(
            f"if_explicit: the Hessian plus damping = {damping:g} is singular; raise the damping"
        )
    return torch.as_tensor(solution)
