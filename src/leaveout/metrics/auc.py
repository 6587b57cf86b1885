"""Mislabel detection: do samples whose label was flipped have the largest self-influence?

Paper: Koh and Liang 2017, arXiv:1703.04730 (Section 5.4), measured as by Deng et al. 2024 (dattri,
arXiv:2410.04555).
Formula: AUC = P(s_i > s_j) + P(s_i = s_j) / 2 for a flipped sample i and another one j, s being the
self-influence; .5 is chance, 1 is perfect. Samples that tie count half, so that constant scores
have .5, and scores that differ by no more than rounding count as constant.

The samples are split in two halves at random, with as many of the flipped in each: hyper-parameters
are chosen on ``select`` and reported on ``report``. There are no runs to be compared with, and so
no noise ceiling: the flips are known, and the rows of both ``truth`` are the same.

Intervals are percentiles of a bootstrap within the flipped and within the other samples, for how
many are flipped is fixed by design. In simulations (docs/uncertainty.md) they hold the truth in
93% of cases where some hundreds are flipped, and are too narrow where ten are (80% to 90%).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout import seeds
from leaveout.data.halves import HALVES, Ids
from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import Floats
from leaveout.metrics.evaluate import TRUTHS, outputs
from leaveout.metrics.files import number
from leaveout.metrics.uncertainty import LEVEL, resample_counts
from leaveout.scoring.files import listed, not_computed, read_scores, sorted_ids
from leaveout.store.artefacts import CorruptArtefactError, read
from leaveout.store.contents import Contents

ROUNDING = 1e-5
"""Scores that differ by so small a part of their size differ by rounding: float32 is good to 6e-8,
and a score is the end of some thousand operations. The cosine of a gradient with itself is one."""

NOTE = "none: which labels were flipped is known, and 1 is perfect"
_CHUNK_NUMBERS = 4 << 20


def auc(score: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, ties counted half.

    Args:
        score: (sample,). NaN has no rank: leave out such samples, and say how many, before.
        positive: (sample,), whether each is one of those that should score high.

    Returns:
        From 0 to 1; NaN if all samples are positive, or none, or a score is NaN.
    """
    weights = np.ones((len(score), 1))
    return float(weighted_auc(score, positive, weights)[0])


