"""All recipes, in every path, against a loop with torch.optim that is written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.problem.objectives import (
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
)
from leaveout.problem.samples import Samples
from leaveout.training.engine import Path, train
from leaveout.training.replay import Replay
from leaveout.training.trials import Trial, epoch_rows

N, WIDTH, TOKENS = 17, 5, 4
COMMON: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 5}
RECIPES = {
    "sgd": {"epochs": 3},
    "momentum": {"epochs": 3, "momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"epochs": 3, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adam": {"epochs": 3, "optimizer": "adam", "weight_decay": 0.1},
    "adamw": {"epochs": 3, "optimizer": "adamw", "weight_decay": 0.1, "betas": (0.9, 0.95)},
    "no decay of biases": {
        "epochs": 3,
        "optimizer": "adamw",
        "weight_decay": 0.5,
        "decay": "matrices",
    },
    "clipped": {"epochs": 3, "clip": 0.05, "momentum": 0.5},
    "cosine": {"epochs": 3, "schedule": "cosine", "warmup": 3, "final_rate": 0.1},
    "linear": {"epochs": 3, "optimizer": "adamw", "schedule": "linear", "warmup": 2},
    "iterations": {"iterations": 10, "schedule": "linear", "momentum": 0.5},
}
TRIALS = {
    "all": Trial(0, ("t",)),
    "some kept": Trial(0, ("t",), kept=np.arange(0, N, 2)),
    "one removed": Trial(0, ("t",), removed=3),
    "in order": Trial(0, ("t",), shuffle=False),
}


class Reader(nn.Module):
    """Reads tokens and says one at every position; the padded ones are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 1, bias=False, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 6, bias=False)
        self.head.weight = self.tokens.weight  # tied

    def forward(self, ids: Tensor, padded: Tensor) -> dict[str, Tensor]:
        x = self.tokens(ids)
        found, _ = self.attention(x, x, x, key_padding_mask=padded, need_weights=False)
        return {"logits": self.head(self.norm(x + found))}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(kind: str) -> tuple[Callable[[int], nn.Module], Samples]:
    x = torch.randn(N, 3, generator=generator(0), dtype=torch.float64)

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            outputs = {"numbers": 2, "classes": 3, "one logit": 1}[kind]
            model = nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, outputs))
        return model.double()

    if kind == "numbers":
        y = torch.randn(N, 2, generator=generator(1), dtype=torch.float64)
        return build, Samples(x, y, squared_error())
    if kind == "classes":
        y = torch.randint(3, (N,), generator=generator(1))
        return build, Samples(x, y, cross_entropy(weight=[1.0, 4.0, 0.3]))
    y = torch.randint(2, (N,), generator=generator(1))
    return build, Samples(x, y, binary_cross_entropy())


def tokens() -> tuple[Callable[[int], nn.Module], Samples]:
    ids = torch.randint(6, (N, TOKENS), generator=generator(2))
    length = 1 + torch.arange(N) % TOKENS
    padded = torch.arange(TOKENS) >= length[:, None]

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Reader().double()

    targets = ids.roll(-1, 1).masked_fill(padded, -100)
    return build, Samples({"ids": ids, "padded": padded}, targets, token_cross_entropy())


PROBLEMS = {
    "numbers": lambda: numbers("numbers"),
    "classes": lambda: numbers("classes"),
    "one logit": lambda: numbers("one logit"),
    "tokens": tokens,
}


def batch_loss(kind: str, outputs: Any, y: Tensor) -> Tensor:
    """Return what torch's own losses make of a batch."""
    if kind == "numbers":
        return (outputs - y).square().sum(1).mean() / 2
    if kind == "classes":
        weight = torch.tensor([1.0, 4.0, 0.3], dtype=torch.float64)
        return nn.functional.cross_entropy(outputs, y, weight=weight)
    if kind == "one logit":
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.double())
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), y.flatten())


