"""Grad-Dot: inner product of the gradients of a training and a test sample, at one trained model.

Paper: Charpiat et al. 2019, Input Similarity from the Neural Network Perspective (NeurIPS).
Formula: score[i, j] = <g_i, g_j>, g the gradient of a sample's loss at the final state of full run
0.
Cost: one backward pass a sample; products factor for linear layers, elsewhere they cost n_train x
n_test x parameters.
Approximated: the inverse Hessian of the influence function is replaced by the identity.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.gradients.last_layer import squared_norms
from leaveout.gradients.summed import summed_dots


def attribute(task: Task, *, layers: str = "all") -> Iterator[Tensor]:
    """Yield <g_i, g_j>, (train, test), in blocks of rows.

    Args:
        task: The task.
        layers: ``all``, or ``last`` for the gradient in the last linear layer alone.
    """
    state, test = task.full[0].final, task.test
    yield from summed_dots(
        task.module, [state], [1.0], task.train_blocks(), test, layers, room=task.room
    )


def self_influence(task: Task, *, layers: str = "all") -> Tensor:
    """Return |g_i|^2, (train,)."""
    samples = task.train
    return squared_norms(task.module, task.full[0].final, samples, layers)
