"""Of a model that has diverged, whatever it takes, every method's row says so: no crash."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leaveout.attribution.task import State, Task
from leaveout.config import Method, load_methods
from leaveout.errors import NotComputableError
from leaveout.scoring.run import held, score_blocks

METHODS = load_methods(Path(__file__).parents[2] / "config" / "methods.yaml")
SMALL = {"runs": 2, "models": 2, "projection": 8, "depth": 3, "batch": 8, "iterations": 3}
KINDS = ("regression", "tokens", "residual", "named")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def changed(task: Task, change: Callable[[Tensor], Tensor]) -> Task:
    """Change all floating-point numbers of the last state of all models."""

    def turned(state: State) -> State:
        return {k: change(v) if v.is_floating_point() else v for k, v in state.items()}

    def again(run: Any) -> Any:
        return replace(run, states=[*run.states[:-1], turned(run.states[-1])])

    return replace(task, full=[*map(again, task.full)], half=[*map(again, task.half)])


def row(method: Method, task: Task) -> np.ndarray[Any, Any] | str:
    """Return the scores as they would be written, or what the row says instead."""
    module = importlib.import_module(method.module)
    point = {key: min(value, SMALL.get(key, value)) for key, value in method.grid[0].items()}  # type: ignore[type-var]
    shape = (len(task.train), len(task.test))
    blocks = score_blocks(lambda: module.attribute(task, **point), shape, method.module, [])
    try:
        return np.concatenate([*held(module, task, blocks)])
    except NotComputableError as error:
        if error.reason != "undefined":
            raise
        return error.detail


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_are_not_finite(kind: str, method: Method, make_problem: Any) -> None:
    task = changed(make_problem(kind).task, lambda v: v * torch.nan)
    said = row(method, task)
    if method.name in ("random", "label_match"):  # they look at no model
        assert isinstance(said, np.ndarray) or "has none" in said
    else:
        assert said == "4 of 4 models are not finite (training diverged)"


@pytest.mark.parametrize("kind", KINDS)
def test_models_whose_outputs_are_not_finite(kind: str, method: Method, make_problem: Any) -> None:
    """Scores may then be no numbers, which the tables count, but nothing else goes wrong."""
    said = row(method, changed(make_problem(kind).task, lambda v: v * 1e200))
    if isinstance(said, np.ndarray):
        assert said.shape == (12, 4)
    else:
        assert len(said) > 15


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_one_number_of_one_of_several_inputs(number: float, make_problem: Any) -> None:
    task: Task = make_problem("named").task
    numbers = task.train.inputs["numbers"].clone()
    numbers[3, 1] = number
    train = replace(task.train, inputs={**task.train.inputs, "numbers": numbers})
    broken = replace(task, train=train)
    assert row(METHODS["grad_dot"], broken) == "the training samples are not all finite"
