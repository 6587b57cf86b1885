"""Influence function with conjugate gradients.

Paper: Koh and Liang 2017, arXiv:1703.04730, after Martens 2010 (Hessian-free optimisation).
Formula: score[i, j] = g_i' x_j with (H + damping I) x_j = g_j solved by a fixed number of conjugate
gradient steps, H the Hessian of the mean training loss at the final state of full run 0, or its
Gauss-Newton part, always over all training samples.
Cost: iterations x n_test Hessian-vector products; memory of a few n_test x parameters matrices.
Approximated: the inverse, in a Krylov space of ``iterations`` dimensions (the panel takes 10):
eigendirections in which g_j is small are not reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from leaveout.attribution.solved import solved_scores
from leaveout.attribution.task import Task
from leaveout.curvature.cg import conjugate_gradients
from leaveout.curvature.kinds import curvature_products


def attribute(
    task: Task, *, damping: float, iterations: int, curvature: str = "hessian"
) -> Iterator[Tensor]:
    """Yield g_i' x_j with x_j near (H + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the diagonal of the curvature.
        iterations: Conjugate gradient steps, at most.
        curvature: ``hessian`` or ``gauss_newton``.

    Yields:
        (train, test), in blocks of rows.
    """
    solve = inverse(task, damping=damping, iterations=iterations, curvature=curvature)
    yield from solved_scores(task, solve, 7)


def inverse(
    task: Task, *, damping: float, iterations: int, curvature: str = "hessian"
) -> Callable[[Tensor], Tensor]:
    """Return the function from rows v to rows near (H + damping I)^-1 v."""
    samples = (task.module, task.full[0].final, task.train)

    def solve(vectors: Tensor) -> Tensor:
        product = curvature_products(curvature, *samples, uses=iterations * len(vectors))
        return conjugate_gradients(lambda v: product(v).add_(v, alpha=damping), vectors, iterations)

    return solve
