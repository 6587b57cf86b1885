"""Influence functions hold the vectors of as many test samples as the memory allows, no more."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from leaveout.attribution import solved
from leaveout.attribution.task import Task
from leaveout.errors import NotComputableError

METHODS: dict[str, dict[str, Any]] = {
    "if_explicit": {"damping": 0.5},
    "if_cg": {"damping": 0.5, "iterations": 3},
    "if_lissa": {"damping": 0.1, "depth": 2, "batch": 5},
    "if_kfac": {"damping": 0.1},
    "if_ekfac": {"damping": 0.1},
    "datainf": {"damping": 0.1},
    "astra": {"damping": 0.1, "iterations": 2, "batch": 5},
    "relatif": {"base": "if_ekfac", "norm": "theta", "damping": 0.1},
    "source": {"segments": 1},
    "grad_dot": {},
    "grad_cos": {},
    "tracin_cp": {},
}


def score(task: Task, name: str) -> Tensor:
    module = importlib.import_module(f"leaveout.attribution.{name}")
    return torch.cat([*module.attribute(task, **METHODS[name])])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["regression", "tokens", "named"])
def test_however_many_test_samples_fit(
    kind: str, name: str, make_problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Task = make_problem(kind).task
    if (kind, name) == ("tokens", "source"):
        return  # AdamW: there is none
    expected = score(task, name)
    assert solved.tests_at_once(task, 10) >= len(task.test)
    monkeypatch.setattr("leaveout.attribution.task.BLOCK_BYTES", 5 * len(task.test) * 8)
    for share in (1e-12, 3.5 * 10 * 8 * 300 / task.memory):  # one at once, and a few
        monkeypatch.setattr("leaveout.attribution.task.SHARE", share)
        assert solved.tests_at_once(task, 10) < 100
        found = score(task, name)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * float(expected.std()))


def test_what_does_not_fit_at_all_is_refused(make_problem: Any) -> None:
    task: Task = dataclasses.replace(make_problem("tokens").task, memory=10_000.0)
    with pytest.raises(NotComputableError, match="one test sample's 7 vectors") as error:
        score(task, "if_cg")
    assert error.value.reason == "memory"


# 1.3 million parameters in float32 and 32 test samples: their gradients alone take 170 MB
PEAK = """
import resource
import sys

import torch
from torch import nn

from leaveout.attribution import {names}
from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Recipe
from leaveout.problem.objectives import OBJECTIVES
from leaveout.problem.samples import Samples
from leaveout.training.trials import Trial


def build(seed):
    torch.manual_seed(seed)
    width = 256
    layers = [nn.Linear(8, width), nn.LayerNorm(width), nn.Tanh()]
    layers += [part for _ in range(20) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 2))


objective = OBJECTIVES["squared_error"]()
train = Samples(torch.randn(8, 8), torch.randn(8, 2), objective)
test = Samples(torch.randn(32, 8), torch.randn(32, 2), objective.measured())
module = build(0).eval()
state = dict(module.state_dict())
recipe = Recipe(learning_rate=0.1, epochs=1, batch_size=4)
run = Trajectory(Trial(0, ("t", "full", 0)), [state], [1], [0.1], torch.ones(8).bool())
memory = 240e6
task = Task("t", 0, module, train, test, objective, [run], [], build, recipe, memory)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


before = peak()
for method, given in {methods}:
    rows = sum(len(block) for block in method.attribute(task, **given))
    print(method.__name__, rows, int(peak() - before), flush=True)
"""


@pytest.mark.slow
def test_the_peak_stays_within_what_is_allowed() -> None:
    """Beside it are the samples' own gradients, 64 MB at once, and what one product takes."""
    names = [name for name in METHODS if name != "if_explicit"]
    methods = ", ".join(f"({name}, {METHODS[name]!r})" for name in names)
    program = PEAK.format(names=", ".join(names), methods=f"[{methods}]")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert [line[0].rpartition(".")[2] for line in found] == names
    for name, rows, taken in found:
        assert int(rows) == 8
        assert int(taken) < 240e6 + 200e6, name
