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
from leaveout.training.dropout import draw_masks, dropout_sites, dropped
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
        weight = torch.tensor([1.0, 4.0, 0.3], dtype=torch.float64).to(outputs)
        return nn.functional.cross_entropy(outputs, y, weight=weight)
    if kind == "one logit":
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs))
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


def by_torch(
    kind: str,
    recipe: Recipe,
    trial: Trial,
    problem: tuple[Callable[[int], nn.Module], Samples] | None = None,
) -> dict[str, Tensor]:
    build, samples = problem or PROBLEMS[kind]()
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
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            outputs = model(**called)
        if not isinstance(outputs, dict):
            outputs = outputs.to(next(model.parameters()))
        batch_loss(kind, outputs, some.targets).backward()
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


@pytest.mark.parametrize("kind", ["numbers", "classes", "one logit"])
@pytest.mark.parametrize("path", ["reference", "functional", "replay"])
@pytest.mark.parametrize("name", ["nesterov", "adamw", "clipped", "cosine"])
def test_bfloat16_is_torchs_autocast_whatever_the_recipe(name: str, path: Any, kind: str) -> None:
    recipe = Recipe.model_validate({**COMMON, **RECIPES[name], "precision": "bfloat16"})
    double, samples = PROBLEMS[kind]()
    y = samples.targets
    y = y.float() if isinstance(y, Tensor) and y.is_floating_point() else y
    samples = Samples(samples.inputs.float(), y, samples.objective)

    def build(seed: int) -> nn.Module:
        return double(seed).float()

    trial = TRIALS["one removed"]
    right = by_torch(kind, recipe, trial, (build, samples))
    whole = by_torch(
        kind, recipe.model_copy(update={"precision": "float32"}), trial, (build, samples)
    )
    if path == "replay":
        found = Replay(build, trial, samples, recipe).final
    else:
        (trained,) = train(build, [trial], samples, recipe, path=path)
        found = {k: v[0] for k, v in trained.snapshots[-1].items()}
    assert all(value.dtype == torch.float32 for value in found.values())
    found, right, whole = (
        torch.cat([s[k].flatten() for k in right]) for s in (found, right, whole)
    )
    # one model: the same roundings in the same places, and what is left is float32's; many models
    # at once add a bias after another rounding
    near = 2 if path == "functional" else 1e-2
    assert 0 < float((whole - right).norm()) < 0.05 * float(whole.norm())
    assert float((found - right).norm()) < near * float((whole - right).norm())


class Dropping(nn.Module):
    """Drops in attention, by torch's layer and by its function, in a layer twice, and by hand."""

    def __init__(self, attention: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, batch_first=True)
        self.layer.self_attn.dropout = attention
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.layer(x)) + self.drop(x)
        p = 0.3 if self.training else 0.0
        x = x + nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=p, is_causal=True)
        return self.head(nn.functional.dropout(x, 0.1, self.training).mean(1))


def dropping(attention: float = 0.4) -> tuple[Callable[[int], nn.Module], Samples]:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Dropping(attention).double()

    x = torch.randn(N, 3, 4, generator=generator(3), dtype=torch.float64)
    return build, Samples(x, torch.arange(N) % 3, cross_entropy())


def test_dropout_anywhere_is_the_same_in_every_path() -> None:
    recipe = Recipe(**COMMON, momentum=0.9, nesterov=True, epochs=2)
    build, samples = dropping()
    trials = [*TRIALS.values()]
    one, many = (
        [
            {k: v[row] for k, v in trained.snapshots[-1].items()}
            for trained in train(build, trials, samples, recipe, path=path)  # type: ignore[arg-type]
            for row in range(len(trained.trials))
        ]
        for path in ("reference", "functional")
    )
    for trial, left, right in zip(trials, one, many, strict=True):
        again = Replay(build, trial, samples, recipe).final
        for key in left:
            torch.testing.assert_close(right[key], left[key], atol=1e-11, rtol=0)
            torch.testing.assert_close(again[key], left[key], atol=1e-11, rtol=0)
    other = next(train(dropping(0.0)[0], trials[:1], samples, recipe, path="reference"))
    assert not torch.allclose(other.snapshots[-1]["head.weight"][0], one[0]["head.weight"])


def test_a_removed_sample_leaves_everyone_elses_dropout_as_it_was() -> None:
    """With a rate of 0 for it: the model goes where it goes when the sample's loss counts 0."""
    recipe = Recipe(**COMMON, epochs=2)
    build, samples = dropping()
    weights = torch.ones(N, dtype=torch.float64)
    weights[3] = 0
    trial = TRIALS["all"]
    module, stream = build(trial.init_seed()).train(), trial.dropout_generator()
    sites = dropout_sites(module, samples[:1].inputs)
    optimizer = torch.optim.SGD(module.parameters(), recipe.learning_rate)
    for epoch in range(2):
        for row in epoch_rows(trial, N, epoch, recipe.batch_size):
            batch = torch.from_numpy(row[row >= 0])
            masks = [torch.from_numpy(mask) for mask in draw_masks(stream, len(batch), sites)]
            optimizer.zero_grad()
            with dropped(sites, masks):
                losses = nn.functional.cross_entropy(
                    module(samples.inputs[batch]), samples.targets[batch], reduction="none"
                )
            (losses @ weights[batch] / weights[batch].sum()).backward()
            optimizer.step()
    (trained,) = train(build, [TRIALS["one removed"]], samples, recipe, path="reference")
    for key, value in module.state_dict().items():
        torch.testing.assert_close(trained.snapshots[-1][key][0], value, atol=1e-12, rtol=0)
