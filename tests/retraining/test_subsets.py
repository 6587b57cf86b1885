from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from leaveout.config import Setting
from leaveout.config.subset_file import subset_size
from leaveout.retraining.subsets import subset_mask

Make = Callable[..., Setting]


@pytest.mark.parametrize(("ratio", "size"), [(0.5, 15), (0.3, 9), (0.99, 29), (0.04, 1)])
def test_size(make_setting: Make, ratio: float, size: int) -> None:
    mask = subset_mask(make_setting(lds={"ratio": ratio}), "lds", 0)
    assert mask.dtype == bool
    assert mask.shape == (30,)
    assert mask.sum() == size


def test_a_whole_number_of_samples_is_not_cut_by_rounding(make_setting: Make) -> None:
    assert int(0.29 * 100) == 28
    mask = subset_mask(make_setting(dataset={"n_train": 100}, lds={"ratio": 0.29}), "lds", 0)
    assert mask.sum() == 29
    for n in (30, 100, 5000):
        for ratio in np.arange(1, 100) / 100:
            exact = Fraction(n) * Fraction(f"{ratio:.2f}")
            assert subset_size(n, float(ratio)) == math.floor(exact)


def test_each_is_a_draw_of_its_own(make_setting: Make) -> None:
    setting, other = make_setting(), make_setting(seed=4)
    masks = [subset_mask(setting, "lds", s) for s in range(20)]
    masks += [subset_mask(setting, "half", s) for s in range(20)]
    masks += [subset_mask(other, "lds", s) for s in range(20)]
    masks += [subset_mask(make_setting(name="else"), "lds", s) for s in range(20)]
    assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_neither_count_nor_chunks_nor_other_sections_matter(make_setting: Make) -> None:
    a = make_setting()
    b = make_setting(lds={"subsets": 90, "chunk": 7, "runs": 1}, model={"name": "linear"})
    for subset in range(5):
        np.testing.assert_array_equal(subset_mask(a, "lds", subset), subset_mask(b, "lds", subset))


def test_every_sample_is_kept_equally_often(make_setting: Make) -> None:
    setting = make_setting()
    kept = sum(subset_mask(setting, "lds", s).astype(int) for s in range(400))
    # binomial(400, 1/2) has standard deviation 10; the streams are fixed, so this cannot flake
    assert np.abs(kept - 200).max() < 40
