"""Influence function with the explicit Hessian.

Paper: Koh and Liang 2017, Understanding Black-box Predictions via Influence Functions, arXiv:1703.04730.
Formula: score[i, j] = g_j' (H + damping I)^-1 g_i, H the Hessian of the mean training loss at the final state of full run 0.
Cost: parameters^2 memory and parameters^3 time, in float64; for models of up to about 10,000 parameters.
Approximated: nothing but the model's own optimality; the damping makes H invertible and stands for training that has not converged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.hessian import hessian
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients


def attribute(task: Task, *, damping: float) -> Tensor:
    """Return g_j' (H + damping I)^-1 g_i.

    Args:
        task: The task.
        damping: Added to the diagonal of the Hessian.

    Returns:
        (train, test).
    """
    state = task.full[0].final
    matrix = hessian(task.module, state, task.train.inputs, task.train.labels)
    matrix.diagonal().add_(damping)
    right = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:  # the Hessian of a deep model need not be positive definite
        solved = torch.linalg.solve(matrix, right.double().T)
    else:
        solved = torch.cholesky_solve(right.double().T, factor)
    return gradient_products(
        task.module, state, task.train.inputs, task.train.labels, solved.T.to(right.dtype)
    )
