"""Random subsets of the training samples."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leaveout.config import Setting
from leaveout.seeds import generator


def subset_mask(
    setting: Setting, purpose: Literal["lds", "half"], subset: int
) -> NDArray[np.bool_]:
    """Return which training positions a random subset keeps, (train,).

    Args:
        setting: Gives the root seed, the size of the training slice and the ratio.
        purpose: LDS subsets and the halves for ensembles are different draws.
        subset: Number of the subset.
    """
    n = setting.dataset.n_train
    ratio = getattr(setting, purpose).ratio
    rng = generator(setting.seed, setting.name, purpose, subset, "subset")
    mask = np.zeros(n, dtype=bool)
    mask[rng.permutation(n)[: int(n * ratio)]] = True
    return mask
