"""torch's own loss modules as objectives: a batch's loss is torch's, exactly, on ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.errors import LeaveoutError
from leaveout.problem.torch_losses import objective_of

N, C, T = 7, 4, 5
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-13}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int) -> Tensor:
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(1))


def ragged() -> Tensor:
    """Tokens of which samples have from none to all ignored."""
    tokens = classes(N, T)
    for row in range(N):
        tokens[row, row % (T + 1) :] = -100
    return tokens


def shares(*shape: int) -> Tensor:
    return drawn(*shape, seed=2).softmax(1)


WEIGHT = torch.tensor([1.0, 10.0, 0.1, 2.0], dtype=torch.float64)
BITS = (drawn(N, C, seed=3) > 0).double()
SIGNS = 2 * BITS - 1

CASES: dict[str, tuple[Callable[..., Any], Tensor, Tensor]] = {
    "cross-entropy": (nn.CrossEntropyLoss, drawn(N, C), classes(N)),
    "weighted": (lambda **o: nn.CrossEntropyLoss(weight=WEIGHT, **o), drawn(N, C), classes(N)),
    "smoothed": (
        lambda **o: nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.2, **o),
        drawn(N, C),
        classes(N),
    ),
    "tokens": (nn.CrossEntropyLoss, drawn(N, C, T), ragged()),
    "weighted tokens": (
        lambda **o: nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1, **o),
        drawn(N, C, T),
        ragged(),
    ),
    "other ignored": (
        lambda **o: nn.CrossEntropyLoss(ignore_index=2, **o),
        drawn(N, C),
        classes(N),
    ),
    "probabilities": (
        lambda **o: nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1, **o),
        drawn(N, C),
        shares(N, C),
    ),
    "probabilities of tokens": (nn.CrossEntropyLoss, drawn(N, C, T), shares(N, C, T)),
    "nll": (lambda **o: nn.NLLLoss(weight=WEIGHT, **o), drawn(N, C, T).log_softmax(1), ragged()),
    "binary": (nn.BCEWithLogitsLoss, drawn(N), BITS[:, 0]),
    "multi-label": (
        lambda **o: nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=WEIGHT.flip(0), **o),
        drawn(N, C),
        BITS,
    ),
    "squared": (nn.MSELoss, drawn(N, C), drawn(N, C, seed=4)),
    "absolute": (nn.L1Loss, drawn(N, C), drawn(N, C, seed=4)),
    "smooth": (lambda **o: nn.SmoothL1Loss(beta=0.3, **o), drawn(N, C), drawn(N, C, seed=4)),
    "huber": (lambda **o: nn.HuberLoss(delta=0.4, **o), drawn(N, C), drawn(N, C, seed=4)),
    "poisson": (nn.PoissonNLLLoss, drawn(N, C), BITS),
    "soft margin": (nn.SoftMarginLoss, drawn(N, C), SIGNS),
    "kl": (nn.KLDivLoss, drawn(N, C).log_softmax(1), shares(N, C)),
    "multi-margin": (
        lambda **o: nn.MultiMarginLoss(weight=WEIGHT, margin=0.7, **o),
        drawn(N, C),
        classes(N),
    ),
    "multi-label margin": (
        lambda **o: nn.MultiLabelSoftMarginLoss(weight=WEIGHT, **o),
        drawn(N, C),
        BITS,
    ),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # of KLDivLoss
@pytest.mark.parametrize("case", CASES)
def test_a_batch_has_the_loss_that_torch_gives(case: str) -> None:
    make, outputs, targets = CASES[case]
    objective = objective_of(make())
    for part in (slice(0, N), slice(1, 4), slice(5, 7)):
        expected = make()(outputs[part], targets[part])
        found = objective.batch_loss(outputs[part], targets[part])
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_a_sum_is_the_sum_of_what_samples_give_alone(case: str) -> None:
    make, outputs, targets = CASES[case]
    total = make(reduction="sum")
    each = torch.stack([total(outputs[k : k + 1], targets[k : k + 1]) for k in range(N)])
    for reduction in ("sum", "none", "mean"):
        found = objective_of(make(reduction=reduction)).losses(outputs, targets)
        torch.testing.assert_close(found, each, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_the_curvature_is_autograd_s(case: str) -> None:
    make, outputs, targets = CASES[case]
    objective = objective_of(make())
    likelihood = objective.likelihood
    if likelihood is None:
        return
    total = make(reduction="sum")
    for k in range(N):
        row, target = outputs[k : k + 1], targets[k : k + 1]
        hessian = torch.autograd.functional.hessian(lambda h, t=target: total(h, t), row)
        assert isinstance(hessian, Tensor)
        vectors = drawn(*row.shape, seed=5 + k)
        right = (hessian.reshape(row.numel(), -1) @ vectors.flatten()).reshape(row.shape)
        mine = likelihood.curve(likelihood.outputs(row), target, likelihood.outputs(vectors))
        torch.testing.assert_close(mine, likelihood.outputs(right), rtol=1e-9, atol=1e-12)


def test_what_has_no_likelihood_says_nothing_of_curvature() -> None:
    for loss in (nn.NLLLoss(), nn.L1Loss(), nn.HuberLoss(), nn.MultiMarginLoss()):
        assert objective_of(loss).likelihood is None


def test_functions_of_a_batch_are_called_on_each_sample_alone() -> None:
    outputs, targets = drawn(N, C), classes(N)
    right = functional.cross_entropy(outputs, targets, reduction="none")
    for loss in (
        functional.cross_entropy,
        lambda o, t: functional.cross_entropy(o, t, reduction="sum"),
        lambda o, t: functional.cross_entropy(o, t, reduction="none"),
    ):
        torch.testing.assert_close(objective_of(loss).losses(outputs, targets), right, **CLOSE)
    named = objective_of(lambda o, t: functional.cross_entropy(o["logits"], t))
    torch.testing.assert_close(named.losses({"logits": outputs}, targets), right, **CLOSE)


def test_broadcasts_and_lacking_classes_are_refused() -> None:
    with pytest.raises(LeaveoutError, match="would be broadcast"):
        objective_of(nn.MSELoss()).losses(drawn(N, 1), drawn(N))
    with pytest.raises(LeaveoutError, match="no classes to choose from"):
        objective_of(nn.CrossEntropyLoss()).losses(drawn(N, 1), classes(N))
    with pytest.raises(LeaveoutError, match="no_such"):
        objective_of("no_such")


class Weighted(nn.CrossEntropyLoss):
    """A class of the user's, which may do anything."""


