"""Influence function with conjugate gradients.

Paper: Koh and Liang 2017, arXiv:1703.04730, after Martens 2010 (Hessian-free optimisation).
Formula: score[i, j] = g_i' x_j with (H + damping I) x_j = g_j solved by a fixed number of conjugate
gradient steps, H the Hessian of the mean training loss at the final state of full run 0, or its
Gauss-Newton part, always over all training samples.
Cost: iterations x n_test Hessian-vector products; memory of a few n_test x parameters matrices.
Approximated: the inverse, by the Krylov space of so many steps (the panel takes 10):
eigendirections with little of g_j are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.cg import conjugate_gradients
from leaveout.curvature.kinds import curvature_products
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients


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
    state = task.full[0].final
    right = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
    solved = inverse_products(
        task, right, damping=damping, iterations=iterations, curvature=curvature
    )
    for block in task.train_blocks():
        yield gradient_products(task.module, state, block.inputs, block.labels, solved)


def inverse_products(
    task: Task, vectors: Tensor, *, damping: float, iterations: int, curvature: str = "hessian"
) -> Tensor:
    """Return nearly (H + damping I)^-1 v for rows v, (vectors, parameters)."""
    samples, uses = (task.train.inputs, task.train.labels), iterations * len(vectors)
    product = curvature_products(curvature, task.module, task.full[0].final, *samples, uses)
    return conjugate_gradients(lambda v: product(v).add_(v, alpha=damping), vectors, iterations)
