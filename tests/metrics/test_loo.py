from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from leaveout.errors import LeaveoutError
from leaveout.metrics.loo import loo, outcomes


def test_agrees_with_a_naive_loop():
    rng = np.random.default_rng(0)
    score, full = rng.normal(size=(40, 5)), rng.random(5)
    target = full + 0.2 * score + rng.normal(size=(40, 5))
    expected = [
        stats.pearsonr(score[:, j], [t - full[j] for t in target[:, j]]).statistic for j in range(5)
    ]
    np.testing.assert_allclose(loo(score, target, full), expected, atol=1e-12)


def test_sign_removing_a_helpful_sample_raises_the_loss():
    rng = np.random.default_rng(1)
    score, full = rng.normal(size=(40, 5)), rng.random(5)
    np.testing.assert_allclose(loo(score, full + 3 * score, full), 1.0, atol=1e-12)
    np.testing.assert_allclose(loo(score, full - 3 * score, full), -1.0, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "full"), [((40, 1), (5,)), ((40, 5), (1,)), ((40, 5), (1, 5)), ((5, 40), (40,))]
)
def test_losses_of_another_shape_are_refused_and_not_broadcast(target, full):
    message = re.escape(f"(test,) = (5,); got shapes {target} and {full}")
    with pytest.raises(LeaveoutError, match=message):
        loo(np.ones((40, 5)), np.ones(target), np.ones(full))


def test_every_run_is_compared_with_its_own_full_run():
    full = np.array([[1.0], [10.0]])
    target = np.array([[[1.5], [10.25]], [[0.5], [12.0]]])
    assert outcomes(target, full)[:, :, 0].tolist() == [[0.5, 0.25], [-0.5, 2.0]]
