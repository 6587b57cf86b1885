"""MAGIC against retraining with torch.optim, a sample's weight moved up and down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leaveout.attribution import dvemb, magic
from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Recipe
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import cross_entropy, squared_error, token_cross_entropy
from leaveout.problem.samples import Samples
from leaveout.training.dropout import draw_masks, dropout_sites, dropped
from leaveout.training.optimisers import rate, total_epochs, total_steps
from leaveout.training.trials import Trial, epoch_rows

N, M, WIDTH, TOKENS = 11, 3, 4, 3
MOVE = 1e-4
TRIAL = Trial(0, ("t", "full", 0))
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "epochs": 3},
    "adam": {"optimizer": "adam", "weight_decay": 0.1, "epochs": 3},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "epochs": 3},
    "all at once": {
        "optimizer": "adamw", "weight_decay": 0.3, "decay": "matrices", "clip": 0.3,
        "schedule": "cosine", "warmup": 2, "final_rate": 0.1, "iterations": 8,
    },
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Reader(nn.Module):
    """One attention over padded tokens; the embedding is the last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, 0.2, bias=False, batch_first=True)
        self.head = nn.Linear(WIDTH, 5, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, padded: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.attention(x, x, x, key_padding_mask=padded, need_weights=False)[0]
        return self.head(x.tanh())  # type: ignore[no-any-return]


def table(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, outputs))


def problem(name: str) -> tuple[Any, Samples, Samples]:
    """A builder, training samples and test samples."""
    objective: Objective
    x, u = drawn(N, WIDTH), drawn(M, WIDTH, seed=1)
    if name == "numbers":
        objective, y, v = squared_error(), drawn(N, 2, seed=2), drawn(M, 2, seed=3)
        make: Any = lambda: table(2)  # noqa: E731
    elif name == "weighted classes":
        objective = cross_entropy(weight=[1.0, 4.0, 0.3])
        y, v = torch.arange(N) % 3, torch.arange(M) % 3
        make = lambda: table(3)  # noqa: E731
    else:
        objective = token_cross_entropy()
        ids = torch.randint(5, (N, TOKENS), generator=torch.Generator().manual_seed(4))
        padded = torch.arange(TOKENS) >= 1 + torch.arange(N)[:, None] % TOKENS
        y = ids.roll(-1, 1).masked_fill(padded, -100)
        x, u = {"ids": ids, "padded": padded}, {"ids": ids[:M], "padded": padded[:M]}  # type: ignore[assignment]
        v, make = y[:M].roll(1, 0).masked_fill(padded[:M], -100), Reader

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make().double()  # type: ignore[no-any-return]

    return build, Samples(x, y, objective), Samples(u, v, objective.measured())


def call(model: nn.Module, samples: Samples) -> Any:
    given = samples.inputs
    return model(**given) if isinstance(given, dict) else model(given)


def retrained(name: str, recipe: Recipe, weights: Tensor) -> Tensor:
    """Test losses after training with these weights of the samples, by torch.optim."""
    build, train, test = problem(name)
    model = build(TRIAL.init_seed()).train()
    groups = [
        {"params": [p], "weight_decay": 0.0 if recipe.decay == "matrices" and p.dim() < 2
         else recipe.weight_decay} for p in model.parameters()
    ]  # fmt: skip
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, 1.0, recipe.momentum, nesterov=recipe.nesterov)
    else:
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(groups, 1.0)
    steps, done = total_steps(recipe, N), 0
    sites, stream = dropout_sites(model, train[:1].inputs), TRIAL.dropout_generator()
    for epoch in range(total_epochs(recipe, N)):
        for row in epoch_rows(TRIAL, N, epoch, recipe.batch_size):
            if done == steps:
                break
            batch = torch.from_numpy(row[row >= 0])
            some, w = train[batch], weights[batch]
            for group in optimizer.param_groups:
                group["lr"] = rate(recipe, done, steps)
            optimizer.zero_grad()
            masks = [torch.from_numpy(mask) for mask in draw_masks(stream, len(batch), sites)]
            with dropped(sites, masks):
                losses = train.objective.losses(call(model, some), some.targets)
            counts = train.objective.counts
            each = torch.ones_like(w) if counts is None else counts(some.targets)
            ((w * losses).sum() / (w * each).sum()).backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            done += 1
    with torch.no_grad():
        return test.losses(call(model.eval(), test))


def task(name: str, recipe: Recipe) -> Task:
    build, train, test = problem(name)
    module = build(0).eval()
    run = Trajectory(TRIAL, [module.state_dict()], [1], [1.0], torch.ones(N, dtype=torch.bool))
    averaged = train.asked(train.objective.averaged(train.targets))
    return Task("t", 0, module, averaged, test, train.objective, [run], [], build, recipe)


@pytest.mark.parametrize("name", ["numbers", "weighted classes", "tokens"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_the_derivative_of_retraining(name: str, recipe: str) -> None:
    values = {"learning_rate": 0.05, "batch_size": 4, **RECIPES[recipe]}
    asked = Recipe.model_validate(values)
    found = magic.attribute(task(name, asked), shuffle=True)
    rows = []
    for i in range(N):
        move = torch.zeros(N, dtype=torch.float64).index_fill_(0, torch.tensor(i), MOVE)
        up, down = (retrained(name, asked, 1 + sign * move) for sign in (1, -1))
        rows.append(-(up - down) / (2 * MOVE))
    expected = torch.stack(rows)
    scale = float(expected.abs().max())
    assert scale > 1e-4
    assert float((found - expected).abs().max()) < 1e-4 * scale


def test_outer_products_are_like_it_and_not_the_same() -> None:
    """DVEmb stands them in for the Hessian: alike in sign, not the same."""
    asked = Recipe(optimizer="adamw", learning_rate=0.05, batch_size=4, epochs=3)
    exact = magic.attribute(task("numbers", asked), shuffle=True)
    near = dvemb.attribute(task("numbers", asked))
    both = torch.stack([exact.flatten(), near.flatten()])
    assert 0.5 < float(torch.corrcoef(both)[0, 1]) < 0.9999
