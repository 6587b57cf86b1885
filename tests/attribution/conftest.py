from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leaveout.attribution.task import Task, Trajectory
from leaveout.config import CNN, MLP, Linear, Model, Recipe
from leaveout.models.build import initialise
from leaveout.retraining.common import Samples
from leaveout.training.engine import train
from leaveout.training.trials import Trial

SHAPE, CLASSES, N_TRAIN, N_TEST, RUNS = (1, 4, 4), 3, 24, 7, 3
MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(8,), dropout=0.3),
    "cnn": CNN(name="cnn", channels=(2,), batch_norm=True),
}
RECIPE = Recipe(learning_rate=0.2, epochs=6, batch_size=6)
EPOCHS = {"full": (2, 4, 6), "half": (6,)}
RATES = {"full": (0.1, 0.2, 0.4), "half": (0.2,)}

Make = Callable[..., Task]


def samples(n: int, seed: int, dtype: torch.dtype) -> Samples:
    """Three overlapping clouds."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLASSES, *SHAPE))
    labels = rng.integers(CLASSES, size=n)
    inputs = 0.5 * centres[labels] + rng.standard_normal((n, *SHAPE))
    ids = np.arange(n, dtype=np.int64)
    return Samples(torch.from_numpy(inputs).to(dtype), torch.from_numpy(labels), ids)


@pytest.fixture(scope="session")
def make_task() -> Make:
    """Return a function that trains full and half models and wraps them in a task.

    It trains once: methods leave a task as it was.
    """

    @cache
    def make(
        name: str = "linear", dtype: torch.dtype = torch.float64, n_train: int = N_TRAIN
    ) -> Task:
        train_set, test_set = samples(n_train, 0, dtype), samples(N_TEST, 1, dtype)

        def build(seed: int) -> torch.nn.Module:
            return initialise(MODELS[name], SHAPE, CLASSES, seed)

        def trained(kind: str, run: int, kept: np.ndarray | None) -> Trajectory:
            trial = Trial(0, ("t", kind, run), kept=kept)
            (found,) = train(
                build, [trial], train_set.inputs, train_set.labels, RECIPE, EPOCHS[kind]
            )
            seen = torch.ones(n_train, dtype=torch.bool)
            if kept is not None:
                seen = torch.zeros_like(seen).index_fill_(0, torch.from_numpy(kept), True)
            return Trajectory(
                trial=trial,
                states=[{k: v[0].detach() for k, v in s.items()} for s in found.snapshots],
                epochs=EPOCHS[kind],
                learning_rates=RATES[kind],
                trained_on=seen,
            )

        halves = [
            np.sort(np.random.default_rng(run).permutation(n_train)[: n_train // 2])
            for run in range(RUNS)
        ]
        full = [trained("full", run, None) for run in range(RUNS)]
        half = [trained("half", run, kept) for run, kept in enumerate(halves)]
        module = build(0).to(dtype).eval().requires_grad_(False)
        return Task("t", 0, module, train_set, test_set, full, half, build, RECIPE)

    return make


@pytest.fixture(params=MODELS)
def task(request: pytest.FixtureRequest, make_task: Make) -> Task:
    return make_task(request.param)


@pytest.fixture(scope="session")
def gradients() -> Callable[..., np.ndarray]:
    """Return a function that differentiates each sample's loss by itself: (samples, parameters)."""

    def one_by_one(task: Task, state: dict[str, Tensor], part: Samples) -> np.ndarray:
        rows = []
        for x, y in zip(part.inputs, part.labels, strict=True):
            named: dict[str, Any] = {
                n: state[n].clone().requires_grad_() for n, _ in task.module.named_parameters()
            }
            outputs = torch.func.functional_call(task.module, {**state, **named}, (x[None],))
            loss = functional.cross_entropy(outputs, y[None])
            found = torch.autograd.grad(loss, list(named.values()))
            rows.append(np.concatenate([g.numpy().ravel() for g in found]))
        return np.stack(rows)

    return one_by_one
