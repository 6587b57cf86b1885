"""Influence function with LiSSA, a stochastic Neumann series.

Paper: Koh and Liang 2017, arXiv:1703.04730; Agarwal, Bullins and Hazan 2017, arXiv:1602.03943.
Formula: score[i, j] = g_i' e_j / scaling, with ``depth`` steps of e <- g_j + e - (H_b e + damping
e) / scaling, H_b the curvature of the mean loss of a random mini-batch of the training samples at
the final state of full run 0. The limit is (H + damping I)^-1 g_j.
Cost: depth x n_test Hessian-vector products over ``batch`` samples each; memory of a few n_test x
parameters matrices.
Approximated: the series ends after ``depth`` terms, which acts like a damping of scaling / depth:
directions with less curvature than that have not converged. Mini-batches replace the full training
set; they are the same for all test samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor

from leaveout.attribution.solved import solved_scores
from leaveout.attribution.task import Task
from leaveout.curvature.kinds import minibatch_products
from leaveout.curvature.lissa import lissa
from leaveout.errors import LeaveoutError
from leaveout.seeds import generator


def attribute(
    task: Task,
    *,
    depth: int = 100,
    batch: int = 100,
    scaling: float = 50.0,
    damping: float = 0.0,
    curvature: str = "hessian",
) -> Iterator[Tensor]:
    """Yield g_i' x_j with x_j near (H + damping I)^-1 g_j.

    Args:
        task: The task.
        depth: Steps of the recursion.
        batch: Training samples in a mini-batch; all of them where it is as many or more.
        scaling: Larger than half the largest eigenvalue of any mini-batch's curvature.
        damping: Added to the diagonal of the curvature.
        curvature: ``hessian`` or ``gauss_newton``.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        NotComputableError: The recursion diverges.
    """
    solve = inverse(
        task,
        depth=depth,
        batch=batch,
        scaling=scaling,
        damping=damping,
        curvature=curvature,
    )
    yield from solved_scores(task, solve, 6)


def inverse(
    task: Task,
    *,
    depth: int = 100,
    batch: int = 100,
    scaling: float = 50.0,
    damping: float = 0.0,
    curvature: str = "hessian",
) -> Callable[[Tensor], Tensor]:
    """Return the function from rows v to rows near (H + damping I)^-1 v."""
    if depth < 1 or batch < 1 or not scaling > 0:
        raise LeaveoutError(
            f"if_lissa: depth = {depth}, batch = {batch}, scaling = {scaling:g}: all must be "
            "positive"
        )
    train = task.train

    def solve(vectors: Tensor) -> Tensor:
        # whatever the vectors, they see the same mini-batches
        stream = generator(task.seed, task.setting, "lissa batches", batch)
        products = minibatch_products(
            curvature,
            task.module,
            task.full[0].final,
            train,
            min(batch, len(train)),
            stream,
        )
        return lissa(islice(products, depth), vectors, damping, scaling)

    return solve
