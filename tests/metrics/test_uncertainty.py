from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from leaveout.metrics import uncertainty
from leaveout.metrics.correlation import TopK, correlate
from leaveout.metrics.uncertainty import (
    ceiling,
    interval,
    limits,
    means,
    replicate_correlations,
    replicate_sums,
    resample_counts,
    spearman_brown,
)

REFERENCE = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def naive(kind, x, y, counts):
    """Copy out the drawn rows and correlate them with scipy: (test, replicate)."""
    out = np.empty((x.shape[1], counts.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        for b, count in enumerate(counts.T.astype(int)):
            rows = np.repeat(np.arange(len(x)), count)
            for j in range(x.shape[1]):
                out[j, b] = REFERENCE[kind](x[rows, j], y[rows, j]).statistic
    return out


def test_counts_are_draws_with_replacement():
    counts = resample_counts(np.random.default_rng(0), 12, 4000)
    assert counts.shape == (12, 4000)
    assert (counts.sum(axis=0) == 12).all()
    # Mean 1 and variance 1 - 1/12 of a multinomial count; 5 standard errors of 4000 replicates.
    np.testing.assert_allclose(counts.mean(axis=1), 1, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(counts.var(axis=1), 11 / 12, atol=5 * 1.7 / np.sqrt(4000))


@pytest.mark.parametrize("kind", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("units", [9, 30, 300])  # 300: beyond the sizes where float32 is exact
@pytest.mark.parametrize("tied", [True, False])
def test_replicates_equal_physically_resampled_ones(kind, units, tied, monkeypatch):
    rng = np.random.default_rng(units)
    x = rng.normal(size=(units, 3))
    y = x + rng.normal(size=(units, 3))
    if tied:
        x, y = np.round(x), np.round(y)
    counts = resample_counts(rng, units, 20)
    monkeypatch.setattr(uncertainty, "_CHUNK_BYTES", 1)  # one test sample a chunk
    parts = list(replicate_correlations(kind, [x, y], [(0, 1)], counts))
    assert [part for part, _ in parts] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    rho = np.concatenate([values[0] for _, values in parts])
    np.testing.assert_allclose(rho, naive(kind, x, y, counts), atol=1e-10)


@pytest.mark.parametrize("kind", ["pearson", "spearman", "kendall"])
def test_a_replicate_that_misses_the_only_odd_value_is_undefined(kind):
    rng = np.random.default_rng(4)
    x, y = np.zeros((12, 1)), rng.normal(size=(12, 1))
    x[5] = 3.0
    counts = resample_counts(rng, 12, 200)
    ((_, rho),) = replicate_correlations(kind, [x, y], [(0, 1)], counts)
    missed = counts[5] == 0
    assert 30 < missed.sum() < 120  # about 1/e of 200
    np.testing.assert_array_equal(np.isnan(rho[0, 0]), missed)
    np.testing.assert_allclose(rho[0], naive(kind, x, y, counts), atol=1e-10)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_replicates_of_the_top_k_are_those_of_the_rows_copied_out(k, tied):
    rng = np.random.default_rng(11)
    x = rng.normal(size=(200, 4))
    y = x + rng.normal(size=(200, 4))
    x[:, 3] = 1.0
    if tied:
        x, y = np.round(x), np.round(y)
    counts = resample_counts(rng, 200, 12)
    parts = replicate_correlations(TopK(k), [x, y], [(0, 1)], counts)
    rho = np.concatenate([values[0] for _, values in parts])
    for b, count in enumerate(counts.T.astype(int)):
        rows = np.repeat(np.arange(200), count)
        expected = correlate(TopK(k), x[rows], y[rows])
        np.testing.assert_allclose(rho[:, b], expected, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 1.0, 4.0])
def test_kendall_of_many_units_is_replicated_to_first_order(slope, monkeypatch):
    rng = np.random.default_rng(12)
    x = rng.normal(size=(400, 1))
    y = np.round(slope * x + rng.normal(size=x.shape), 1)
    counts = resample_counts(rng, 400, 300)
    ((_, exact),) = replicate_correlations("kendall", [x, y], [(0, 1)], counts)
    monkeypatch.setattr(uncertainty, "_EXACT_UNITS", 399)
    ((_, first),) = replicate_correlations("kendall", [x, y], [(0, 1)], counts)
    assert (exact != first).any()
    # what is left out goes with 1 / units: a few per cent of the variance here
    assert np.corrcoef(exact[0, 0], first[0, 0])[0, 1] > 0.97
    np.testing.assert_allclose(first.std(), exact.std(), rtol=0.05)


def test_kendalls_ceiling_is_what_a_predictor_without_error_reaches():
    rng = np.random.default_rng(13)
    known = rng.normal(size=(4000, 1))
    runs = known + 0.8 * rng.normal(size=(4000, 2))
    agreement = stats.kendalltau(runs[:, 0], runs[:, 1])[0]
    top, low, high, why = ceiling(agreement, np.array([agreement]), 2, "kendall")
    assert low == high == top
    assert why == ""
    # of 4000 normal pairs tau is known to .01 or so
    assert abs(top - stats.kendalltau(known[:, 0], runs.mean(axis=1))[0]) < 0.015
    assert abs(ceiling(agreement, np.array([agreement]), 2)[0] - top) > 0.05


def test_means_over_drawn_test_samples_skip_undefined_ones():
    rng = np.random.default_rng(5)
    x, y, z = rng.normal(size=(3, 15, 8))
    counts, tests = resample_counts(rng, 15, 30), resample_counts(rng, 8, 30)
    defined = np.ones((2, 8), dtype=bool)
    defined[0, 2] = False
    x[3, 2] = np.nan
    groups = [[(0, 2)], [(1, 2)]]
    got = means(replicate_sums("spearman", [x, y, z], groups, counts, tests[None], defined))
    for b in range(30):
        drawn = np.repeat(np.arange(8), tests[:, b].astype(int))
        one = counts[:, [b]]
        kept = drawn[drawn != 2]
        expected = [naive("spearman", x[:, kept], z[:, kept], one).mean()]
        expected.append(naive("spearman", y[:, drawn], z[:, drawn], one).mean())
        np.testing.assert_allclose(got[:, 0, b], expected, atol=1e-10)


def test_a_group_is_the_mean_of_its_pairs_and_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(6)
    columns = list(rng.normal(size=(3, 20, 9)))
    counts, tests = resample_counts(rng, 20, 25), resample_counts(rng, 9, 25)[None]
    defined = np.ones((3, 9), dtype=bool)
    groups = [[(0, 1), (0, 2)], [(0, 1)], [(0, 2)]]
    both, first, second = means(replicate_sums("pearson", columns, groups, counts, tests, defined))
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-12)
    monkeypatch.setattr(uncertainty, "_CHUNK_BYTES", 1)
    chunked = means(replicate_sums("pearson", columns, groups, counts, tests, defined))
    np.testing.assert_allclose(chunked[0], both, atol=1e-12)


def test_interval_is_the_percentiles_recentred_on_the_estimate():
    replicates = np.append(np.arange(101.0), np.nan)
    assert interval(replicates, 50.0) == pytest.approx((2.5, 97.5))
    assert interval(replicates, 60.0) == pytest.approx((12.5, 107.5))
    assert np.isnan(interval(replicates, np.nan)).all()
    assert np.isnan(interval(np.full(5, np.nan), 1.0)).all()


def test_an_end_beyond_the_limits_is_put_on_them_and_no_other_moves():
    replicates = np.append(np.linspace(0.2, 1.0, 101), np.nan)
    for estimate in (0.1, 0.6, 0.9):
        low, high = interval(replicates, estimate)
        assert interval(replicates, estimate, limits("pearson")) == (low, min(high, 1.0))
        assert interval(replicates, -estimate, limits("kendall"))[1] == interval(
            replicates, -estimate
        )[1]  # fmt: skip
        assert interval(replicates, estimate, limits(TopK(3))) == (max(low, 0.0), min(high, 1.0))
    assert high > 1
    assert np.isnan(interval(replicates, np.nan, limits("spearman"))).all()
    assert ceiling(0.9, replicates, 2)[2] == 1.0
    assert ceiling(0.9, replicates, 2, "kendall")[2] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(kind):
    rng = np.random.default_rng(7)

    def sample(units, tests):
        shared = rng.normal(size=(2, units, 2)) @ rng.normal(size=(2, 2, tests))
        x, noise = shared + rng.normal(size=(2, units, tests))
        return x, 1.5 * x + noise

    truth = np.mean([correlate(kind, *sample(2000, 40)).mean() for _ in range(40)])
    held = []
    for _ in range(100):
        columns = sample(80, 40)
        counts, tests = resample_counts(rng, 80, 200), resample_counts(rng, 40, 200)[None]
        every = np.ones((1, 40), dtype=bool)
        drawn = means(replicate_sums(kind, columns, [[(0, 1)]], counts, tests, every))
        low, high = interval(drawn[0, 0], correlate(kind, *columns).mean())
        held.append(low <= truth <= high)
    # 95% nominal, some 2% standard error, and Spearman's small-sample bias of about -.005.
    assert np.mean(held) > 0.85
    assert high - low < 0.2


def test_spearman_brown_is_the_reliability_of_a_mean_of_runs():
    rng = np.random.default_rng(8)
    signal, noise = rng.normal(size=200_000), rng.normal(size=(2, 3, 200_000)) * 1.2
    one, other = (signal + noise).mean(axis=1)
    single = np.corrcoef(signal + noise[0, 0], signal + noise[1, 0])[0, 1]
    # Standard error of a correlation of 200 000 pairs: about .002.
    assert spearman_brown(single, 3) == pytest.approx(np.corrcoef(one, other)[0, 1], abs=0.01)
    assert spearman_brown(0.6, 1) == 0.6


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("noise", [0.6, 1.5])
@pytest.mark.parametrize("runs", [1, 2, 5])
def test_a_noiseless_predictor_reaches_the_ceiling_and_no_more(kind, noise, runs):
    rng = np.random.default_rng(9)
    signal = rng.normal(size=(400, 200))
    truth = signal + noise * rng.normal(size=(runs, 400, 200))
    again = signal + noise * rng.normal(size=(2, 400, 200))
    reached = correlate(kind, signal, truth.mean(axis=0)).mean()
    agreement = correlate(kind, *again).mean()
    top, *_, note = ceiling(agreement, np.array([agreement]), runs)
    assert note == ""
    # 200 correlations of 400 pairs: standard error below .003; Spearman of normals is off the
    # formula by up to .006.
    assert reached == pytest.approx(top, abs=0.012)
    assert reached < 0.98  # so that a ceiling of 1 would not pass


@pytest.mark.slow
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_ceilings_interval_holds_what_a_noiseless_predictor_reaches(runs):
    rng = np.random.default_rng(10 + runs)
    pairs = [list(combinations(range(runs), 2))]

    def sample(units, tests):
        """Runs with noise of each test sample's own amount, in part common to all of them."""
        signal = rng.normal(size=(units, 2)) @ rng.normal(size=(2, tests))
        signal = signal + rng.normal(size=(units, tests))
        noise = rng.normal(size=(runs, units, tests)) + 0.5 * rng.normal(size=(runs, units, 1))
        return signal, signal + noise * rng.uniform(0.8, 1.2, size=tests)

    reached, exact = [], []
    for _ in range(40):
        signal, all_runs = sample(1000, 40)
        reached.append(correlate("spearman", signal, all_runs.mean(axis=0)).mean())
        rho = np.mean([correlate("spearman", all_runs[a], all_runs[b]) for a, b in pairs[0]])
        exact.append(ceiling(float(rho), np.array([rho]), runs)[0])
    truth = np.mean(reached)
    # Differences between test samples make the ceiling an upper bound, here by a hundredth or less;
    # Spearman of normals is off the formula by as little.
    assert np.mean(exact) == pytest.approx(truth, abs=0.012)
    held, every, found = [], np.ones((1, 25), dtype=bool), []
    for _ in range(60):
        _, all_runs = sample(60, 25)
        counts, tests = resample_counts(rng, 60, 100), resample_counts(rng, 25, 100)[None]
        drawn = means(replicate_sums("spearman", list(all_runs), pairs, counts, tests, every))
        rho = np.mean([correlate("spearman", all_runs[a], all_runs[b]) for a, b in pairs[0]])
        top, low, high, note = ceiling(float(rho), drawn[0, 0], runs)
        assert note == ""
        found.append(top)
        held.append(low <= truth <= high)
    # 95% nominal, 60 trials: standard error 2.8%
    assert np.mean(held) > 0.86
    assert np.mean(found) == pytest.approx(truth, abs=0.02)
    assert high - low < 0.2


def test_ceiling_says_why_it_is_undefined():
    assert "do not agree" in ceiling(-0.02, np.array([0.1]), 2)[3]
    assert "do not agree" in ceiling(0.0, np.array([0.1]), 2)[3]
    assert "no test sample" in ceiling(np.nan, np.array([np.nan]), 2)[3]
    top, low, high, note = ceiling(0.25, np.array([-0.25, 0.25, 0.75]), 1)
    assert (top, low, note) == (0.5, 0.0, "")  # an interval that reaches below 0 starts at 0
    assert 0.8 < high < 0.9
