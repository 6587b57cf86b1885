from __future__ import annotations

import numpy as np
from scipy import stats

from leaveout.metrics.pbrf import pbrf


def test_agrees_with_a_naive_loop_over_the_points_that_converged():
    rng = np.random.default_rng(0)
    score, full = rng.normal(size=(40, 5)), rng.random(5)
    target = full + 0.2 * score + rng.normal(size=(40, 5))
    converged = rng.random(40) < 0.7
    target[~converged] = 1e6
    expected = [
        stats.pearsonr(
            [score[i, j] for i in range(40) if converged[i]],
            [target[i, j] - full[j] for i in range(40) if converged[i]],
        ).statistic
        for j in range(5)
    ]
    np.testing.assert_allclose(pbrf(score, target, full, converged), expected, atol=1e-12)


def test_sign_a_point_whose_absence_raises_the_loss_has_a_positive_score():
    rng = np.random.default_rng(1)
    score, full = rng.normal(size=(40, 5)), rng.random(5)
    everything = np.ones(40, dtype=bool)
    np.testing.assert_allclose(pbrf(score, full + 3 * score, full, everything), 1.0, atol=1e-12)
    np.testing.assert_allclose(pbrf(score, full - 3 * score, full, everything), -1.0, atol=1e-12)
