from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from leaveout.errors import LeaveoutError
from leaveout.metrics.distributional import distributional_targets


def test_moments_are_numpys_and_their_errors_scipys():
    rng = np.random.default_rng(0)
    target = rng.gamma(2.0, size=(3, 6, 2)).astype(np.float32)
    got = distributional_targets(target)
    exact = target.astype(np.float64)
    np.testing.assert_allclose(got.mean, exact.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(got.variance, exact.var(axis=1, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(got.mean_error, stats.sem(exact, axis=1), rtol=1e-12)
    for unit in range(3):
        for test in range(2):
            expected = np.sqrt(max(stats.kstatvar(exact[unit, :, test], 2), 0))
            # the fourth cumulant is a difference of sums some ten times its size
            assert got.variance_error[unit, test] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("runs", [4, 7])
def test_the_errors_are_those_of_many_repetitions(runs):
    rng = np.random.default_rng(runs)
    got = distributional_targets(rng.exponential(2.0, size=(200_000, runs, 1)))
    # 200 000 repetitions: 4 standard errors of a mean are below 2% even for these heavy tails
    assert got.mean.mean() == pytest.approx(2, rel=0.02)
    assert got.variance.mean() == pytest.approx(4, rel=0.02)
    assert np.square(got.mean_error).mean() == pytest.approx(got.mean.var(), rel=0.02)
    # not the root's mean: the square is unbiased, where it is not cut off at 0
    kappa, sigma = 6 * 16, 4
    assert got.variance.var() == pytest.approx(kappa / runs + 2 * sigma**2 / (runs - 1), rel=0.1)
    assert np.square(got.variance_error).mean() >= 0.9 * got.variance.var()


def test_what_a_few_runs_cannot_say_is_nan():
    target = np.random.default_rng(1).normal(size=(4, 3, 2))
    one, three = distributional_targets(target[:, :1]), distributional_targets(target)
    np.testing.assert_array_equal(one.mean, target[:, 0])
    for unknown in (one.variance, one.mean_error, one.variance_error, three.variance_error):
        assert unknown.shape == (4, 2)
        assert np.isnan(unknown).all()
    assert np.isfinite(three.variance).all()


def test_a_broken_run_breaks_its_unit_and_test_sample_and_no_other():
    target = np.random.default_rng(2).normal(size=(4, 5, 3))
    target[1, 2, 0], target[3, 4, 2] = np.nan, np.inf
    got = distributional_targets(target)
    for array in (got.mean, got.variance, got.mean_error, got.variance_error):
        np.testing.assert_array_equal(np.argwhere(np.isnan(array)), [[1, 0], [3, 2]])


def test_order_of_runs_changes_nothing_and_a_shift_only_the_mean():
    rng = np.random.default_rng(3)
    target = rng.normal(size=(5, 6, 4))
    got, moved = (distributional_targets(t) for t in (target, target[:, rng.permutation(6)] + 8.0))
    np.testing.assert_allclose(moved.mean, got.mean + 8, rtol=1e-12)
    # cancellation: 8 squared is 100 times these variances
    np.testing.assert_allclose(moved.variance, got.variance, rtol=1e-11)
    np.testing.assert_allclose(moved.variance_error, got.variance_error, rtol=1e-9)


@pytest.mark.parametrize("shape", [(3, 2), (3, 0, 2), (1, 2, 3, 4)])
def test_another_shape_is_named(shape):
    with pytest.raises(LeaveoutError, match=r"expected \(unit, run, test\)"):
        distributional_targets(np.zeros(shape))
