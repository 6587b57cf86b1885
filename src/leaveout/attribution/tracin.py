"""TracIn as published in the panel: Grad-Dot summed over the final models of several full runs.

Paper: Pruthi et al. 2020, arXiv:2002.08484, as benchmarked by Deng et al. 2024 (dattri): not a
trajectory but an ensemble of seeds.
Formula: score[i, j] = sum over runs r of weight x <g_i(r), g_j(r)>, at the final state of full run
r.
Cost: Grad-Dot times the number of runs; what a first linear layer sees, the samples, is multiplied
once for all runs.
Approximated: the steps of training are replaced by the final models; see tracin_cp for the
trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.errors import LeaveoutError
from leaveout.gradients.last_layer import squared_norms
from leaveout.gradients.summed import summed_dots


def attribute(task: Task, *, runs: int, weight: float) -> Iterator[Tensor]:
    """Sum Grad-Dot over full runs.

    Args:
        task: The task.
        runs: How many full runs, from the first on.
        weight: Factor of each; it changes the scale of the scores, not their order.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        LeaveoutError: The setting has fewer full runs.
    """
    _check(task, runs)
    states, test = [t.final for t in task.full[:runs]], task.test
    yield from summed_dots(
        task.module, states, [weight] * runs, task.train_blocks(), test, room=task.room
    )


def self_influence(task: Task, *, runs: int, weight: float) -> Tensor:
    """Sum |g_i|^2 over full runs, (train,)."""
    _check(task, runs)
    samples = task.train
    total = task.like.new_zeros(len(task.train))
    for trajectory in task.full[:runs]:
        total += weight * squared_norms(task.module, trajectory.final, samples, "all")
    return total


def _check(task: Task, runs: int) -> None:
    if not 1 <= runs <= len(task.full):
        raise LeaveoutError(
            f"tracin.runs: {runs} were asked for, {task.setting} has {len(task.full)} full runs; "
            "lower tracin.runs in the methods file or raise full.runs in the setting"
        )
