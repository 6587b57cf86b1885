"""Small problems of all kinds, trained, with what is asked of their samples in torch's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Recipe
from leaveout.models import gpt
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import OBJECTIVES
from leaveout.problem.samples import Samples
from leaveout.training.engine import train
from leaveout.training.trials import Trial

N_TRAIN, N_TEST, RUNS = 12, 4, 2
PAD = -100
WEIGHTS = (1.0, 3.0, 0.5)


@dataclass(frozen=True)
class Problem:
    """A problem, without a line of ours where it says what is right.

    Attributes:
        task: Trained models and samples.
        total: Sum over samples of the loss before it is divided, from outputs and targets.
        count: By what it is divided, from targets.
        margin: log p - log(1 - p) of one sample, or None.
        weight: How often one sample counts in the loss, with which its margin goes.
    """

    task: Task
    total: Callable[[Tensor, Tensor], Tensor]
    count: Callable[[Tensor], Tensor]
    margin: Callable[[Tensor, Tensor], Tensor] | None = None
    weight: Callable[[Tensor], Tensor] = lambda t: torch.ones((), dtype=torch.float64)


class Residual(nn.Module):
    """Two convolutions with batch norm beside each other's sum, on colour images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x)).tanh()
        h = (h + self.norm2(self.conv2(h))).tanh()
        found: Tensor = self.linear(h.mean((2, 3)))
        return found


class Named(nn.Module):
    """Takes numbers and ids by name; its table is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.table.weight.requires_grad_(False)
        self.hidden, self.norm, self.out = nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, numbers: Tensor, kind: Tensor) -> Tensor:
        h = torch.cat([numbers, self.table(kind)], 1)
        found: Tensor = self.out(self.norm(self.hidden(h)).tanh())
        return found


def perceptron(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs))


def frozen() -> nn.Module:
    """Return plain linear layers, of which the first is not trained."""
    layers = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    layers[0].requires_grad_(False)
    return layers


def log_odds(p: Tensor) -> Tensor:
    return p.log() - (1 - p).log()


def chosen(h: Tensor, t: Tensor) -> Tensor:
    return log_odds(h.softmax(-1)[torch.arange(len(h)), t])[0]


def weighted(h: Tensor, t: Tensor) -> Tensor:
    own = torch.tensor(WEIGHTS, dtype=h.dtype)
    return functional.cross_entropy(h, t, own, label_smoothing=0.1, reduction="sum")


def tokens(h: Tensor, t: Tensor) -> Tensor:
    return functional.cross_entropy(h.flatten(0, 1), t.flatten(), ignore_index=PAD, reduction="sum")


def token_margin(h: Tensor, t: Tensor) -> Tensor:
    seen = t[0] != PAD
    return log_odds((-functional.cross_entropy(h[0][seen], t[0][seen])).exp())


def truths(h: Tensor, t: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(h.reshape(t.shape), t, reduction="sum")


def samples_in(t: Tensor) -> Tensor:
    return torch.tensor(float(len(t)), dtype=torch.float64)


class Draw:
    """Random samples of one problem."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def numbers(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape))

    def classes(self, most: int, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(most, size=shape))


def sequences(draw: Draw, n: int) -> tuple[Tensor, Tensor]:
    ids = draw.classes(5, n, 5)
    after = ids.roll(-1, 1)
    for row, length in enumerate(draw.classes(3, n) + 2):
        after[row, length:] = PAD
    return ids, after


