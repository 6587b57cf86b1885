from __future__ import annotations

import numpy as np
import pytest

from leaveout.data.normalise import normalise

# what load_data has always computed: each step in float32, in this order, in an array of its own
SCALE, MEAN, STD = np.float32(255), np.float32(0.1307), np.float32(0.3081)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_every_pixel_value_comes_out_to_the_bit(dtype: type) -> None:
    pixels = np.arange(256).reshape(4, 8, 8)
    expected = ((pixels.astype(np.float32) / SCALE - MEAN) / STD)[:, None]
    given = pixels.astype(dtype)
    found = normalise(given, full_scale=255, mean=0.1307, std=0.3081)
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()
    assert found.shape == (4, 1, 8, 8)
    np.testing.assert_array_equal(given, pixels)  # the pixels themselves stay
    close = (pixels / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(found[:, 0], close, rtol=0, atol=1e-6)  # values reach 2.8


def test_values_between_whole_ones_are_kept() -> None:
    pixels = np.array([[[0.25, 15.5]]])
    assert normalise(pixels, 16, 0.5, 2.0).tolist() == [[[[-0.2421875, 0.234375]]]]