WEIGHTS = torch.tensor([1.0, 50.0, 0.1], dtype=torch.float64)
NOT_ADDED: dict[str, Any] = {
    "weights": lambda o, t: functional.cross_entropy(o, t, weight=WEIGHTS),
    "a class with weights": Weighted(weight=WEIGHTS),
    "ignored": lambda o, t: functional.cross_entropy(o, t, ignore_index=2),
    "root": lambda o, t: functional.cross_entropy(o, t).sqrt(),
}


@pytest.mark.parametrize("name", NOT_ADDED)
def test_a_batch_that_is_no_sum_of_its_samples_is_refused(name: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    outputs = torch.randn(9, 3, generator=drawn, dtype=torch.float64)
    targets = torch.arange(9) % 3
    with pytest.raises(LeaveoutError, match="neither the mean nor the sum"):
        objective_of(NOT_ADDED[name]).losses(outputs, targets)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_means_and_sums_of_samples_are_taken_apart(reduction: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    outputs = torch.randn(9, 3, generator=drawn, dtype=torch.float64)
    targets = torch.arange(9) % 3
    found = objective_of(lambda o, t: functional.cross_entropy(o, t, reduction=reduction)).losses(
        outputs, targets
    )
    expected = functional.cross_entropy(outputs, targets, reduction="none")
    torch.testing.assert_close(found, expected)
