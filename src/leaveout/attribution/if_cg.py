"""Influence function with conjugate gradients.

Paper: Koh and Liang 2017, arXiv:1703.04730, after Martens 2010 (Hessian-free optimisation).
Formula: score[i, j] = g_i' x_j with (H + damping I) x_j = g_j solved by a fixed number of conjugate
gradient steps, H the Hessian of the mean training loss at the final state of full run 0, always
over all training samples.
Cost: iterations x n_test Hessian-vector products; memory of a few n_test x parameters matrices.
Approximated: the inverse, by the Krylov space of so many steps (the panel takes 10):
eigendirections with little of g_j are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.cg import conjugate_gradients
from leaveout.curvature.hvp import hessian_products
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients


def attribute(task: Task, *, damping: float, iterations: int) -> Iterator[Tensor]:
    """Yield g_i' x_j with x_j near (H + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the diagonal of the Hessian.
        iterations: Conjugate gradient steps, at most.

    Yields:
        (train, test), in blocks of rows.
    """
    state, samples = task.full[0].final, (task.train.inputs, task.train.labels)

    def product(vectors: Tensor) -> Tensor:
        return hessian_products(task.module, state, *samples, vectors).add_(vectors, alpha=damping)

    right = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
    solved = conjugate_gradients(product, right, iterations)
    for block in task.train_blocks():
        yield gradient_products(task.module, state, block.inputs, block.labels, solved)
