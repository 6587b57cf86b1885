"""From NumPy to a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to a device; to a GPU without waiting for what that is still doing."""
    tensor = torch.tensor(array)  # a copy: the array may be shared and read-only
    if device.type != "cuda":
        return tensor.to(device)
    # only from pinned memory is a copy not waited for; torch keeps that memory until it is done
    return tensor.pin_memory().to(device, non_blocking=True)
