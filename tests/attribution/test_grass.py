from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout import seeds
from leaveout.attribution.grass import attribute
from leaveout.attribution.task import Task
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.projection import draw_sparse, project

CPU = torch.device("cpu")


def run(task: Task, **params: Any) -> np.ndarray:
    return torch.cat([*attribute(task, **params)]).numpy()


def influence(g: np.ndarray, h: np.ndarray, damping: float) -> np.ndarray:
    fisher = g.T @ g / len(g) + damping * np.eye(g.shape[1])
    return g @ np.linalg.solve(fisher, h.T)  # type: ignore[no-any-return]


def mask(stream: np.random.Generator, size: int, count: int) -> np.ndarray:
    return np.sort(stream.permutation(size)[:count])


def test_formed_gradients_masked_and_projected(task: Task, gradients: Any) -> None:
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    size = g.shape[1]
    kept = mask(seeds.generator(task.seed, task.setting, "grass", "mask"), size, 15)
    of = draw_sparse(15, 5, task.seed, (task.setting, "grass", "projection"), CPU)
    small = [project(of, torch.from_numpy(x[:, kept])).numpy() * np.sqrt(size / 15) for x in (g, h)]
    found = run(task, damping=0.01, projection=5, blowup=3)
    np.testing.assert_allclose(found, influence(small[0], small[1], 0.01), atol=1e-9)


def test_factored_keeps_rows_and_columns_of_each_layer(make_task: Any, gradients: Any) -> None:
    task = make_task("mlp")
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    expected, start = np.zeros((len(g), len(h))), 0
    for name in ("fc1", "fc2"):
        o, i = task.module.get_submodule(name).weight.shape
        stream = seeds.generator(task.seed, task.setting, "factgrass", "mask", name)
        columns, rows = mask(stream, i + 1, 4), mask(stream, o, min(4, o))
        kept, identity = 4 * len(rows), (task.setting, "factgrass", "projection", name)
        of, small = draw_sparse(kept, 5, task.seed, identity, CPU), []
        for x in (g, h):
            weight = x[:, start : start + o * i].reshape(-1, o, i)
            whole = np.concatenate([weight, x[:, start + o * i : start + o * i + o, None]], 2)
            part = whole[:, rows][:, :, columns].reshape(len(x), -1)
            scale = np.sqrt((i + 1) / 4 * o / len(rows))
            small.append(project(of, torch.from_numpy(part)).numpy() * scale)
        expected += influence(small[0], small[1], 0.01)
        start += o * i + o
    found = run(task, damping=0.01, projection=5, blowup=3, factored=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_wide_projections_come_near_the_fisher_influence(make_task: Any, gradients: Any) -> None:
    task = make_task("linear")
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    exact = influence(g, h, 0.1).ravel()
    near, far = (
        np.corrcoef(run(task, damping=0.1, projection=k, blowup=4).ravel(), exact)[0, 1]
        for k in (2000, 3)
    )
    assert near > 0.95 > far


def test_what_it_is_not_made_for(make_task: Any) -> None:
    with pytest.raises(NotComputableError) as caught:
        run(replace(make_task("linear"), memory=1000), damping=0.1, projection=40)
    assert caught.value.reason == "memory"
    with pytest.raises(LeaveoutError, match="projection = 4, blowup = 0; 1 is the least"):
        run(make_task("linear"), damping=0.1, projection=4, blowup=0)