def made(name: str) -> dict[str, Any]:
    """Return objective, model, samples and what is right of a problem."""
    n = N_TRAIN + N_TEST
    draw = Draw(len(name))
    x = draw.numbers(n, 5)
    logistic = {"total": truths, "count": samples_in, "recipe": {}}
    match name:
        case "regression":
            return {
                "objective": OBJECTIVES["squared_error"](),
                "build": lambda: perceptron(2),
                "samples": (x, draw.numbers(n, 2) + x[:, :2]),
                "total": lambda h, t: (h - t).pow(2).sum() / 2,
                "count": samples_in,
                "recipe": {"momentum": 0.5},
            }
        case "one_logit":
            return logistic | {
                "objective": OBJECTIVES["binary_cross_entropy"](),
                "build": lambda: perceptron(1),
                "samples": (x, draw.classes(2, n).double()),
                "margin": lambda h, t: log_odds((h[0, 0] * (2 * t[0] - 1)).sigmoid()),
            }
        case "multi_label":
            return logistic | {
                "objective": OBJECTIVES["multi_label"](),
                "build": lambda: perceptron(3),
                "samples": (x, draw.classes(2, n, 3).double()),
                "margin": lambda h, t: log_odds((-truths(h, t) / 3).exp()),
                "weight": lambda t: torch.tensor(3.0, dtype=torch.float64),
            }
        case "weighted":
            own = torch.tensor(WEIGHTS, dtype=torch.float64)
            return {
                "objective": OBJECTIVES["cross_entropy"](weight=WEIGHTS, label_smoothing=0.1),
                "build": lambda: perceptron(3),
                "samples": (x, draw.classes(3, n)),
                "total": weighted,
                "count": lambda t: own[t].sum(),
                "margin": chosen,
                "weight": lambda t: 0.9 * own[t[0]] + 0.1 * own.mean(),
                "recipe": {"weight_decay": 0.01},
            }
        case "tokens":
            return {
                "objective": OBJECTIVES["token_cross_entropy"](),
                "build": lambda: gpt.build(5, 5, 1, 2, 4, 0.1, True, True),
                "samples": sequences(draw, n),
                "total": tokens,
                "count": lambda t: (t != PAD).sum().double(),
                "margin": token_margin,
                "weight": lambda t: (t != PAD).sum(),
                "recipe": {"optimizer": "adamw", "learning_rate": 0.05, "clip": 1.0},
            }
        case "residual":
            return {
                "objective": OBJECTIVES["cross_entropy"](),
                "build": Residual,
                "samples": (draw.numbers(n, 3, 4, 4), draw.classes(3, n)),
                "total": lambda h, t: functional.cross_entropy(h, t, reduction="sum"),
                "count": samples_in,
                "margin": chosen,
                "recipe": {"momentum": 0.9, "nesterov": True, "schedule": "cosine"},
            }
        case "frozen":
            return {
                "objective": OBJECTIVES["cross_entropy"](),
                "build": frozen,
                "samples": (x, draw.classes(3, n)),
                "total": lambda h, t: functional.cross_entropy(h, t, reduction="sum"),
                "count": samples_in,
                "margin": chosen,
                "recipe": {},
            }
        case _:
            inputs = {"numbers": x[:, :3], "kind": draw.classes(5, n)}
            return {
                "objective": OBJECTIVES["cross_entropy"](),
                "build": Named,
                "samples": (inputs, draw.classes(3, n)),
                "total": lambda h, t: functional.cross_entropy(h, t, reduction="sum"),
                "count": samples_in,
                "margin": chosen,
                "recipe": {},
            }


PROBLEMS = ["regression", "one_logit", "multi_label", "weighted"]
PROBLEMS += ["tokens", "residual", "named", "frozen"]


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest, make_problem: Callable[..., Problem]) -> Problem:
    return make_problem(request.param)


@pytest.fixture(scope="session")
def make_problem() -> Callable[..., Problem]:
    """Return a function that trains full and half models of a problem; it trains once."""

    @cache
    def make(name: str, dtype: torch.dtype = torch.float64) -> Problem:
        parts: Mapping[str, Any] = made(name)
        objective: Objective = parts["objective"]
        recipe = Recipe(**{"learning_rate": 0.2, "epochs": 3, "batch_size": 4, **parts["recipe"]})
        inputs, targets = (tree(dtype, part) for part in parts["samples"])
        whole = Samples(inputs, targets, objective)
        raw, test = whole[:N_TRAIN], whole[N_TRAIN:].asked(objective.measured())

        def build(seed: int) -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                module: nn.Module = parts["build"]()
                return module.to(dtype)

        def trained(kind: str, run: int, kept: np.ndarray | None) -> Trajectory:
            epochs, rates = ((1, 2, 3), (0.1, 0.2, 0.4)) if kind == "full" else ((3,), (0.2,))
            trial = Trial(0, ("t", kind, run), kept=kept)
            (found,) = train(build, [trial], raw, recipe, epochs)
            seen = torch.ones(N_TRAIN, dtype=torch.bool)
            if kept is not None:
                seen = torch.zeros_like(seen).index_fill_(0, torch.from_numpy(kept), True)
            states = [{k: v[0].detach() for k, v in s.items()} for s in found.snapshots]
            return Trajectory(trial, states, epochs, rates, seen)

        full = [trained("full", run, None) for run in range(RUNS)]
        half = [
            trained("half", run, np.sort(np.random.default_rng(run).permutation(N_TRAIN)[:6]))
            for run in range(RUNS)
        ]
        averaged = raw.asked(objective.averaged(raw.targets))
        module = build(0).eval()
        task = Task("t", 0, module, averaged, test, objective, full, half, build, recipe)
        right = {k: parts[k] for k in ("total", "count", "margin", "weight") if k in parts}
        return Problem(task, **right)

    return make


def tree(dtype: torch.dtype, value: Any) -> Any:
    """Change floating-point numbers of a mapping or tensor."""
    if isinstance(value, Mapping):
        return {key: tree(dtype, item) for key, item in value.items()}
    return value.to(dtype) if value.is_floating_point() else value
