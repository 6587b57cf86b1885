"""From pixels as their source holds them to a model's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def normalise(
    pixels: NDArray[Any], full_scale: float, mean: float, std: float
) -> NDArray[np.float32]:
    """Scale images to [0, 1], then subtract a mean and divide by a standard deviation, in float32.

    Args:
        pixels: (samples, height, width).
        full_scale: The largest possible value.
        mean: Subtracted after scaling.
        std: Divided by at the end.

    Returns:
        (samples, 1, height, width).
    """
    inputs = pixels.astype(np.float32)
    # in place: each step of its own would double the memory
    inputs /= np.float32(full_scale)
    inputs -= np.float32(mean)
    inputs /= np.float32(std)
    return inputs[:, None]
