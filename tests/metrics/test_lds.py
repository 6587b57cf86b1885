from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from leaveout.errors import LeaveoutError
from leaveout.metrics.lds import lds, predictions


def draw(seed, train=30, subsets=25, tests=6):
    rng = np.random.default_rng(seed)
    mask = (np.argsort(rng.random((subsets, train)), axis=1) < train // 2).astype(np.uint8)
    return rng, rng.normal(size=(train, tests)), mask


def test_agrees_with_a_naive_loop():
    rng, score, mask = draw(0)
    target = rng.normal(size=(25, 6)) - 0.3 * mask @ score
    expected = []
    for j in range(6):
        sums = [sum(score[i, j] for i in np.flatnonzero(row)) for row in mask]
        expected.append(stats.spearmanr(sums, -target[:, j]).statistic)
    np.testing.assert_allclose(lds(score, mask, target), expected, atol=1e-12)


def test_sign_a_helpful_sample_lowers_the_loss():
    _, score, mask = draw(1)
    loss = np.exp(-0.1 * mask @ score)  # any decreasing function: only ranks count
    np.testing.assert_allclose(lds(score, mask, loss), 1.0, atol=1e-12)
    np.testing.assert_allclose(lds(-score, mask, loss), -1.0, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e-30, 7e20, 0.0])
def test_equal_scores_predict_nothing_whatever_the_rounding_of_their_sums(value):
    rng, _, mask = draw(2, train=1001, subsets=40)
    sums = predictions([(np.full((1001, 3), value), mask)])
    assert (sums == sums[0]).all()
    parts = [slice(0, 1), slice(1, 500), slice(500, 1001)]
    sums = predictions((np.full((1001, 3), value)[part], mask[:, part]) for part in parts)
    assert (sums == sums[0]).all()
    assert np.isnan(lds(np.full((1001, 3), value), mask, rng.normal(size=(40, 3)))).all()


def test_one_bad_score_undoes_its_own_column_only():
    rng, score, mask = draw(3)
    target = rng.normal(size=(25, 6))
    clean = lds(score, mask, target)
    score[4, 1], score[7, 2] = np.nan, np.inf
    result = lds(score, mask, target)
    assert np.isnan(result).tolist() == [False, True, True, False, False, False]
    np.testing.assert_array_equal(result[[0, 3, 4, 5]], clean[[0, 3, 4, 5]])


@pytest.mark.parametrize("shape", [(25, 1), (25,), (6, 25), (24, 6), (25, 2, 6)])
def test_a_target_of_another_shape_is_refused_and_not_broadcast(shape):
    rng, score, mask = draw(5)
    message = f"(subset, test) = (25, 6), as mask and score have, got shape {shape}"
    with pytest.raises(LeaveoutError, match=re.escape(message)):
        lds(score, mask, rng.normal(size=shape))


@pytest.mark.parametrize("size", [1, 7, 29, 30])
def test_blocks_of_training_samples_add_up(size):
    _, score, mask = draw(4)
    expected = mask.astype(float) @ score
    score[4, 1], score[29, 2] = np.nan, -np.inf
    expected[:, 1:3] = np.nan
    parts = [slice(start, start + size) for start in range(0, 30, size)]
    found = predictions((score[part], mask[:, part]) for part in parts)
    np.testing.assert_allclose(found, expected, atol=1e-13)
