from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from leaveout.problem.objectives import CROSS_ENTROPY, cross_entropy
from leaveout.problem.samples import Samples
from leaveout.training.losses import stacked_targets

RNG = np.random.default_rng(0)
LOGITS = 4 * RNG.standard_normal((3, 5, 4))
LABELS = RNG.integers(4, size=5)


def test_losses_are_minus_the_log_of_the_softmax() -> None:
    expected = logsumexp(LOGITS[0], axis=1) - LOGITS[0][np.arange(5), LABELS]
    found = CROSS_ENTROPY.losses(torch.from_numpy(LOGITS[0]), torch.from_numpy(LABELS))
    np.testing.assert_allclose(found, expected, atol=1e-13)


def asked(labels: Tensor) -> Samples:
    """The labels with inputs that do not matter."""
    return Samples(torch.zeros(len(labels), 1), labels, CROSS_ENTROPY)


def test_targets_of_any_objective_are_each_models_losses() -> None:
    weighted = cross_entropy(weight=[1.0, 2.0, 0.5, 3.0])
    samples = replace(asked(torch.from_numpy(LABELS)), objective=weighted)
    outputs = {"logits": torch.from_numpy(LOGITS), "hidden": torch.zeros(3, 5)}
    plain = logsumexp(LOGITS, axis=2) - LOGITS[:, np.arange(5), LABELS]
    expected = plain * np.array([1.0, 2.0, 0.5, 3.0])[LABELS]
    np.testing.assert_allclose(stacked_targets(outputs, samples), expected, atol=1e-13)


def test_targets_of_a_stack_are_each_models_losses() -> None:
    expected = logsumexp(LOGITS, axis=2) - LOGITS[:, np.arange(5), LABELS]
    found = stacked_targets(torch.from_numpy(LOGITS), asked(torch.from_numpy(LABELS)))
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_targets_of_float32_logits_lose_nothing_near_zero() -> None:
    # the loss is log(1 + e^-18) = 1.5e-8, below the spacing of float32 near 18
    logits = torch.tensor([[[18.0, 0.0]]])
    found = stacked_targets(logits, asked(torch.tensor([0])))
    assert found.dtype == torch.float64
    assert math.isclose(found.item(), math.log1p(math.exp(-18)), rel_tol=1e-7)


def test_targets_of_huge_logits_are_finite() -> None:
    found = stacked_targets(torch.tensor([[[1e4, -1e4]]]), asked(torch.tensor([1])))
    assert found.item() == 2e4
