"""The three families whose curvature is known: softmax, Bernoulli, Gaussian."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from leaveout.problem.objective import Family


def _kl(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(outputs)), exact for outputs that hardly differ.

    With u = h - h_s less its mean under p_s it is log(1 + sum p_s (exp(u) - 1 - u)), a sum of terms
    that are not negative: no two numbers near each other are subtracted.
    """
    before = reference.softmax(-1)
    moved = outputs - reference
    moved = moved - (before * moved).sum(-1, keepdim=True)
    return (before * (torch.expm1(moved) - moved).clamp_min(0)).sum(-1).log1p()


def _softmax_curve(outputs: Tensor, vectors: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    return p * (vectors - (p * vectors).sum(-1, keepdim=True))


def _softmax_root(outputs: Tensor, points: Tensor) -> Tensor:
    p = outputs.softmax(-1)
    # rounding can leave the sum of all probabilities below the point
    drawn = (p.double().cumsum(-1) < points[..., None]).sum(-1).clamp(max=p.shape[-1] - 1)
    return p - functional.one_hot(drawn, p.shape[-1])


def _softmax_roots(outputs: Tensor) -> Iterator[Tensor]:
    """Yield sqrt(p_c) (p - e_c): the squares add up to diag(p) - p p'."""
    p = outputs.softmax(-1)
    for c in range(p.shape[-1]):
        root = p.clone()
        root[..., c] -= 1
        yield root * p[..., c, None].sqrt()


SOFTMAX = Family(
    "softmax",
    True,
    lambda h: h.softmax(-1),
    _kl,
    _softmax_curve,
    _softmax_root,
    _softmax_roots,
)
"""Phi = log sum exp over the last dimension."""


def _bernoulli_kl(outputs: Tensor, reference: Tensor) -> Tensor:
    """Return the divergence of independent logits: that of the softmax of (0, h)."""
    zeros = torch.zeros_like(outputs)
    return _kl(torch.stack([zeros, outputs], -1), torch.stack([zeros, reference], -1))


def _bernoulli_curve(outputs: Tensor, vectors: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return p * (-outputs).sigmoid() * vectors


def _bernoulli_root(outputs: Tensor, points: Tensor) -> Tensor:
    p = outputs.sigmoid()
    return p - (points < p.double()).to(p)


def _each(scale: Tensor) -> Iterator[Tensor]:
    """Yield, number by number of a sample, what is 0 but there."""
    flat = scale.reshape(len(scale), -1)
    for k in range(flat.shape[1]):
        root = torch.zeros_like(flat)
        root[:, k] = flat[:, k]
        yield root.view_as(scale)


BERNOULLI = Family(
    "bernoulli",
    False,
    torch.sigmoid,
    _bernoulli_kl,
    _bernoulli_curve,
    _bernoulli_root,
    lambda h: _each((h.sigmoid() * (-h).sigmoid()).sqrt()),
)
"""Phi = log(1 + exp(h)) of each number."""

GAUSSIAN = Family(
    "gaussian",
    False,
    lambda outputs: outputs,
    lambda outputs, reference: (outputs - reference).square() / 2,
    lambda outputs, vectors: vectors,
    lambda outputs, points: torch.special.ndtri(points).to(outputs),
    lambda h: _each(torch.ones_like(h)),
)
"""Phi = h^2 / 2 of each number: unit variance."""
