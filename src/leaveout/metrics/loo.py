"""Leave-one-out correlation (the counterfactual of Koh and Liang, arXiv 1703.04730).

One training sample i is left out and the model trained again. For each test sample j: Pearson over
the removed i of ``score[i, j]`` and ``loss without i - loss of the full model``; then the mean over
j. Run r is compared with the full run r.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Floats, correlate


def outcomes(target: Floats, full_target: Floats) -> NDArray[np.float64]:
    """Return how much the loss rises when each sample is left out: what a good score predicts.

    Args:
        target: (removed, run, test), losses without the sample.
        full_target: (run, test), losses of the full runs.

    Returns:
        (removed, run, test).
    """
    return target.astype(np.float64) - full_target.astype(np.float64)


def loo(score: Floats, target: Floats, full_target: Floats) -> NDArray[np.float64]:
    """Return the leave-one-out correlation of every test sample.

    Args:
        score: (removed, test), positive where the training sample helps.
        target: (removed, test), losses without the sample.
        full_target: (test,), losses of the full run.

    Returns:
        (test,): NaN where undefined; their mean is the LOO correlation.

    Raises:
        LeaveoutError: The losses are not of the scores' shape, or the full run's not (test,).
    """
    if target.shape != score.shape or full_target.shape != score.shape[1:]:
        raise LeaveoutError(
            f"target: expected (removed, test) = {score.shape}, as score has, and full_target "
            f"(test,) = {score.shape[1:]}; got shapes {target.shape} and {full_target.shape}."
        )
    return correlate("pearson", score, outcomes(target[:, None], full_target[None])[:, 0])
