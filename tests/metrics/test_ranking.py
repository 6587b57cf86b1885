from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from leaveout.metrics.ranking import compare, groups, holm, mean_ranks
from leaveout.metrics.uncertainty import means, replicate_sums, resample_counts


def test_holm_is_the_textbooks() -> None:
    # Holm 1979: the k-th smallest of n is multiplied by n - k + 1, and none is below one before it
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        p = rng.random(n) ** 4
        expected = np.empty(n)
        for k in range(n):
            below = [j for j in range(n) if (p[j], j) <= (p[k], k)]
            factors = [(n - sum((p[i], i) < (p[j], j) for i in range(n))) * p[j] for j in below]
            expected[k] = min(1.0, max(factors))
        np.testing.assert_allclose(holm(p), expected)
        # as a decision: rejected exactly as long as all smaller ones are
        order, rejected = np.argsort(p), 0
        while rejected < n and p[order[rejected]] <= 0.05 / (n - rejected):
            rejected += 1
        assert set(np.flatnonzero(holm(p) <= 0.05)) == set(order[:rejected])
    assert holm(np.empty(0)).shape == (0,)


def test_groups_are_all_the_largest_sets_not_told_apart() -> None:
    rng = np.random.default_rng(1)
    for n, share in itertools.product((1, 4, 7), (0.0, 0.3, 0.7, 1.0)):
        told = np.triu(rng.random((n, n)) < share, 1)
        told |= told.T
        fitting = [
            frozenset(members)
            for size in range(1, n + 1)
            for members in itertools.combinations(range(n), size)
            if not told[np.ix_(members, members)].any()
        ]
        largest = {a for a in fitting if not any(a < b for b in fitting)}
        found = groups(told)
        assert set(found) == largest
        assert len(found) == len(largest)


def drawn(rng: np.random.Generator, value: np.ndarray, error: float, draws: int = 400):
    """Replicates whose errors have a part in common, as those of one draw have."""
    common = rng.normal(size=draws)
    return value[:, None] + error * rng.normal(size=(len(value), draws)) + common


def test_differences_are_paired_and_p_values_are_those_of_a_normal() -> None:
    value = np.array([0.5, 0.8, 0.79])
    replicates = drawn(np.random.default_rng(2), value, 0.01)
    found = compare(value, replicates)
    np.testing.assert_allclose(found.difference, np.subtract.outer(value, value))
    np.testing.assert_array_equal(found.rank, [3, 1, 2])
    raw = {}
    for i, j in itertools.combinations(range(3), 2):
        apart = replicates[i] - replicates[j]
        apart += value[i] - value[j] - apart.mean()
        low, high = np.quantile(apart, [0.025, 0.975])
        assert found.low[i, j] == pytest.approx(low)
        assert found.high[i, j] == pytest.approx(high)
        assert found.low[j, i] == pytest.approx(-high)
        raw[i, j] = 2 * norm.sf(abs(value[i] - value[j]) / apart.std())
    expected = holm(np.array(list(raw.values())))
    for (i, j), p in zip(raw, expected, strict=True):
        assert found.p[i, j] == found.p[j, i] == pytest.approx(p)
    # what all have in common is a hundred times what differs, and is in no difference
    assert found.high[1, 2] - found.low[1, 2] < 0.1
    assert replicates[1].std() > 0.5
    # 2nd and 3rd are one error apart, the first is far below
    assert found.groups == [[2], [1], [1]]
    np.testing.assert_array_equal(found.rank_set, [[3, 3], [1, 2], [1, 2]])
    assert found.draws == 400


def test_a_method_compared_with_itself_differs_by_nothing() -> None:
    value = np.array([0.3, 0.7, 0.7, 0.1])
    replicates = drawn(np.random.default_rng(3), value, 0.001)
    replicates[2] = replicates[1]
    found = compare(value, replicates)
    for array in (found.difference, found.low, found.high):
        assert array[1, 2] == array[2, 1] == 0.0
        assert not np.diag(array).any()
    assert found.p[1, 2] == 1.0
    assert found.groups[1] == found.groups[2] == [1]
    np.testing.assert_array_equal(found.rank, [3, 1.5, 1.5, 4])
    np.testing.assert_array_equal(found.rank_interval[1], [1.5, 1.5])
    np.testing.assert_array_equal(found.rank_set[:, 0], [3, 1, 1, 4])


