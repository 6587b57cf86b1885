"""The loss that is trained on, and the target that is attributed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample; training takes their mean, attribution targets one test sample's.

    Args:
        outputs: Logits, (samples, classes).
        labels: Classes, (samples,), int64.

    Returns:
        Losses in nats, (samples,).
    """
    return functional.cross_entropy(outputs, labels, reduction="none")


def stacked_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the losses of many models on the same samples.

    Args:
        outputs: Logits, (models, samples, classes).
        labels: Classes, (samples,).

    Returns:
        Losses, (models, samples).
    """
    chosen = outputs.gather(2, labels.expand(len(outputs), -1)[..., None])[..., 0]
    return torch.logsumexp(outputs, dim=2) - chosen