def weighted_auc(
    score: Floats, positive: NDArray[np.bool_], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the AUC of samples that count several times, or not at all.

    Args:
        score: (sample,).
        positive: (sample,).
        weights: (sample, replicate): how often each sample counts.

    Returns:
        (replicate,): as if the samples had been copied out; NaN where a class is empty, or a sample
        whose score is NaN counts.
    """
    order = np.argsort(score[~positive])
    others = score[~positive][order]
    below = np.zeros((len(others) + 1, weights.shape[1]))  # so many weigh the lowest k of them
    np.cumsum(weights[~positive][order], axis=0, out=below[1:])
    drawn = weights[positive]
    first, last = (np.searchsorted(others, score[positive], side) for side in ("left", "right"))
    won = (drawn * (below[first] + below[last])).sum(axis=0) / 2
    pairs = drawn.sum(axis=0) * below[-1]
    found = np.full(pairs.shape, np.nan)
    np.divide(won, pairs, out=found, where=pairs > 0)
    found[(weights[np.isnan(score)] > 0).any(axis=0)] = np.nan
    return found


def rounded(score: Floats) -> Floats:
    """Return scores that differ by rounding alone as equal; others as they are.

    Args:
        score: (sample,), finite.
    """
    if not len(score) or np.ptp(score) > ROUNDING * np.abs(score).max():
        return score
    return np.full_like(score, score[0])


def halves(positive: NDArray[np.bool_], setting: str, root_seed: int) -> dict[str, NDArray[Any]]:
    """Split samples in two halves at random, with half of the flipped ones in each.

    Args:
        positive: (sample,), whether each is flipped; in order of id.
        setting: Name of the setting.
        root_seed: Its root seed.

    Returns:
        For each of ``select``, ``report`` and ``all`` whether it holds each sample.
    """
    generator = seeds.generator(root_seed, setting, "selection", "auc")
    select = np.zeros(len(positive), dtype=bool)
    for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        select[generator.permutation(members)[: len(members) // 2]] = True
    return {"select": select, "report": ~select, "all": np.ones(len(positive), dtype=bool)}


def bootstrap_replicates(
    score: Floats, positive: NDArray[np.bool_], replicates: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return bootstrap replicates of the AUC, (replicate,); NaN if a class is empty.

    Args:
        score: (sample,), finite.
        positive: (sample,).
        replicates: Bootstrap draws.
        generator: Gives them.
    """
    counts = np.empty((len(score), replicates), dtype=np.uint16)
    for mask in (positive, ~positive):
        if not mask.any():
            return np.full(replicates, np.nan)
        counts[mask] = resample_counts(generator, int(mask.sum()), replicates)
    size = max(1, _CHUNK_NUMBERS // len(score))
    parts = [slice(k, k + size) for k in range(0, replicates, size)]
    return np.concatenate([weighted_auc(score, positive, counts[:, part]) for part in parts])


def bootstrap_interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% percentile interval of the AUC, NaN if its replicates are.

    Args:
        drawn: From :func:`bootstrap_replicates`.
    """
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _load_flips(path: Path) -> tuple[Ids, NDArray[np.bool_]]:
    """Return the training ids in order, and which were flipped."""
    artefact = read(path, "data")
    train_id, _ = sorted_ids(artefact, "train_id")
    flipped = artefact.tensors.get("flipped_id")
    if flipped is None or not len(flipped):
        raise LeaveoutError(
            f"{path}: no label was flipped, and none can be found; auc is for settings with "
            "dataset.label_noise."
        )
    return train_id, np.isin(train_id, flipped)


def evaluate_auc(
    truth: Path,
    scores: Sequence[Path],
    costs: Sequence[Path],
    *,
    setting: str,
    method: str,
    root_seed: int,
    bootstrap: int,
) -> dict[str, Contents]:
    """Evaluate the self-influence of one method; one row per hyper-parameters, truth and half.

    A sample whose self-influence is NaN or infinite is not ranked, but counted (``n_nan``).

    Args:
        truth: The setting's ``data`` artefact, which says what was flipped.
        scores: ``self_influence`` artefacts of one method, in grid order.
        costs: The cost files of these, in the same order; none if they are not at hand.
        setting: Name of the setting.
        method: Name of the method.
        root_seed: Root seed of the setting; halves and resampling derive from it and the setting.
        bootstrap: Number of bootstrap replicates.

    Returns:
        What :func:`leaveout.metrics.evaluate.evaluate` returns. In the CSV, ``n_test`` counts
        training samples, which are what is tested here, and ``n_samples`` the flipped ones among
        them; the draws are of the same samples for all methods that leave out none.

    Raises:
        LeaveoutError: A file is missing or damaged, no label was flipped, or ids, setting, method
            or labels do not fit together.
    """
    train_id, positive = _load_flips(truth)
    parts = halves(positive, setting, root_seed)
    rows: list[tuple[object, ...]] = []
    replicates: dict[str, NDArray[np.float64]] = {}
    artefacts = read_scores(scores, setting, method, "self_influence")
    for label, artefact in artefacts.items():
        why = not_computed(artefact)
        have, order = sorted_ids(artefact, "train_id")
        if not np.array_equal(have, train_id):
            raise LeaveoutError(
                f"{artefact.path}: its train ids are not those of {truth} (for example "
                f"{listed(np.setxor1d(have, train_id))}). Make both from the same setting."
            )
        if not why and "self_influence" not in artefact.tensors:
            raise CorruptArtefactError(artefact.path, "it has no array 'self_influence'")
        nothing = np.full(len(train_id), np.nan)
        score = nothing if why else artefact.tensors["self_influence"][order].astype(np.float64)
        found = {}
        for half in HALVES:
            known = parts[half] & np.isfinite(score)
            ranked, flipped = rounded(score[known]), positive[known]
            # the same draws for all methods, which can then be compared in pairs
            draw = seeds.generator(root_seed, setting, "bootstrap", "auc", half)
            drawn = bootstrap_replicates(ranked, flipped, bootstrap, draw)
            low, high = bootstrap_interval(drawn)
            if half == "report":
                replicates[label] = drawn
            count = int(parts[half].sum())
            found[half] = (
                *map(number, (auc(ranked, flipped), low, high, *(float("nan"),) * 3)),
                *(count, count - int(known.sum()), 0),
                *(int(positive[parts[half]].sum()), 1, 0, NOTE, "no", why),
            )
        for name in TRUTHS:
            for half in HALVES:
                rows.append((setting, "auc", method, label, name, half, *found[half]))
    return outputs(rows, list(artefacts.values()), replicates, costs)
