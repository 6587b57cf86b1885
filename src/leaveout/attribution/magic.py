"""MAGIC: the exact derivative of the test loss, through all of training, in each sample's weight.

Paper: Ilyas and Engstrom 2025, arXiv:2504.16430.
Formula: score[i, j] = -d loss_j(w_T) / d weight_i at weight 1, w_T the end of full run 0 as trained
with the batch's loss sum_b weight_b loss_b / sum_b weight_b count_b (counts are 1, or what the
objective counts): to first order what removing i from its batches adds to the loss of j, in the
loss's own units (nats, for cross-entropy). Momentum, Adam's averages, weight decay, schedules,
clipping, dropout as drawn and batch norm are differentiated as they are.
Cost: training twice more, and a Hessian-vector product on the batch for every step and test sample.
Memory: one n_test x parameters matrix, two with momentum, three with Adam; the states of one epoch.
Approximated: only removal, by its derivative. The scores describe one run; how well they describe
others depends on how alike runs are. They predict leave-one-out that shares the run's batches
(`pairing: mask`): with the `shuffle` of that ground truth, they are the upper bound for other
methods.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.curvature.unroll import final_gradients, unroll, unroll_bytes
from leaveout.curvature.unroll_any import Curvature
from leaveout.training.replay import Replay
from leaveout.training.trials import Trial


def attribute(task: Task, *, shuffle: bool) -> Tensor:
    """Return minus the derivative of each test loss in each training sample's weight.

    Args:
        task: The task.
        shuffle: Whether to go through full run 0 itself, or through its twin that sees the samples
            in file order, as leave-one-out does with `shuffle: false`.

    Returns:
        (train, test).

    Raises:
        NotComputableError: It would take too long or too much memory, or the run was trained in
            bfloat16.
    """
    return unrolled(task, replace(task.full[0].trial, shuffle=shuffle), "hessian")


def unrolled(task: Task, trial: Trial, curvature: Curvature) -> Tensor:
    """Return minus the derivative of the final test losses in each training sample's weight.

    Args:
        task: The task.
        trial: The training that is gone through.
        curvature: ``hessian`` for the exact derivative, ``outer`` for DVEmb's.

    Returns:
        (train, test).

    Raises:
        NotComputableError: As for ``attribute``.
    """
    train, test = task.train, task.test
    state, raw = task.full[0].final, train.asked(task.objective)
    held = unroll_bytes(task.module, state, task.recipe, trial.size(len(train)), len(test))
    task.need(held, "its adjoints")
    replay = Replay(task.build, trial, raw, task.recipe)
    final = final_gradients(task.module, replay.final, test)
    return unroll(replay, final, curvature, task.seconds).neg_()
