"""Losses that are convex functions of a network's outputs, and their Bregman divergences.

Cross-entropy and squared error are both Phi(h) - <t, h> up to a constant, with outputs h, target t
and a convex potential Phi: log sum exp, or half the squared norm. The Bregman divergence of such a
loss is that of Phi, D(h, h_s) = Phi(h) - Phi(h_s) - <Phi'(h_s), h - h_s>, whatever the target: the
Kullback-Leibler divergence KL(p_s || p), or half the squared distance. Outputs are class-major,
(models, outputs, samples), so that reductions over outputs vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Loss:
    """A loss, known by its potential.

    Attributes:
        targets: From labels, (samples,) or (samples, outputs), and the number of outputs, the
            targets t in float64, (outputs, samples).
        mean: Phi'(h); the gradient of the loss in h is ``mean(h) - t``.
        divergence: D(h, h_s), (models, samples), never negative.
        curve: Phi''(h) v.
    """

    targets: Callable[[Tensor, int], Tensor]
    mean: Callable[[Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    curve: Callable[[Tensor, Tensor], Tensor]


def _one_hot(labels: Tensor, outputs: int) -> Tensor:
    return functional.one_hot(labels, outputs).T.double()


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


CROSS_ENTROPY = Loss(_one_hot, _softmax, _kl, _softmax_curve)
"""Cross-entropy of logits against class labels, in nats."""

SQUARED_ERROR = Loss(
    lambda labels, _: labels.T.double(),
    lambda outputs: outputs,
    lambda outputs, reference: (outputs - reference).square().sum(1) / 2,
    lambda outputs, vectors: vectors,
)
"""Half the squared distance of outputs and labels, (samples, outputs)."""
