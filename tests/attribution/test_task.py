"""What holds for every method: alignment, duplicates, and the sign, by really training again."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from leaveout.attribution import grad_dot, if_explicit
from leaveout.attribution import task as task_module
from leaveout.attribution.task import Task
from leaveout.config import MLP, Linear, Model, Recipe
from leaveout.models.build import initialise
from leaveout.problem.samples import Samples
from leaveout.training.engine import train
from leaveout.training.trials import Trial

METHODS: dict[str, dict[str, Any]] = {
    "grad_dot": {},
    "grad_cos": {},
    "tracin": {"runs": 3, "weight": 1.0},
    "tracin_cp": {},
    "if_explicit": {"damping": 0.1},
    "if_cg": {"damping": 0.1, "iterations": 10},
}


@pytest.fixture(params=METHODS)
def score(request: pytest.FixtureRequest) -> Callable[[Task], Tensor]:
    module = importlib.import_module(f"leaveout.attribution.{request.param}")
    return lambda task: torch.cat([*module.attribute(task, **METHODS[request.param])])


def pick(part: Samples, rows: list[int]) -> Samples:
    return part[rows]


def test_scores_follow_their_samples(task: Task, score: Callable[[Task], Tensor]) -> None:
    expected = score(task)
    assert expected.shape == (24, 7)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(24).tolist(), rng.permutation(7).tolist()
    moved = dataclasses.replace(task, train=pick(task.train, rows), test=pick(task.test, columns))
    torch.testing.assert_close(score(moved), expected[rows][:, columns], atol=1e-10, rtol=1e-8)


def test_duplicates_score_alike(task: Task, score: Callable[[Task], Tensor]) -> None:
    doubled = dataclasses.replace(task, train=pick(task.train, [*range(24), 3, 17, 3]))
    found = score(doubled)
    torch.testing.assert_close(found[24:], found[[3, 17, 3]], atol=1e-12, rtol=1e-9)
    assert (found[3] - found[17]).abs().max() > 1e-6


def test_a_task_is_left_as_it_was(task: Task, score: Callable[[Task], Tensor]) -> None:
    state = task.full[0].final
    kept = {k: v.clone() for k, v in {**task.module.state_dict(), **state}.items()}
    first = score(task)
    assert torch.equal(first, score(task))
    assert not task.module.training
    assert not any(p.requires_grad or p.grad is not None for p in task.module.parameters())
    for name, value in {**task.module.state_dict(), **state}.items():
        assert torch.equal(value, kept[name])


@pytest.mark.parametrize("rows", [1, 5, 8, 23])
def test_blocks_of_any_size_give_the_same_scores(
    task: Task, score: Callable[[Task], Tensor], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(task)
    monkeypatch.setattr(task_module, "BLOCK_BYTES", rows * 7 * 8 + 7)  # float64
    assert [len(block.ids) for block in task.train_blocks()][:-1] == [rows] * (23 // rows)
    # a matrix product of other sizes rounds otherwise
    torch.testing.assert_close(score(task), expected, atol=1e-12, rtol=1e-9)


def test_blocks_cover_the_training_samples_in_order(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "BLOCK_BYTES", 5 * 7 * 8)
    blocks = list(task.train_blocks())
    assert [len(block.ids) for block in blocks] == [5, 5, 5, 5, 4]
    assert np.concatenate([block.ids for block in blocks]).tolist() == list(range(24))
    assert torch.equal(torch.cat([block.inputs for block in blocks]), task.train.inputs)
    assert torch.equal(torch.cat([block.targets for block in blocks]), task.train.targets)
    monkeypatch.setattr(task_module, "BLOCK_BYTES", 1)
    assert len(list(task.train_blocks())) == 24


def losses(model: Model, trials: list[Trial], task: Task, recipe: Recipe) -> np.ndarray:
    """Train and return each model's test losses."""

    def build(seed: int) -> torch.nn.Module:
        return initialise(model, tuple(task.train.inputs.shape[1:]), 3, seed).double()

    found = []
    for trained in train(build, trials, task.train, recipe):
        for outputs in trained.outputs(task.test.inputs):
            found.append(functional.cross_entropy(outputs, task.test.targets, reduction="none"))
    return torch.stack(found).detach().numpy()


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_without_the_most_helpful_samples_the_loss_is_larger(
    make_task: Callable[..., Task], score: Callable[[Task], Tensor], name: str
) -> None:
    task = make_task(name)
    model: Model = Linear(name="linear") if name == "linear" else MLP(name="mlp", hidden=(8,))
    recipe = Recipe(learning_rate=0.2, epochs=6, batch_size=6)
    ranked = score(task).argsort(dim=0)

    def without(rows: Tensor) -> np.ndarray:
        """Each test sample's loss without the five samples ranked for it, over three runs."""
        trials = [
            Trial(0, ("t", "full", run), kept=np.delete(np.arange(24), rows[:, j].numpy()))
            for run in range(3)
            for j in range(7)
        ]
        found = losses(model, trials, task, recipe).reshape(3, 7, 7)
        return found[:, np.arange(7), np.arange(7)].mean(0)

    full = losses(model, [Trial(0, ("t", "full", r)) for r in range(3)], task, recipe).mean(0)
    helpful, harmful = without(ranked[-5:]), without(ranked[:5])
    assert (helpful - full).mean() > 0.02
    assert (harmful - full).mean() < -0.02


def test_leave_one_out_of_a_convex_problem_is_what_the_influence_function_says(
    make_task: Callable[..., Task],
) -> None:
    n = 150
    task = make_task("linear", n_train=n)
    decay = 0.05  # makes the optimum unique; the damping is then no approximation
    recipe = Recipe(learning_rate=0.5, epochs=600, batch_size=n, weight_decay=decay)
    whole = Trial(0, ("t", "full", 0))
    trials = [whole, *(dataclasses.replace(whole, removed=i) for i in range(n))]
    model = Linear(name="linear")
    found = losses(model, trials, task, recipe)
    truth = found[1:] - found[0]

    def build(seed: int) -> torch.nn.Module:
        return initialise(model, (1, 4, 4), 3, seed).double()

    stacks = train(build, trials[:1], task.train, recipe)
    (trained,) = stacks
    state = {k: v[0] for k, v in trained.snapshots[-1].items()}
    converged = dataclasses.replace(
        task, full=[dataclasses.replace(task.full[0], states=[state], learning_rates=[1.0])]
    )
    # first order: the loss changes by score / n
    predicted = torch.cat([*if_explicit.attribute(converged, damping=decay)]).numpy() / n

    def correlation(a: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(a[:, j], truth[:, j])[0, 1] for j in range(7)]))

    assert correlation(predicted) > 0.98
    assert (
        correlation(predicted)
        > correlation(torch.cat([*grad_dot.attribute(converged)]).numpy()) + 0.05
    )
    slope = (predicted * truth).sum() / (predicted**2).sum()
    # a removal weighs more than its first order says, by leverage: 1 / (1 - h), h near 1/3 x 1/2
    assert 1 < slope < 1.5
