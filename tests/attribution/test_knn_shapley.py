from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution.knn_shapley import attribute, shapley
from leaveout.gradients.features import penultimate_features


def brute_force(distances: np.ndarray, match: np.ndarray, k: int) -> np.ndarray:
    """Shapley values by the definition: over all subsets without the sample."""
    n = len(distances)

    def utility(subset: tuple[int, ...]) -> float:
        nearest = sorted(subset, key=lambda i: distances[i])[:k]
        return float(sum(match[i] for i in nearest)) / k

    values = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for subset in combinations(others, size):
                gain = utility((*subset, i)) - utility(subset)
                values[i] += gain / (n * comb(n - 1, size))
    return values


@pytest.mark.parametrize("k", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_values_are_shapleys_by_the_definition(k: int, n: int) -> None:
    rng = np.random.default_rng(n)
    distances, match = rng.random((3, n)), rng.integers(2, size=(3, n)).astype(float)
    found = shapley(torch.from_numpy(distances), torch.from_numpy(match), k)
    expected = [brute_force(d, m, k) for d, m in zip(distances, match, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_values_add_up_to_the_vote(task: Any) -> None:
    """Efficiency: they share out the utility of all samples, here counted by hand."""
    found = attribute(task, k=4)
    state = task.full[0].final
    f, h = (penultimate_features(task.module, state, s).numpy() for s in (task.train, task.test))
    for j, point in enumerate(h):
        nearest = np.argsort(((f - point) ** 2).sum(1))[:4]
        share = np.mean(task.train.targets.numpy()[nearest] == int(task.test.targets[j]))
        np.testing.assert_allclose(found[:, j].sum(), share, atol=1e-12)


def test_equal_distances_do_not_depend_on_order() -> None:
    distances = torch.tensor([[1.0, 2.0, 2.0, 2.0, 2.0, 3.0]]).double()
    match = torch.tensor([[0.0, 1, 0, 1, 0, 1]]).double()
    found = shapley(distances, match, 2)
    order = torch.tensor([4, 3, 5, 1, 0, 2])
    torch.testing.assert_close(shapley(distances[:, order], match[:, order], 2), found[:, order])
    assert found[0, 1] == found[0, 3]
    assert found[0, 2] == found[0, 4]


def test_blocks_of_test_samples_make_no_difference(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = attribute(task, k=3)
    monkeypatch.setattr("leaveout.attribution.knn_shapley.WORK_BYTES", 1)
    torch.testing.assert_close(attribute(task, k=3), expected, rtol=0, atol=1e-13)
