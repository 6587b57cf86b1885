from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional

from leaveout.curvature.bregman import CROSS_ENTROPY, SQUARED_ERROR


def outputs(scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h, moved = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    return h * 4, h * 4 + scale * moved


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_divergence_of_cross_entropy_is_the_kl_from_the_reference(scale: float) -> None:
    before, after = outputs(scale)
    p, q = before.log_softmax(1), after.log_softmax(1)
    kl = functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(CROSS_ENTROPY.divergence(after, before), kl, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-9, 1e-5, 1e-2, 1.0, 100.0])
def test_divergences_are_never_negative_and_zero_only_without_a_move(scale: float) -> None:
    before, after = outputs(scale)
    for loss in (CROSS_ENTROPY, SQUARED_ERROR):
        found = loss.divergence(after, before)
        assert (found >= 0).all()
        assert (found.sum() > 0) == (scale > 0)


def test_a_tiny_divergence_is_half_the_variance_of_the_move() -> None:
    before, after = outputs(1e-6)
    p, u = before.softmax(1), after - before
    variance = (p * u.square()).sum(1) - (p * u).sum(1).square()
    found = CROSS_ENTROPY.divergence(after, before)
    # third order: relative 1e-6 times a few; and outputs near 10 are rounded at 1e-15 of 1e-6
    torch.testing.assert_close(found, variance / 2, rtol=1e-5, atol=0)


def test_a_constant_added_to_all_logits_is_no_divergence() -> None:
    before, _ = outputs(0.0)
    assert CROSS_ENTROPY.divergence(before + 3, before).max() < 1e-28


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARED_ERROR])
def test_mean_and_curve_are_the_derivatives_of_the_divergence(loss: object) -> None:
    assert loss in (CROSS_ENTROPY, SQUARED_ERROR)
    which = CROSS_ENTROPY if loss is CROSS_ENTROPY else SQUARED_ERROR
    before, after = outputs(1.0)
    slope = grad(lambda h: which.divergence(h, before).sum())
    torch.testing.assert_close(slope(after), which.mean(after) - which.mean(before))
    v = outputs(0.3)[1]
    torch.testing.assert_close(jvp(slope, (after,), (v,))[1], which.curve(after, v))


def test_mean_less_target_is_the_gradient_of_the_loss() -> None:
    _, h = outputs(1.0)
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    found = CROSS_ENTROPY.mean(h) - CROSS_ENTROPY.targets(labels, 5)

    def total(h: Tensor) -> Tensor:
        return functional.cross_entropy(h, labels.expand(3, -1), reduction="sum")

    torch.testing.assert_close(found, grad(total)(h))
    goals = torch.randn(7, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = SQUARED_ERROR.mean(h) - SQUARED_ERROR.targets(goals, 5)
    torch.testing.assert_close(found, grad(lambda h: (h - goals.T).square().sum() / 2)(h))
