from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from leaveout.errors import LeaveoutError
from leaveout.metrics import correlation
from leaveout.metrics.correlation import (
    TopK,
    concordance,
    correlate,
    is_broken,
    is_constant,
    membership,
    ranks,
    standardise,
)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("pearson", stats.pearsonr),
        ("spearman", stats.spearmanr),
        ("kendall", stats.kendalltau),  # tau-b
    ],
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


def test_concordance_is_that_of_all_pairs_however_they_are_cut(monkeypatch):
    x, y = np.random.default_rng(3).integers(5, size=(2, 23)).astype(float)
    pairs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    np.testing.assert_array_equal(concordance(x, y), pairs.sum(axis=1))
    monkeypatch.setattr(correlation, "_BLOCK_NUMBERS", 50)  # two units at a time
    np.testing.assert_array_equal(concordance(x, y), pairs.sum(axis=1))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_top_k_is_the_mean_over_all_ways_to_break_ties(k):
    x, y = np.array([2.0, 1, 1, 1, 0, 0]), np.array([5.0, 5, 1, 7, 5, 0])

    def tops(z):
        orders = [sorted(range(6), key=lambda i: (-z[i], p[i])) for p in permutations(range(6))]
        return [{*order[:k]} for order in orders]

    # independent ties in each: the mean over all pairs is that of the product of shares
    share = {z: [np.mean([i in top for top in tops(z)]) for i in range(6)]
             for z in (tuple(x), tuple(y))}  # fmt: skip
    np.testing.assert_allclose(membership(x, k), share[tuple(x)], atol=1e-12)
    expected = np.dot(share[tuple(x)], share[tuple(y)]) / k
    np.testing.assert_allclose(correlate(TopK(k), x[:, None], y[:, None]), expected, atol=1e-12)


def test_top_k_of_itself_is_one_of_constants_chance_and_of_nan_undefined():
    x = np.random.default_rng(4).normal(size=(50, 4))
    y = x.copy()
    y[:, 1], y[3, 2], y[:, 3] = 7.0, np.nan, -x[:, 3]
    found = correlate(TopK(10), x, y)
    np.testing.assert_allclose(found, [1, 10 / 50, np.nan, 0], atol=1e-12)


@pytest.mark.parametrize("kind", ["pearson", "spearman", "kendall"])
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


@pytest.mark.parametrize("kind", ["pearson", "spearman", "kendall", TopK(2)])
def test_arrays_of_two_shapes_are_refused_and_not_broadcast(kind):
    with pytest.raises(LeaveoutError, match=r"of one shape: \(9, 4\), \(9, 1\)"):
        correlate(kind, np.ones((9, 4)), np.ones((9, 1)))
