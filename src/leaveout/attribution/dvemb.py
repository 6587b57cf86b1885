"""DVEmb: data value embeddings, influence along the run with outer products for the Hessian.

Paper: Wang et al. 2024, arXiv:2412.09538.
Formula: score[i, j] = sum over the steps t that see i of e_t(i)' g_j(w_T), with the embedding
e_t(i) = (rate / B) (I - rate G_T-1) .. (I - rate G_t+1) g_i(w_t) of full run 0 and G_k the mean of
g g' over the batch of step k: to first order what leaving i out of its batches, whose sum is still
divided by B, adds to the loss of j, in nats. Gradients are of the run's own steps, with their
dropout masks.
Cost: training twice more, and two products of the batch's gradients with n_test vectors a step.
Memory: one n_test x parameters matrix, two with momentum, three with Adam; the states of one epoch.
Approximated: the Hessian, by G. The products are taken from the end, on the test gradients, which
gives the same scores as embeddings of all training samples in all parameters, without the paper's
random projection. The paper covers SGD. Here any recipe's own step is followed exactly, with
momentum, Adam's averages, weight decay, schedule and clipping: G replaces the Hessian in the
derivative of the batch's gradient, which the step is given. Batch norm is in evaluation mode: in
training mode samples share the batch's statistics, and no sample has a gradient of its own.
"""

from __future__ import annotations

from torch import Tensor

from leaveout.attribution.magic import unrolled
from leaveout.attribution.task import Task


def attribute(task: Task) -> Tensor:
    """Return the products of embeddings, summed over the steps, with test gradients.

    Args:
        task: The task.

    Returns:
        (train, test).

    Raises:
        NotComputableError: It would take too long or too much memory, or the run was trained in
            bfloat16.
    """
    return unrolled(task, task.full[0].trial, "outer")
