from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout import seeds
from leaveout.attribution.logra import attribute
from leaveout.attribution.task import Task
from leaveout.errors import LeaveoutError, NotComputableError


def run(task: Task, **params: Any) -> np.ndarray:
    return torch.cat([*attribute(task, **params)]).numpy()


def layers(task: Task, g: np.ndarray) -> list[np.ndarray]:
    """Cut gradients into layers: (samples, out, in + 1), the bias last."""
    found, start = [], 0
    for layer in task.module.modules():
        if isinstance(layer, torch.nn.Linear):
            o, i = layer.weight.shape
            weight = g[:, start : start + o * i].reshape(-1, o, i)
            bias = g[:, start + o * i : start + o * i + o, None]
            found.append(np.concatenate([weight, bias], 2))
            start += o * i + o
    return found


def influence(g: np.ndarray, h: np.ndarray, damping: float) -> np.ndarray:
    fisher = g.T @ g / len(g) + damping * np.eye(g.shape[1])
    return g @ np.linalg.solve(fisher, h.T)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_full_rank_is_the_fisher_matrix_of_each_layer(
    make_task: Any, gradients: Any, name: str
) -> None:
    task = make_task(name)
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    expected = sum(
        influence(a.reshape(len(a), -1), b.reshape(len(b), -1), 0.03)
        for a, b in zip(layers(task, g), layers(task, h), strict=True)
    )
    np.testing.assert_allclose(run(task, damping=0.03, rank=99), expected, atol=1e-9)


def test_random_directions_project_formed_gradients(make_task: Any, gradients: Any) -> None:
    task = make_task("mlp")
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    expected = np.zeros((len(g), len(h)))
    for name, a, b in zip(("fc1", "fc2"), layers(task, g), layers(task, h), strict=True):
        o, i = a.shape[1:]
        p, q = (
            seeds.generator(task.seed, task.setting, "logra", name, side).standard_normal(
                (size, min(size, 4))
            )
            / min(size, 4) ** 0.5
            for size, side in ((i, "in"), (o, "out"))
        )
        small = [np.einsum("noi,oq,ip->nqp", x, q, p).reshape(len(x), -1) for x in (a, b)]
        expected += influence(*small, 0.1)
    np.testing.assert_allclose(run(task, damping=0.1, rank=4, start="random"), expected, atol=1e-9)


def test_principal_axes_keep_more_than_random_ones(make_task: Any) -> None:
    task = make_task("mlp")
    exact = run(task, damping=0.1, rank=99).ravel()
    pca, drawn = (
        np.corrcoef(run(task, damping=0.1, rank=5, start=start).ravel(), exact)[0, 1]
        for start in ("pca", "random")
    )
    assert pca > 0.9
    assert pca > drawn


def test_what_it_is_not_made_for(make_task: Any) -> None:
    with pytest.raises(NotComputableError) as caught:
        run(replace(make_task("linear"), memory=1000), damping=0.1, rank=4)
    assert caught.value.reason == "memory"
    with pytest.raises(LeaveoutError, match="start = 'svd' and rank = 4; valid: pca or random"):
        run(make_task("linear"), damping=0.1, rank=4, start="svd")
    with pytest.raises(LeaveoutError, match="damping = -1 is singular; raise the damping"):
        run(make_task("linear"), damping=-1.0, rank=4)
