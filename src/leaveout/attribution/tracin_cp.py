"""TracInCP: Grad-Dot summed along one training trajectory, weighted by its learning rates.

Paper: Pruthi et al. 2020, Estimating Training Data Influence by Tracing Gradient Descent,
arXiv:2002.08484 (Section 3.2).
Formula: score[i, j] = sum over checkpoints c of lr_c x <g_i(c), g_j(c)>, along full run 0.
Cost: Grad-Dot times the number of checkpoints; what a first linear layer sees, the samples, is
multiplied once for all checkpoints.
Approximated: all steps between two checkpoints are treated as equal, and each step to first order
in its learning rate. Steps are taken for SGD's: for Adam and AdamW, momentum and clipping too, it
sums the inner products that plain SGD would have at these checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.gradients.factors import Factor
from leaveout.gradients.last_layer import squared_norms
from leaveout.gradients.projection_of_factors import projected_factor
from leaveout.gradients.summed import summed_dots


def attribute(task: Task, *, layers: str = "all", projection: int = 0) -> Iterator[Tensor]:
    """Yield Grad-Dot summed over checkpoints of full run 0, (train, test), in blocks of rows.

    Args:
        task: The task.
        layers: ``all``, or ``last`` for the gradient in the last linear layer alone.
        projection: With ``last``, how many numbers of a gradient a random projection keeps at each
            checkpoint (the paper's appendix); 0 for no projection.
    """
    trajectory, test = task.full[0], task.test

    def projected(c: int, factor: Factor) -> Factor:
        identity = (task.setting, "tracin_cp projection", c)
        return projected_factor(factor, projection, task.seed, *identity)

    yield from summed_dots(
        task.module,
        trajectory.states,
        trajectory.learning_rates,
        task.train_blocks(),
        test,
        layers,
        projected if projection else None,
        room=task.room,
    )


def self_influence(task: Task, *, layers: str = "all", projection: int = 0) -> Tensor:
    """Return |g_i|^2 summed over checkpoints, between the same projections, (train,)."""
    trajectory, samples = task.full[0], task.train
    total = task.like.new_zeros(len(task.train))
    for c, (state, rate) in enumerate(
        zip(trajectory.states, trajectory.learning_rates, strict=True)
    ):
        identity = (task.setting, "tracin_cp projection", c)
        total += rate * squared_norms(
            task.module, state, samples, layers, projection, task.seed, *identity
        )
    return total
