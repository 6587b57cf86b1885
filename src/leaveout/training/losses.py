"""The loss that is trained on, and the target that is attributed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample; training minimises their mean.

    Args:
        outputs: Logits, (samples, classes).
        labels: Classes, (samples,), int64.

    Returns:
        Losses in nats, (samples,).
    """
    return functional.cross_entropy(outputs, labels, reduction="none")


def stacked_targets(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the losses of many models on the same samples, in float64.

    Leaving one sample out changes the loss of a sample that is fitted well by less than float32 can
    tell from rounding when two logits near 10 are subtracted; from the same logits, float64 keeps
    it.

    Args:
        outputs: Logits, (models, samples, classes).
        labels: Classes, (samples,).

    Returns:
        Losses, (models, samples), float64.
    """
    outputs = outputs.double()
    chosen = outputs.gather(2, labels.expand(len(outputs), -1)[..., None])
    return torch.logsumexp(outputs - chosen, dim=2)
