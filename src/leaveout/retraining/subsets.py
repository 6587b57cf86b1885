"""Subsets of the training samples: drawn at random, or a user's own."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leaveout.config import Setting
from leaveout.config.subset_file import subset_size
from leaveout.seeds import generator


def subset_mask(
    setting: Setting, purpose: Literal["lds", "half"], subset: int
) -> NDArray[np.bool_]:
    """Return which training samples a subset keeps, (train,).

    The samples of a setting are the first ones of their data set, so ids are positions.

    Args:
        setting: Gives the root seed, the size of the training slice and the ratio; or, for LDS, the
            user's own subsets.
        purpose: LDS subsets and the halves for ensembles are different draws.
        subset: Number of the subset.
    """
    n = setting.dataset.n_train
    if purpose == "lds" and (own := setting.lds.own):
        mask = np.zeros(n, dtype=bool)
        mask[own.ids(subset)] = True
        return mask
    ratio = getattr(setting, purpose).ratio
    return draw_subset(n, ratio, generator(setting.seed, setting.name, purpose, subset, "subset"))


def draw_subset(n: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw which samples a random subset keeps, (samples,); all subsets are equally likely.

    Args:
        n: How many samples there are.
        ratio: The part of them that is kept, see
            :func:`~leaveout.config.subset_file.subset_size`.
        rng: The random stream of the subset.
    """
    mask = np.zeros(n, dtype=bool)
    mask[rng.permutation(n)[: subset_size(n, ratio)]] = True
    return mask
