"""Grad-Cos: cosine of the gradients of a training and a test sample, at one trained model.

Paper: Charpiat et al. 2019, Input Similarity from the Neural Network Perspective (NeurIPS).
Formula: score[i, j] = <g_i, g_j> / (|g_i| |g_j|) at the final state of full run 0.
Cost: as Grad-Dot.
Approximated: magnitudes are discarded, so a sample already fitted counts as much as one that is
not. A zero gradient has cosine 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.gradients.summed import summed_dots


def attribute(task: Task) -> Iterator[Tensor]:
    """Yield the cosine of g_i and g_j, (train, test), in blocks of rows."""
    state, test = task.full[0].final, task.test
    yield from summed_dots(
        task.module, [state], [1.0], task.train_blocks(), test, cosine=True, room=task.room
    )
