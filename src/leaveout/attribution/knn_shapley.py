"""KNN-Shapley: the exact Shapley values of the training samples of a k-nearest-neighbours vote.

Paper: Jia et al. 2019, Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms,
arXiv:1908.08619 (Theorem 1).
Formula: utility of a subset S for test sample j: (1/k) x the number of its min(k, |S|) nearest
samples in S that have label j. With the training samples in order of their distance, s the Shapley
values and m_i = [label_i = label_j]: s_n = m_n min(k, n) / (k n), s_i = s_{i+1} + (m_i - m_{i+1})
min(k, i) / (k i). Distances are Euclidean, between what the last linear layer sees at the final
state of full run 0; of equal distances, samples with label j come first.
Cost: O(n log n) for each test sample, and its n distances.
Approximated: the vote's values are exact, but the vote only stands in for the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.gradients.features import penultimate_features

WORK_BYTES = 128 << 20
"""Distances, orders and values of a block of test samples, at most."""


def attribute(task: Task, *, k: int) -> Tensor:
    """Return the Shapley values for the vote on each test sample.

    Args:
        task: The task.
        k: Neighbours that vote.

    Returns:
        (train, test).

    Raises:
        NotComputableError: Samples have no classes, or the model has no last linear layer.
    """
    classes = task.objective.need("classes", "the vote is about classes")
    n, m, state = len(task.train), len(task.test), task.full[0].final
    task.need(4.0 * n * m + WORK_BYTES, f"the values of {n} x {m} samples")
    # in float64, so that samples twice there are next to one another
    features, others = (
        penultimate_features(task.module, state, part).double() for part in (task.train, task.test)
    )
    labels, own = classes(task.train.targets), classes(task.test.targets)
    values = task.like.new_empty(n, m)
    size = max(1, WORK_BYTES // (64 * n))
    for start in range(0, m, size):
        part = slice(start, start + size)
        match = (own[part, None] == labels).double()
        values[:, part] = shapley(_squared_distances(others[part], features), match, k).T
    return values


def shapley(distances: Tensor, match: Tensor, k: int) -> Tensor:
    """Return the Shapley values of samples for a vote of the nearest.

    Args:
        distances: To each test sample, (test, train).
        match: 1 where the label is the test sample's, else 0, (test, train).
        k: Neighbours that vote.

    Returns:
        (test, train).
    """
    n = distances.shape[1]
    first = match.argsort(dim=1, descending=True, stable=True)
    order = first.gather(1, distances.gather(1, first).argsort(dim=1, stable=True))
    sorted_match = match.gather(1, order)
    rank = torch.arange(1, n + 1, device=distances.device)
    weight = rank.clamp(max=k).to(match.dtype) / (k * rank)
    following = torch.cat([sorted_match[:, 1:], torch.zeros_like(sorted_match[:, :1])], dim=1)
    steps = (sorted_match - following) * weight
    # the sum over all later steps, and one's own
    sums = steps.flip(1).cumsum(1).flip(1)
    return torch.empty_like(sums).scatter_(1, order, sums)


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    products = left @ right.T
    # |left|^2 is left out: it is the same for a whole row and does not change its order
    return right.square().sum(1) - 2 * products
