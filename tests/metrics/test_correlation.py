from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from leaveout.metrics.correlation import correlate, is_broken, is_constant, ranks, standardise


@pytest.mark.parametrize(
    ("kind", "reference"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)]
)
def test_columns_agree_with_scipy_one_by_one_with_ties(kind, reference):
    rng = np.random.default_rng(0)
    x, y = rng.integers(6, size=(2, 40, 7)).astype(float)
    expected = [reference(x[:, j], y[:, j]).statistic for j in range(7)]
    np.testing.assert_allclose(correlate(kind, x, y), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_are_scipys_to_the_last_bit(dtype):
    rng = np.random.default_rng(0)
    for x in (rng.integers(6, size=(40, 7)), rng.normal(size=(41, 3)), np.ones((5, 2))):
        x = x.astype(dtype)
        np.testing.assert_array_equal(ranks(x), stats.rankdata(x, axis=0))


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_undefined_columns_are_nan_and_leave_the_others_alone(kind):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 20, 6))
    clean = correlate(kind, x, y)
    x[3, 0], y[4, 1], x[:, 2], y[:, 3] = np.nan, np.inf, 0.1, -7.0
    rho = correlate(kind, x, y)
    assert np.isnan(rho[:4]).all()
    np.testing.assert_array_equal(rho[4:], clean[4:])
    assert (is_broken(x) | is_broken(y)).tolist() == [True, True] + [False] * 4
    assert (is_constant(x) | is_constant(y)).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e300])
def test_pearson_survives_any_scale_and_offset(scale):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 30, 4))
    # An offset of 1e3 costs three of float64's sixteen digits.
    np.testing.assert_allclose(
        correlate("pearson", (x + 1e3) * scale, y), correlate("pearson", x, y), atol=1e-11
    )


def test_standardise_gives_zero_mean_unit_variance_and_zeros_where_it_cannot():
    x = np.array([[1.0, 5.0, np.nan], [2.0, 5.0, 1.0], [6.0, 5.0, 2.0]])
    z = standardise(x)
    np.testing.assert_allclose([z[:, 0].mean(), z[:, 0].var()], [0, 1], atol=1e-15)
    assert not z[:, 1:].any()
