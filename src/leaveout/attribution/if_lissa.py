"""Influence function with LiSSA, a stochastic Neumann series.

Paper: Koh and Liang 2017, arXiv:1703.04730; Agarwal, Bullins and Hazan 2017, arXiv:1602.03943.
Formula: score[i, j] = g_i' e_j / scaling, with ``depth`` steps of e <- g_j + e - (H_b e + damping
e) / scaling, H_b the curvature of the mean loss of a random mini-batch of the training samples at
the final state of full run 0. The limit is (H + damping I)^-1 g_j.
Cost: depth x n_test Hessian-vector products over ``batch`` samples each; memory of a few n_test x
parameters matrices.
Approximated: the series ends after ``depth`` terms, which damps like scaling / depth: directions of
less curvature than that have not converged. A mini-batch stands for all samples. All test samples
see the same mini-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.kinds import curvature_products
from leaveout.curvature.lissa import lissa
from leaveout.errors import LeaveoutError
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients
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
    state = task.full[0].final
    right = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
    solved = inverse_products(
        task,
        right,
        depth=depth,
        batch=batch,
        scaling=scaling,
        damping=damping,
        curvature=curvature,
    )
    for block in task.train_blocks():
        yield gradient_products(task.module, state, block.inputs, block.labels, solved)


def inverse_products(
    task: Task,
    vectors: Tensor,
    *,
    depth: int = 100,
    batch: int = 100,
    scaling: float = 50.0,
    damping: float = 0.0,
    curvature: str = "hessian",
) -> Tensor:
    """Return nearly (H + damping I)^-1 v for rows v, (vectors, parameters)."""
    if depth < 1 or batch < 1 or not scaling > 0:
        raise LeaveoutError(
            f"if_lissa: depth = {depth}, batch = {batch}, scaling = {scaling:g}: all must be "
            "positive"
        )
    return lissa(_products(task, depth, batch, curvature), vectors, damping, scaling)


def _products(
    task: Task, depth: int, batch: int, curvature: str
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the products with the curvature of each step's mini-batch, drawn by sample id."""
    inputs, labels = task.train.inputs, task.train.labels
    rng = generator(task.seed, task.setting, "lissa batches", batch)
    by_id = np.argsort(task.train.ids)
    for _ in range(depth):
        drawn = rng.choice(len(by_id), min(batch, len(by_id)), replace=False)
        chosen = torch.from_numpy(by_id[drawn]).to(labels.device)
        yield curvature_products(
            curvature, task.module, task.full[0].final, inputs[chosen], labels[chosen]
        )
