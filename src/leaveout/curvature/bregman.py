"""An objective's curvature in the outputs of many models, with samples last.

What an objective says of its curvature (:class:`leaveout.problem.objective.Likelihood`) is put into
the form that products with Jacobians take: outputs (models, numbers, samples), where numbers are
all outputs of a sample in a row. Reductions over outputs then vectorise. Plain cross-entropy is
written by hand, anything else is mapped over models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from leaveout.problem.samples import Samples


@dataclass(frozen=True)
class Loss:
    """The losses of some samples, by their potential.

    Attributes:
        mean: The gradient of the potential in h, (models, numbers, samples).
        divergence: D(h, h_s), (models, samples), never negative.
        curve: The second derivative times v.
    """

    mean: Callable[[Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    curve: Callable[[Tensor, Tensor], Tensor]


def _softmax(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs, dim=1)


def _kl(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(outputs)), exact for outputs that hardly differ.

    With u = h - h_s less its mean under p_s it is log(1 + sum p_s (exp(u) - 1 - u)), a sum of terms
    that are not negative: no two numbers near each other are subtracted.
    """
    before = _softmax(reference)
    moved = outputs - reference
    moved = moved - (before * moved).sum(1, keepdim=True)
    return (before * (torch.expm1(moved) - moved).clamp_min(0)).sum(1).log1p()


def _softmax_curve(outputs: Tensor, vectors: Tensor) -> Tensor:
    p = _softmax(outputs)
    return p * (vectors - (p * vectors).sum(1, keepdim=True))


CROSS_ENTROPY = Loss(_softmax, _kl, _softmax_curve)
"""Plain cross-entropy of classes, whatever the samples."""


def loss_of(samples: Samples, shape: tuple[int, ...]) -> Loss:
    """Return the losses of some samples.

    Args:
        samples: Whose objective it is.
        shape: Of one sample's outputs h.

    Raises:
        NotComputableError: The objective states no curvature.
    """
    if samples.objective.plain:
        return CROSS_ENTROPY
    likelihood = samples.objective.need("likelihood", "this needs its curvature in the outputs")
    targets = samples.targets

    def apart(values: Tensor) -> Tensor:
        return values.transpose(1, 2).reshape(len(values), len(samples), *shape)

    def together(values: Tensor) -> Tensor:
        return values.reshape(*values.shape[:2], -1).transpose(1, 2)

    def mean(outputs: Tensor) -> Tensor:
        return together(vmap(lambda h: likelihood.mean(h, targets))(apart(outputs)))

    def divergence(outputs: Tensor, reference: Tensor) -> Tensor:
        before = apart(reference.expand(len(outputs), *reference.shape[1:]))
        found: Tensor = vmap(lambda h, r: likelihood.divergence(h, r, targets))(
            apart(outputs), before
        )
        return found

    def curve(outputs: Tensor, vectors: Tensor) -> Tensor:
        here = apart(outputs.expand(len(vectors), *outputs.shape[1:]))
        return together(vmap(lambda h, v: likelihood.curve(h, targets, v))(here, apart(vectors)))

    return Loss(mean, divergence, curve)
