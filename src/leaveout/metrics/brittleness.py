"""Brittleness and the removal counterfactual: what retraining without the top samples changes.

Papers: see :mod:`leaveout.retraining.brittleness`, which makes what is read here.
Formula, for a method and a size k, over the test samples j asked about (all of them classified
correctly), with the margin m (logit of the right class minus the largest other) and the loss l,
both means over the runs r, and T_k(j) the k samples with the largest scores: flipped = share of j
with m_j(without T_k(j)) <= 0; loss change = mean of l_j(without T_k(j)) - l_j(full); margin change
= mean of m_j(without T_k(j)) - m_j(full). Helpful samples were found if the loss rises, the margin
falls and predictions flip, and more than if random samples are taken out.

A run without them has the full run's initialisation and order, so the difference is the removal's,
and the new batches'. The share has Wilson's interval (Wilson 1927), which does not shrink to a
point where all or none flip. The changes have the bootstrap's over test samples, the draws being
the same for all methods. Runs are few and shared by all test samples: how much other runs would
differ is not in the intervals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from leaveout import seeds
from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Floats
from leaveout.metrics.files import number, rows_text
from leaveout.metrics.uncertainty import LEVEL, resample_counts
from leaveout.scoring.files import not_computed
from leaveout.store.artefacts import CorruptArtefactError, read

COLUMNS = (
    "setting",
    "metric",
    "method",
    "params",
    "chosen_by",
    "k",
    "flipped",
    "flipped_low",
    "flipped_high",
    "loss_change",
    "loss_change_low",
    "loss_change_high",
    "margin_change",
    "margin_change_low",
    "margin_change_high",
    "n_test",
    "n_nan",
    "n_runs",
    "not_computed",
)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share; NaN of none.

    Args:
        successes: How many.
        n: Of how many.
    """
    if not n:
        return float("nan"), float("nan")
    found = binomtest(successes, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return float(found.low), float(found.high)


def _mean(
    change: Floats, replicates: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Return the mean over test samples (test,), and its percentile interval."""
    if not len(change):
        return (float("nan"),) * 3
    counts = resample_counts(generator, len(change), replicates)
    drawn = change @ counts / len(change)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(change.mean()), float(low), float(high)


def evaluate_brittleness(
    retrained: Path,
    *,
    setting: str,
    method: str,
    root_seed: int,
    bootstrap: int,
) -> str:
    """Evaluate the retrainings without one method's top samples; one row per size.

    A test sample without an outcome (a score or a loss that is NaN or infinite) is left out and
    counted, in all columns of that row.

    Args:
        retrained: The ``brittleness`` artefact.
        setting: Name of the setting.
        method: Name of the method.
        root_seed: Root seed of the setting; resampling derives from it and the setting.
        bootstrap: Number of bootstrap replicates.

    Returns:
        The text of a CSV with the columns ``COLUMNS``; ``n_test`` counts the test samples asked
        about, ``n_nan`` those of them without an outcome.

    Raises:
        LeaveoutError: The file is missing or damaged, or of another setting or method.
    """
    artefact = read(retrained, "brittleness")
    for name, expected in (("setting", setting), ("method", method)):
        if artefact.meta.get(name) != expected:
            raise LeaveoutError(
                f"{retrained}: its {name} is {artefact.meta.get(name)!r}, expected {expected!r}."
            )
    arrays = artefact.tensors
    for name in ("loss", "margin", "full_loss", "full_margin", "k"):
        if name not in arrays:
            raise CorruptArtefactError(retrained, f"it has no array {name!r}")
    order = np.argsort(arrays["test_id"])
    rows = []
    for size, k in enumerate(arrays["k"]):
        margin = arrays["margin"][order, size].mean(axis=1)
        changes = {
            name: arrays[name][order, size].mean(axis=1)
            - arrays[f"full_{name}"][order].mean(axis=1)
            for name in ("loss", "margin")
        }
        known = np.isfinite(margin) & np.isfinite(changes["loss"])
        flipped, n = int((margin[known] <= 0).sum()), int(known.sum())
        share = flipped / n if n else float("nan")
        found = [share, *wilson(flipped, n)]
        for name in ("loss", "margin"):
            draw = seeds.generator(root_seed, setting, "bootstrap", "brittleness")
            found += _mean(changes[name][known], bootstrap, draw)
        rows.append(
            (
                *(setting, "brittleness", method, artefact.meta["label"]),
                *(artefact.meta["chosen_by"], int(k), *map(number, found)),
                *(len(order), len(order) - n, arrays["margin"].shape[2], not_computed(artefact)),
            )
        )
    return rows_text(COLUMNS, rows)
