from __future__ import annotations

import numpy as np
import pytest

from leaveout.training.trials import Trial, epoch_order, epoch_rows

KEPT = np.array([1, 2, 5, 8, 9, 11, 12])


@pytest.mark.parametrize("n", [12, 13])
def test_rows_are_a_permutation_cut_into_batches(n: int) -> None:
    rows = epoch_rows(Trial(0, ("a",)), n, 0, 4)
    assert rows.shape == (-(-n // 4), 4)
    assert sorted(rows[rows >= 0]) == list(range(n))
    assert (rows.ravel()[n:] == -2).all()
    assert rows.ravel()[:n].tolist() != list(range(n))


def test_what_is_kept_stays_in_the_common_order() -> None:
    whole = epoch_order(Trial(0, ("a",)), 13, 2)
    rows = epoch_rows(Trial(0, ("a",), kept=KEPT), 13, 2, 3)
    assert rows[rows >= 0].tolist() == [i for i in whole if i in KEPT]
    assert (rows == -1).sum() == 0


def test_a_removed_sample_leaves_a_hole() -> None:
    whole = epoch_rows(Trial(0, ("a",)), 13, 1, 4)
    holed = epoch_rows(Trial(0, ("a",), removed=6), 13, 1, 4)
    np.testing.assert_array_equal(holed, np.where(whole == 6, -1, whole))


def test_file_order() -> None:
    rows = epoch_rows(Trial(0, ("a",), kept=KEPT, shuffle=False), 13, 5, 4)
    assert rows.tolist() == [[1, 2, 5, 8], [9, 11, 12, -2]]


def test_orders_differ_by_epoch_identity_and_root() -> None:
    orders = [
        tuple(epoch_order(trial, 50, epoch))
        for trial in (Trial(0, ("a",)), Trial(0, ("b",)), Trial(1, ("a",)), Trial(0, ("a", 0)))
        for epoch in range(3)
    ]
    assert len(set(orders)) == len(orders)


def test_every_sample_comes_first_equally_often() -> None:
    first = [epoch_order(Trial(0, ("a",)), 5, epoch)[0] for epoch in range(1000)]
    # binomial(1000, 1/5) has standard deviation 12.6; the streams are fixed, so this cannot flake
    assert np.abs(np.bincount(first, minlength=5) - 200).max() < 4 * 12.6


def test_initialisation_order_and_dropout_are_streams_of_their_own() -> None:
    trial = Trial(0, ("a",))
    drawn = {
        trial.init_seed(),
        int(trial.dropout_generator().integers(2**62)),
        Trial(0, ("b",)).init_seed(),
        Trial(1, ("a",)).init_seed(),
    }
    assert len(drawn) == 4
    a, b = (trial.dropout_generator().random(4) for _ in range(2))
    np.testing.assert_array_equal(a, b)  # a new generator starts anew
