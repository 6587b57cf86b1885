"""Distributional targets: the mean and the variance of a target over runs of the same data.

Training is random, so what leaving data out changes is a distribution (d-TDA: Mlodozeniec et al.,
Distributional training data attribution, arXiv 2506.12965). A bank with several runs of every
subset, or of every removed sample, holds samples of it. Its mean is what the other metrics compare
with: a sample moves it if the model would do better or worse without. Its variance is how much the
outcome is left to the seed: a sample moves that if training is steadier, or less steady, without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Floats


@dataclass(frozen=True)
class Distributional:
    """Moments of a target over runs, (unit, test) each, in the units of the target or their square.

    Attributes:
        mean: Mean over the runs.
        variance: Unbiased variance over the runs; NaN if there is one run only.
        mean_error: Standard error of the mean; NaN if there is one run only.
        variance_error: Standard error of the variance, from the fourth cumulant; NaN for fewer
            than four runs.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    mean_error: NDArray[np.float64]
    variance_error: NDArray[np.float64]


def distributional_targets(target: Floats) -> Distributional:
    """Return mean and variance over runs of the target of every unit and test sample.

    The runs of a unit must be independent. Of R runs, the variance has the variance ``kappa_4 / R +
    2 sigma^4 / (R - 1)``, which is estimated without bias from the k-statistics (Fisher 1929). A
    single estimate may be negative; the standard error is then 0.

    Args:
        target: (unit, run, test), such as ``target`` of an artefact of kind ``lds`` or ``loo``. A
            NaN or inf in any run makes all of that unit and test sample NaN.

    Returns:
        The moments, (unit, test) each.

    Raises:
        LeaveoutError: The array has other than three dims, or no run.
    """
    if target.ndim != 3 or not target.shape[1]:
        raise LeaveoutError(
            f"target: expected (unit, run, test) with a run or more, got shape {target.shape}"
        )
    x = np.where(np.isfinite(target), target, np.nan).astype(np.float64)
    n = x.shape[1]
    mean = x.mean(axis=1)
    unknown = np.full(mean.shape, np.nan)
    if n < 2:
        return Distributional(mean, unknown, unknown, unknown)
    squares = np.square(x - mean[:, None])
    s2, s4 = squares.sum(axis=1), np.square(squares).sum(axis=1)
    variance = s2 / (n - 1)
    mean_error = np.sqrt(variance / n)
    if n < 4:
        return Distributional(mean, variance, mean_error, unknown)
    k4 = n * ((n + 1) * s4 - 3 * (n - 1) / n * s2**2) / ((n - 1) * (n - 2) * (n - 3))
    of_variance = (2 * n * variance**2 + (n - 1) * k4) / (n * (n + 1))
    return Distributional(mean, variance, mean_error, np.sqrt(np.maximum(of_variance, 0.0)))
