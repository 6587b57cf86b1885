"""captum's TracInCP and TracInCPFast, with gradients by batch: their fast way."""

from __future__ import annotations

from typing import Any

from captum.influence import TracInCP, TracInCPFast
from torch import Tensor, nn

from peer_problem import Problem

BATCH = 500
"""Of training samples; it takes the test samples as one batch."""


def _arguments(problem: Problem) -> dict[str, Any]:
    checkpoints = list(enumerate(problem.full[0]))

    def load(model: nn.Module, checkpoint: tuple[int, dict[str, Tensor]]) -> float:
        model.load_state_dict(checkpoint[1])
        return problem.rates[checkpoint[0]]

    return {
        "model": problem.net(),
        "train_dataset": problem.train,
        "checkpoints": checkpoints,
        "checkpoints_load_func": load,
        "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
        "batch_size": BATCH,
    }


def tracin_cp(problem: Problem) -> Tensor:
    """All layers."""
    method = TracInCP(**_arguments(problem), sample_wise_grads_per_batch=True)
    return method.influence(problem.test.tensors).T


def tracin_cp_fast(problem: Problem) -> Tensor:
    """The last layer."""
    net = problem.net()
    method = TracInCPFast(**{**_arguments(problem), "model": net}, final_fc_layer=net.names[-1])
    return method.influence(problem.test.tensors).T


METHODS = {"tracin_cp": tracin_cp, "tracin_cp_fast": tracin_cp_fast}
