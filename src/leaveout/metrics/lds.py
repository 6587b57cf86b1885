"""The linear datamodeling score (LDS; Park et al., TRAK, arXiv 2303.14186).

A subset s of the training samples is kept and a model trained on it alone. A score predicts the
outcome as the sum of the scores of the kept samples, and a positive score means a helpful sample,
so the prediction is compared with minus the loss: for each test sample j, Spearman over the subsets
of ``sum_{i in s} score[i, j]`` and ``-loss[s, j]``; then the mean over j.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Floats, correlate, is_broken


def predictions(blocks: Iterable[tuple[Floats, ArrayLike]]) -> NDArray[np.float64]:
    """Sum the scores of the kept samples of every subset.

    A column with a NaN or inf anywhere is NaN throughout. A column whose sums differ by no more
    than the rounding error of the sum is made exactly constant: otherwise equal scores would be
    ranked by their rounding.

    Args:
        blocks: The training samples, some at a time: their scores (train, test), and a mask
            (subset, train), 1 where the sample is kept.

    Returns:
        (subset, test).
    """
    sums, magnitude, broken, n_train = np.zeros((1, 1)), np.zeros(1), np.zeros(1, dtype=bool), 0
    for score, mask in blocks:
        broken = broken | is_broken(score)
        clean = np.where(np.isfinite(score), score, 0.0).astype(np.float64)
        sums = sums + np.asarray(mask, dtype=np.float64) @ clean
        magnitude = magnitude + np.abs(clean).sum(axis=0)
        n_train += len(clean)
    flat = np.ptp(sums, axis=0) <= n_train * np.finfo(np.float64).eps * magnitude
    sums[:, flat] = sums[:1, flat]
    sums[:, broken] = np.nan
    return sums


def outcomes(target: Floats) -> NDArray[np.float64]:
    """Return what a good prediction rises with: minus the loss of each subset's model."""
    return -target.astype(np.float64)


def lds(score: Floats, mask: ArrayLike, target: Floats) -> NDArray[np.float64]:
    """Return the linear datamodeling score of every test sample (Park et al., 2303.14186).

    Args:
        score: (train, test), positive where the training sample helps.
        mask: (subset, train), 1 where the sample is kept.
        target: (subset, test), the loss under each subset's model.

    Returns:
        (test,): NaN where undefined; their mean is the LDS.

    Raises:
        LeaveoutError: The target is not of the shape (subset, test).
    """
    predicted = predictions([(score, mask)])
    if target.shape != predicted.shape:
        raise LeaveoutError(
            f"target: expected (subset, test) = {predicted.shape}, as mask and score have, got "
            f"shape {target.shape}."
        )
    return correlate("spearman", predicted, outcomes(target))