def test_rounding_is_no_difference_however_sure() -> None:
    value = np.array([0.7, 0.700001])
    replicates = np.tile(value[:, None], 50)
    assert compare(value, replicates).p[0, 1] == 1.0
    apart = compare(np.array([0.7, 0.71]), np.tile([[0.7], [0.71]], 50))
    assert apart.p[0, 1] == 0.0
    assert apart.groups == [[2], [1]]


def test_a_draw_in_which_some_method_has_no_value_is_left_out_of_all() -> None:
    value = np.array([0.5, 0.6])
    replicates = drawn(np.random.default_rng(4), value, 0.01)
    holes = replicates.copy()
    holes[0, :30] = math.nan
    found, expected = compare(value, holes), compare(value, replicates[:, 30:])
    assert found.draws == 370
    np.testing.assert_array_equal(found.low, expected.low)
    np.testing.assert_array_equal(found.p, expected.p)
    none = compare(value, np.full((2, 5), math.nan))
    assert none.draws == 0
    assert none.p[0, 1] == 1.0  # nothing is known of the difference
    assert np.isnan(none.low[0, 1])


def test_the_order_of_methods_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    value = rng.random(6) / 20
    replicates = drawn(rng, value, 0.01)
    order = rng.permutation(6)
    found, turned = compare(value, replicates), compare(value[order], replicates[order])
    np.testing.assert_array_equal(turned.rank, found.rank[order])
    np.testing.assert_allclose(turned.p, found.p[np.ix_(order, order)])
    np.testing.assert_array_equal(turned.rank_set, found.rank_set[order])
    assert turned.groups == [found.groups[k] for k in order]


def test_a_mean_rank_is_that_of_the_ranks_in_each_setting() -> None:
    rng = np.random.default_rng(6)
    values = [np.array([0.5, 0.6, 0.1]), np.array([0.9, 0.1, 0.5])]
    settings = [(value, drawn(rng, value, 0.001)) for value in values]
    mean, bounds, draws = mean_ranks(settings)
    np.testing.assert_array_equal(mean, [1.5, 2.0, 2.5])
    np.testing.assert_array_equal(bounds, np.repeat(mean[:, None], 2, axis=1))  # no rank in doubt
    assert draws == 400
    close = [(value, drawn(rng, value, 0.3)) for value in values]
    mean, bounds, _ = mean_ranks(close)
    expected = np.zeros((3, 400))
    for value, replicates in close:
        moved = replicates + (value - replicates.mean(axis=1))[:, None]
        expected += np.stack([rankdata(-column) for column in moved.T], axis=1) / 2
    np.testing.assert_allclose(bounds, np.quantile(expected, [0.025, 0.975], axis=1).T)
    assert (bounds[:, 0] < bounds[:, 1]).all()
    holes = close[0][1].copy()
    holes[1, :7] = math.nan
    assert mean_ranks([(values[0], holes), close[1]])[2] == 393


def simulate(rng: np.random.Generator, methods: int, better: float) -> tuple[int, bool]:
    """Measure methods of equal quality, but the last if it is better, as ``evaluate`` does.

    Returns:
        How many pairs of equals are told apart, and whether the last is told from the first.
    """
    units, tests, draws = 24, 16, 60
    truth = rng.normal(size=(units, tests))
    noise = rng.normal(size=(methods, units, tests))
    noise[-1] *= 1 - better
    columns = [*(truth + 1.5 * noise), truth + rng.normal(size=truth.shape)]
    pairs = [[(k, methods)] for k in range(methods)]
    counts = resample_counts(rng, units, draws)
    test_counts = resample_counts(rng, tests, draws).astype(np.float32)[None]
    defined = np.ones((methods, tests), dtype=bool)
    whole = np.ones((units, 1), dtype=np.uint16)
    once = np.ones((1, tests, 1), dtype=np.float32)
    value = means(replicate_sums("spearman", columns, pairs, whole, once, defined))[:, 0, 0]
    sums = replicate_sums("spearman", columns, pairs, counts, test_counts, defined)
    told = compare(value, means(sums)[:, 0]).p <= 0.05
    equals = methods - bool(better)
    return int(np.triu(told[:equals, :equals], 1).sum()), bool(told[0, -1])


def test_equals_are_told_apart_no_more_often_than_the_level_says() -> None:
    rng = np.random.default_rng(7)
    families = [simulate(rng, 4, 0.0)[0] > 0 for _ in range(60)]
    # 60 families at 5%: 8 or more in fewer than 2% of cases
    assert sum(families) <= 7
    found = [simulate(rng, 4, 0.8) for _ in range(10)]
    assert sum(better for _, better in found) >= 8  # and a better one is found