def rate_at(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate as the formulas of the schedules have it."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / (recipe.warmup + 1)
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    left = {
        "constant": 1.0,
        "linear": recipe.final_rate + (1 - recipe.final_rate) * (1 - done),
        "cosine": recipe.final_rate + (1 - recipe.final_rate) * (1 + math.cos(math.pi * done)) / 2,
    }
    return recipe.learning_rate * left[recipe.schedule]


def by_torch(kind: str, recipe: Recipe, trial: Trial) -> dict[str, Tensor]:
    build, samples = PROBLEMS[kind]()
    model = build(trial.init_seed())
    flat = [p for p in model.parameters() if p.dim() < 2]
    deep = [p for p in model.parameters() if p.dim() >= 2]
    bare = 0.0 if recipe.decay == "matrices" else recipe.weight_decay
    groups = [
        {"params": deep, "weight_decay": recipe.weight_decay},
        {"params": flat, "weight_decay": bare},
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, 1.0, momentum=recipe.momentum, nesterov=recipe.nesterov)
    else:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[recipe.optimizer](groups, 1.0, betas=recipe.betas, eps=recipe.eps)
    seen = N if trial.kept is None else len(trial.kept)
    each = -(-seen // recipe.batch_size)
    steps = recipe.iterations or (recipe.epochs or 0) * each
    model.train()
    for step in range(steps):
        row = epoch_rows(trial, N, step // each, recipe.batch_size)[step % each]
        batch = torch.from_numpy(row[row >= 0])
        if not len(batch):
            continue
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step, steps)
        some = samples[batch]
        called = some.inputs if isinstance(some.inputs, dict) else {"input": some.inputs}
        optimizer.zero_grad()
        batch_loss(kind, model(**called), some.targets).backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("path", ["reference", "functional", "replay"])
def test_each_path_takes_the_steps_of_torchs_optimisers(
    path: Path | str, name: str, problem: str
) -> None:
    recipe = Recipe.model_validate({**COMMON, **RECIPES[name]})
    build, samples = PROBLEMS[problem]()
    trials = [*TRIALS.values()]
    if path == "functional" and recipe.iterations:  # they are of one size then
        trials = [TRIALS["all"], TRIALS["one removed"], TRIALS["in order"]]
    if path == "replay":
        found = [Replay(build, trial, samples, recipe).final for trial in trials]
    else:
        found = [
            {k: v[row] for k, v in trained.snapshots[-1].items()}
            for trained in train(build, trials, samples, recipe, path=path)  # type: ignore[arg-type]
            for row in range(len(trained.trials))
        ]
    start = build(trials[0].init_seed()).state_dict()
    for trial, state in zip(trials, found, strict=True):
        expected = by_torch(problem, recipe, trial)
        assert any(not torch.equal(expected[key], start[key]) for key in expected)
        expected.pop("head.weight", None)  # a tied weight is kept once
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, atol=1e-11, rtol=0)


def test_checkpoints_of_iterations_are_states_after_so_many_steps() -> None:
    build, samples = PROBLEMS["numbers"]()
    recipe = Recipe(learning_rate=0.05, batch_size=5, iterations=10)
    (trained,) = train(build, [TRIALS["all"]], samples, recipe, [4, 7])
    assert len(trained.snapshots) == 3
    for snapshot, steps in zip(trained.snapshots, (4, 7, 10), strict=True):
        shorter = recipe.model_copy(update={"iterations": steps})
        for key, value in by_torch("numbers", shorter, TRIALS["all"]).items():
            torch.testing.assert_close(snapshot[key][0], value, atol=1e-12, rtol=0)


def test_frozen_parameters_stay_where_they_are() -> None:
    plain, samples = PROBLEMS["numbers"]()

    def build(seed: int) -> nn.Module:
        model = plain(seed)
        model.get_submodule("0").requires_grad_(False)
        return model

    recipe = Recipe(**COMMON, epochs=3, optimizer="adamw", weight_decay=0.1)
    start = build(TRIALS["all"].init_seed()).state_dict()
    for path in ("reference", "functional"):
        (trained,) = train(build, [TRIALS["all"]], samples, recipe, path=path)  # type: ignore[arg-type]
        final = {k: v[0] for k, v in trained.snapshots[-1].items()}
        assert torch.equal(final["0.weight"], start["0.weight"])
        assert not torch.equal(final["2.weight"], start["2.weight"])


def test_a_batch_whose_samples_are_all_ignored_moves_nothing() -> None:
    build, samples = PROBLEMS["classes"]()
    ignored = Samples(samples.inputs, torch.ones(N).long(), cross_entropy(ignore_index=1))
    recipe = Recipe(**COMMON, epochs=1)
    start = build(TRIALS["all"].init_seed()).state_dict()
    for path in ("reference", "functional"):
        (trained,) = train(build, [TRIALS["all"]], ignored, recipe, path=path)  # type: ignore[arg-type]
        for name, value in trained.snapshots[-1].items():
            assert torch.equal(value[0], start[name])
