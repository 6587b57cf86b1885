"""What is attributed, of many models at once, in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leaveout.problem.samples import Samples
from leaveout.problem.trees import floating, tensors, tree_map


def stacked_targets(outputs: Any, samples: Samples) -> Tensor:
    """Return what the objective says of the same samples under many models, in float64.

    Leaving one sample out changes the loss of a sample that is fitted well by less than float32 can
    tell from rounding when two logits near 10 are subtracted; from the same logits, float64 keeps
    it.

    Args:
        outputs: Of each model, a tree of tensors (models, samples, ...).
        samples: Test samples.

    Returns:
        (models, samples), float64.
    """
    outputs = floating(outputs, torch.float64)
    if samples.objective.plain and isinstance(outputs, Tensor):
        chosen = outputs.gather(2, samples.targets.expand(len(outputs), -1)[..., None])
        return torch.logsumexp(outputs - chosen, dim=2)
    models = len(tensors(outputs)[0])
    asked = samples.double()
    return torch.stack(
        [asked.losses(tree_map(lambda v, m=m: v[m], outputs)) for m in range(models)]  # type: ignore[misc]
    )
