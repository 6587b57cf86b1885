from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from leaveout.data.label_noise import flip, flip_label
from leaveout.errors import LeaveoutError

LABELS = np.random.default_rng(0).integers(0, 10, 1000)


@pytest.mark.parametrize(("p", "count"), [(0.0, 0), (0.1, 100), (0.29, 290), (1.0, 1000)])
def test_so_many_are_flipped_and_each_to_another_label(p, count):
    before = LABELS.copy()
    flipped, places = flip_label(LABELS, p=p, seed=1)
    assert len(places) == len(set(places)) == count
    assert places == sorted(places)
    assert np.flatnonzero(flipped != LABELS).tolist() == places
    np.testing.assert_array_equal(LABELS, before)
    assert flipped.dtype == LABELS.dtype


def test_the_number_is_rounded():
    assert len(flip_label([0, 1] * 50, p=0.29, seed=0)[1]) == 29  # int(0.29 * 100) is 28
    assert len(flip_label([0, 1, 0], p=0.1, seed=0)[1]) == 0


def test_positions_and_labels_are_uniform():
    labels = np.arange(40_000) % 4
    flipped, places = flip_label(labels, p=0.5, seed=2)
    # standard deviations of the hypergeometric and the multinomial counts, times 4.5
    assert np.bincount(np.array(places) // 10_000) == pytest.approx([5000] * 4, abs=4.5 * 43.3)
    for label in range(4):
        to = np.bincount(flipped[places][labels[places] == label], minlength=4)
        others = np.delete(to, label)
        assert to[label] == 0
        assert others == pytest.approx(others.mean(), abs=4.5 * np.sqrt(others.sum() * 2 / 9))


def test_a_seed_gives_the_same_flips_and_another_gives_others():
    first, places = flip_label(LABELS, seed=3)
    again, places_again = flip_label(LABELS, seed=3)
    assert places == places_again
    np.testing.assert_array_equal(first, again)
    # of 100 in 1000 places 10 agree by chance, with a standard deviation of 2.8
    assert len({*places} & {*flip_label(LABELS, seed=4)[1]}) < 24
    assert flip_label(LABELS)[1] != flip_label(LABELS)[1]


def test_lists_and_tensors_are_flipped_alike():
    expected, places = flip_label(LABELS, seed=5)
    as_list, same = flip_label(LABELS.tolist(), seed=5)
    assert (as_list, same) == (expected.tolist(), places)
    assert isinstance(as_list[0], int)
    given = torch.from_numpy(LABELS).to(torch.int32)
    tensor, same = flip_label(given, label_space=torch.arange(10), seed=5)
    assert same == places
    assert tensor.dtype == torch.int32
    np.testing.assert_array_equal(tensor.numpy(), expected)
    np.testing.assert_array_equal(given.numpy(), LABELS)


def test_a_label_space_says_what_to_flip_to():
    flipped, places = flip_label([1, 1, 1, 1] * 30, label_space=[7, 1, 3], p=0.5, seed=0)
    assert {flipped[i] for i in places} == {3, 7}
    words, places = flip_label(["cat", "dog", "dog"], p=1.0, seed=0)
    assert (words, places) == (["dog", "cat", "cat"], [0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], None, 1.5), r"p: 1.5 is not between 0 and 1"),
        (([0, 1], None, -0.1), r"p: -0.1"),
        (([0, 1], None, float("nan")), r"p: nan"),
        (([1, 1], None, 0.5), "two or more"),
        (([0, 5], [0, 1], 0.5), r"label_space: \[5\] are labels, but not in it: \[0, 1\]"),
        (([[0, 1]], None, 0.5), r"expected \(n,\) labels, got the shape \(1, 2\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(LeaveoutError, match=message):
        flip_label(*arguments)


def test_nothing_to_flip():
    assert flip_label([], p=0.1, seed=0) == ([], [])
    assert flip_label([1, 1], p=0.0) == ([1, 1], [])


def test_a_draw_is_its_streams():
    places, to = flip(LABELS, 10, 0.1, np.random.default_rng(0))
    assert places.dtype == to.dtype == np.int64
    np.testing.assert_array_equal(flip(LABELS, 10, 0.1, np.random.default_rng(0))[0], places)
    assert (to != LABELS[places]).all()
    assert ((to >= 0) & (to < 10)).all()


def test_no_torch_is_needed():
    code = (
        "import sys; from leaveout.data.label_noise import flip_label; "
        "print(flip_label([0, 1], p=1.0, seed=0), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "([1, 0], [0, 1]) False\n"
