"""Influence function with the explicit Hessian, or Gauss-Newton matrix.

Paper: Koh and Liang 2017, Understanding Black-box Predictions via Influence Functions,
arXiv:1703.04730.
Formula: score[i, j] = g_j' (H + damping I)^-1 g_i, H the Hessian of the mean training loss at the
final state of full run 0, or its Gauss-Newton part.
Cost: parameters^2 memory and parameters^3 time, in float64; for models of up to about 10,000
parameters.
Approximated: only that the model is at an optimum; the damping makes H invertible and accounts for
training that has not converged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from leaveout.attribution.solved import solved_scores
from leaveout.attribution.task import Task
from leaveout.curvature.hessian import hessian
from leaveout.curvature.kinds import check_kind
from leaveout.errors import NotComputableError
from leaveout.gradients.per_sample import n_parameters


def attribute(task: Task, *, damping: float, curvature: str = "hessian") -> Iterator[Tensor]:
    """Yield g_j' (H + damping I)^-1 g_i.

    Args:
        task: The task.
        damping: Added to the diagonal of the curvature.
        curvature: ``hessian`` or ``gauss_newton``.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        NotComputableError: The matrix takes too much memory, or with the damping it is singular.
    """
    solve = inverse(task, damping=damping, curvature=curvature)
    yield from solved_scores(task, solve, 8)


def inverse(
    task: Task, *, damping: float, curvature: str = "hessian"
) -> Callable[[Tensor], Tensor]:
    """Factor the matrix, and return the function from rows v to rows (H + damping I)^-1 v."""
    check_kind(curvature)
    size = n_parameters(task.module)
    # the matrix, and a second copy where it is not positive definite
    task.need(2.0 * 8 * size**2, f"the {curvature} of {size:,}^2 numbers in float64")
    samples = task.train

    def build() -> Tensor:
        matrix = hessian(task.module, task.full[0].final, samples, curvature)
        matrix.diagonal().add_(damping)
        return matrix

    solve = _cholesky(build()) or _lu(build())
    if solve is None:
        raise NotComputableError(
            "undefined", f"the {curvature} plus damping = {damping:g} is singular"
        )
    return lambda vectors: solve(vectors.double().T).T.to(vectors.dtype)


def _cholesky(matrix: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Factor a positive definite matrix in its own memory; return the function from b to x."""
    # in place, for a second matrix of this size would double the memory; the transpose of a
    # symmetric matrix is itself, and already in the order of columns that LAPACK wants
    lower, failed = matrix.mT, torch.zeros((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    return None if failed else lambda right: torch.cholesky_solve(right, lower)


def _lu(matrix: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Do the same for any matrix: the Hessian of a deep model need not be positive definite."""
    factors, pivots, failed = torch.linalg.lu_factor_ex(matrix)
    return None if failed else lambda right: torch.linalg.lu_solve(factors, pivots, right)
