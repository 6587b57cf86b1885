"""What every method must hold to on problems of all kinds, whatever it computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leaveout.attribution.task import State, Task
from leaveout.config import Method, load_methods
from leaveout.errors import NotComputableError

METHODS = load_methods(Path(__file__).parents[2] / "config" / "methods.yaml")
# Sizes that fit a handful of samples and parameters.
SMALL = {"runs": 2, "models": 2, "projection": 8, "depth": 5, "batch": 8, "iterations": 5}
# Their scores depend on which steps saw a sample, and so on where it stands.
BY_POSITION = {"random", "magic", "dvemb"}


def middle(method: Method) -> dict[str, Any]:
    point = method.grid[len(method.grid) // 2]
    return {key: min(value, SMALL.get(key, value)) for key, value in point.items()}


# Entries that are the same file and the same small hyper-parameters are one.
KINDS = {(m.module, str(middle(m))): m.name for m in reversed(METHODS.values())}


@pytest.fixture(params=sorted(KINDS.values()))
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def of(method: Method, task: Task) -> Tensor:
    try:
        found: Any = importlib.import_module(method.module).attribute(task, **middle(method))
        return found if isinstance(found, Tensor) else torch.cat([*found])
    except NotComputableError as error:
        if error.reason != "undefined":  # hardly any memory and time are needed here
            raise
        pytest.skip(str(error))


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.isfinite().all()
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_order_and_blocks_are_nothing(
    problem: Any, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Task = problem.task
    expected = of(method, task)
    assert expected.shape == (len(task.train), len(task.test))
    assert expected.isfinite().all()
    assert expected.std() > 0
    if method.name == "random":
        return
    order = torch.randperm(len(task.test), generator=torch.Generator().manual_seed(0))
    near(of(method, replace(task, test=task.test[order])), expected[:, order], 1e-9)
    if method.name not in BY_POSITION:
        order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(1))
        moved = replace(
            task,
            train=task.train[order],
            full=[replace(run, trained_on=run.trained_on[order]) for run in task.full],
            half=[replace(run, trained_on=run.trained_on[order]) for run in task.half],
        )
        near(of(method, moved), expected[order], 1e-7)
    for module, size in (("gradients.per_sample", 3000), ("curvature.hvp", 60_000)):
        monkeypatch.setattr(f"leaveout.{module}.CHUNK_BYTES", size)
    monkeypatch.setattr("leaveout.attribution.task.BLOCK_BYTES", 5 * len(task.test) * 8)
    near(of(method, task), expected, 1e-8)


def test_single_precision_gives_the_same_in_its_own_type(
    problem: Any, method: Method, make_problem: Callable[..., Any], request: Any
) -> None:
    def turned(state: State) -> State:
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}

    exact = of(method, problem.task)
    single = make_problem(request.node.callspec.params["problem"], torch.float32).task
    own = problem.task
    task = replace(
        single,
        full=[replace(run, states=[turned(s) for s in run.states]) for run in own.full],
        half=[replace(run, states=[turned(s) for s in run.states]) for run in own.half],
    )
    found = of(method, task)
    assert found.dtype == torch.float32
    near(found.double(), exact.double(), 5e-3)


def test_a_training_sample_helps_itself(problem: Any, method: Method) -> None:
    """Curvature is positive in these, and each score[i, i] a square, whatever the objective."""
    kinds = {"grad_dot", "tracin", "tracin_cp", "if_kfac", "if_ekfac", "datainf", "relatif"}
    kinds |= {"logra", "grass", "trak"}
    if method.module.rpartition(".")[2] not in kinds:
        pytest.skip("not a square")
    task: Task = problem.task
    found = of(method, replace(task, test=task.train.asked(task.test.objective)))
    assert (found.diagonal() > -1e-12 * found.abs().max()).all()
    assert found.diagonal().sum() > 0
