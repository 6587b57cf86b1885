from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from leaveout.data import digits
from leaveout.errors import LeaveoutError


def test_test_samples_follow_the_training_ones():
    raw, whole = digits.load(50, 20), load_digits()
    np.testing.assert_array_equal(raw.train_inputs, whole.images[:50])
    np.testing.assert_array_equal(raw.test_inputs, whole.images[50:70])
    np.testing.assert_array_equal(raw.test_labels, whole.target[50:70])
    np.testing.assert_array_equal(whole.images[raw.test_id], raw.test_inputs)
    np.testing.assert_array_equal(whole.target[raw.train_id], raw.train_labels)
    assert raw.train_inputs.dtype == np.float32
    assert raw.train_labels.dtype == raw.train_id.dtype == np.int64
    assert (raw.train_inputs.min(), raw.train_inputs.max()) == (0, 16)


def test_all_of_them():
    raw = digits.load(1500, 297)
    assert raw.test_id[-1] == 1796
    assert len(load_digits().images) == digits.N_SAMPLES


@pytest.mark.parametrize("classes", [(3, 8), (8, 3), (0, 1, 9)])
def test_some_classes_against_a_naive_loop(classes):
    raw, whole = digits.load(50, 20, classes), load_digits()
    expected = [i for i in range(1797) if whole.target[i] in classes][:70]
    assert [*raw.train_id, *raw.test_id] == expected
    labels = [*raw.train_labels, *raw.test_labels]
    assert labels == [classes.index(whole.target[i]) for i in expected]
    np.testing.assert_array_equal(raw.train_inputs, whole.images[expected[:50]])
    np.testing.assert_array_equal(raw.test_inputs, whole.images[expected[50:]])


def test_too_few_samples_of_the_classes():
    held = int(np.isin(load_digits().target, [3, 8]).sum())
    digits.load(held - 7, 7, (3, 8))
    with pytest.raises(LeaveoutError, match=r"n_test: 8 is more than the 7 .*\[3, 8\] left"):
        digits.load(held - 7, 8, (3, 8))
    with pytest.raises(LeaveoutError, match=f"n_train: {held} is more than the {held - 1}"):
        digits.load(held, 1, (3, 8))


def test_provenance_does_not_depend_on_the_sizes():
    assert digits.load(5, 2).provenance == digits.load(50, 20).provenance


@pytest.mark.parametrize(
    ("n_train", "n_test", "key"),
    [
        (1797, 1, "n_train: 1797"),
        (1500, 298, "n_test: 298 is more than the 297"),
        (0, 5, "n_train: 0"),
        (5, -1, "n_test: -1"),
    ],
)
def test_sizes_out_of_range(n_train, n_test, key):
    with pytest.raises(LeaveoutError, match=key):
        digits.load(n_train, n_test)
