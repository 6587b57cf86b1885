"""TracInCP: Grad-Dot summed along one training trajectory, weighted by its learning rates.

Paper: Pruthi et al. 2020, Estimating Training Data Influence by Tracing Gradient Descent,
arXiv:2002.08484 (Section 3.2).
Formula: score[i, j] = sum over checkpoints c of lr_c x <g_i(c), g_j(c)>, along full run 0.
Cost: Grad-Dot times the number of checkpoints.
Approximated: the steps between two checkpoints are taken to be alike, and each step to be first
order in its learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.gradients.per_sample import gradient_dots


def attribute(task: Task) -> Iterator[Tensor]:
    """Yield Grad-Dot summed over checkpoints of full run 0, (train, test), in blocks of rows."""
    trajectory, test = task.full[0], (task.test.inputs, task.test.labels)
    for block in task.train_blocks():
        total = block.inputs.new_zeros(len(block.ids), len(task.test.ids))
        for state, rate in zip(trajectory.states, trajectory.learning_rates, strict=True):
            total += rate * gradient_dots(task.module, state, (block.inputs, block.labels), test)
        yield total
