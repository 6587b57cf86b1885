from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional

from leaveout.curvature.bregman import CROSS_ENTROPY, Loss, loss_of
from leaveout.errors import NotComputableError
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import (
    cross_entropy,
    multi_label,
    squared_error,
    token_cross_entropy,
)
from leaveout.problem.samples import Samples

MODELS, OUTPUTS, SAMPLES = 3, 6, 7


def outputs(scale: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h, moved = torch.randn(2, MODELS, OUTPUTS, SAMPLES, generator=generator, dtype=torch.float64)
    return h * 4, h * 4 + scale * moved


def classes(*shape: int) -> Tensor:
    return torch.randint(3, shape, generator=torch.Generator().manual_seed(2))


PADDED = classes(SAMPLES, 2).index_put((torch.arange(3), torch.tensor(1)), torch.tensor(-100))
GOALS = torch.randn(
    SAMPLES, OUTPUTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64
)
CASES: dict[str, tuple[Objective, Tensor, tuple[int, ...]]] = {
    "classes": (cross_entropy(), classes(SAMPLES), (OUTPUTS,)),
    "weighted": (cross_entropy(weight=[1, 5, 0.3, 1, 1, 1]), classes(SAMPLES), (OUTPUTS,)),
    "tokens": (token_cross_entropy(), PADDED, (2, 3)),
    "numbers": (squared_error(), GOALS, (OUTPUTS,)),
    "labels": (multi_label(pos_weight=2.0), (GOALS > 0).long(), (OUTPUTS,)),
}


def loss(case: str) -> Loss:
    objective, targets, shape = CASES[case]
    return loss_of(Samples(torch.zeros(SAMPLES, 1), targets, objective), shape)


def total(case: str) -> Callable[[Tensor], Tensor]:
    """The sum of all losses of all models, as the objective itself has it."""
    objective, targets, shape = CASES[case]

    def of(h: Tensor) -> Tensor:
        apart = h.transpose(1, 2).reshape(len(h), SAMPLES, *shape)
        return torch.stack([objective.losses(own, targets).sum() for own in apart]).sum()

    return of


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_divergence_of_cross_entropy_is_the_kl_from_the_reference(scale: float) -> None:
    before, after = outputs(scale)
    p, q = before.log_softmax(1), after.log_softmax(1)
    kl = functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(CROSS_ENTROPY.divergence(after, before), kl, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-9, 1e-5, 1e-2, 1.0, 100.0])
def test_divergences_are_never_negative_and_zero_only_without_a_move(
    case: str, scale: float
) -> None:
    before, after = outputs(scale)
    found = loss(case).divergence(after, before)
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


@pytest.mark.parametrize("case", CASES)
def test_mean_and_curve_are_the_derivatives_of_the_divergence(case: str) -> None:
    which = loss(case)
    before, after = outputs(1.0)
    slope = grad(lambda h: which.divergence(h, before).sum())
    torch.testing.assert_close(slope(after), which.mean(after) - which.mean(before))
    v = outputs(0.3)[1]
    torch.testing.assert_close(jvp(slope, (after,), (v,))[1], which.curve(after, v))


@pytest.mark.parametrize("case", CASES)
def test_mean_and_curve_are_the_derivatives_of_the_losses(case: str) -> None:
    """The target's part is linear: two gradients differ by those of the potential."""
    which, (before, after) = loss(case), outputs(1.0)
    slope = grad(total(case))
    moved = slope(after) - slope(before)
    torch.testing.assert_close(moved, which.mean(after) - which.mean(before))
    v = outputs(0.3)[1]
    torch.testing.assert_close(jvp(slope, (after,), (v,))[1], which.curve(after, v))


def test_one_reference_serves_all_models() -> None:
    which, (before, after) = loss("weighted"), outputs(1.0)
    expected = which.divergence(after, before[:1].expand_as(after))
    torch.testing.assert_close(which.divergence(after, before[:1]), expected)


def test_a_loss_alone_has_no_curvature() -> None:
    mine = Objective("mine", lambda outputs, targets: (outputs - targets).abs().sum(1))
    with pytest.raises(NotComputableError, match="the objective mine has none"):
        loss_of(Samples(torch.zeros(2, 1), torch.zeros(2, 1), mine), (1,))
