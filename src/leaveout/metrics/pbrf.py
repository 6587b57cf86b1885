"""Correlation with the proximal Bregman response function (PBRF; Bae et al., arXiv 2209.05364).

A full model is moved to where the objective of PBRF without one training sample has its minimum
(:mod:`leaveout.retraining.pbrf`). For each test sample j: Pearson over the samples i of ``score[i,
j]`` and ``loss at that minimum - loss of the full model``; then the mean over j. A sample whose
minimum was not found says nothing, and is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leaveout.metrics.correlation import Bools, Floats
from leaveout.metrics.loo import loo


def pbrf(
    score: Floats, target: Floats, full_target: Floats, converged: Bools
) -> NDArray[np.float64]:
    """Return the PBRF correlation of every test sample.

    Args:
        score: (point, test), positive where the training sample helps.
        target: (point, test), losses where the objective without the sample has its minimum.
        full_target: (test,), losses of the full model.
        converged: (point,): whether the minimum was found.

    Returns:
        (test,): NaN where undefined; their mean is the PBRF correlation.
    """
    return loo(score[converged], target[converged], full_target)
