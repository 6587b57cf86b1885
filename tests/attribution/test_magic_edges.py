"""MAGIC where steps have corners: gradients of zero, dead units, frozen layers, batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from leaveout.attribution import dvemb, magic
from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Recipe
from leaveout.errors import NotComputableError
from leaveout.problem.objectives import squared_error
from leaveout.problem.samples import Samples
from leaveout.training.optimisers import rate, total_steps
from leaveout.training.trials import Trial

N, M, WIDTH, SIZE = 12, 3, 4, 4
MOVE = 1e-4
TRIAL = Trial(0, ("t", "full", 0), shuffle=False)
CLIPPED: dict[str, Any] = {"learning_rate": 0.05, "batch_size": SIZE, "epochs": 2, "clip": 0.2}
ADAMW = {**CLIPPED, "optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 1}
RECIPES = {"sgd": {**CLIPPED, "momentum": 0.8}, "adamw": ADAMW}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make().double()

    return build


def without_bias() -> nn.Module:
    """Has no gradient at all on samples of zeros."""
    return nn.Linear(WIDTH, 2, bias=False)


def half_dead() -> nn.Module:
    """Two of its four hidden units never fire."""
    first = nn.Linear(WIDTH, 4)
    with torch.no_grad():
        first.weight[:2] = 0
        first.bias[:2] = -1
        first.bias[2:] = 3
    return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))


def half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


def normed() -> nn.Module:
    layers = (nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    return nn.Sequential(*layers)


class Kept(nn.BatchNorm1d):
    """Stays in evaluation while the rest is trained, as in fine-tuning."""

    def train(self, mode: bool = True) -> Kept:
        return super().train(False)


def norm_kept() -> nn.Module:
    norm = Kept(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(0.5)
    return nn.Sequential(nn.Linear(WIDTH, 4), norm, nn.Tanh(), nn.Linear(4, 2))


def norm_twice() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    layers = (nn.Linear(WIDTH, 4), norm, nn.Tanh(), nn.Linear(4, 4), norm, nn.Linear(4, 2))
    return nn.Sequential(*layers)


class Counted(nn.Module):
    """Subtracts a running mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, 2)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.last(x - self.mean)  # type: ignore[no-any-return]


class Scaled(nn.BatchNorm1d):
    """Does more than batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def normed_otherwise() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4), Scaled(4), nn.Tanh(), nn.Linear(4, 2))


class Constant(nn.Module):
    """Has a buffer that is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, 2)
        self.register_buffer("scale", torch.linspace(1, 2, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.scale)  # type: ignore[no-any-return]


class Tempered(nn.Module):
    """Has a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.scale = nn.Linear(WIDTH, 2), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * self.scale)  # type: ignore[no-any-return]


class Distances(nn.Module):
    """torch has no second derivative of distances."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.centres = nn.Linear(WIDTH, 3), nn.Parameter(torch.eye(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.first(x), self.centres)


class Branching(nn.Linear):
    """Looks at values to decide what to compute, which torch.func does not map."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 2)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (0 if input.abs().max() > 1e9 else 1)


def data(first: float = 1.0) -> tuple[Samples, Samples]:
    """Training and test samples; the first batch times a factor."""
    x = drawn(N, WIDTH, seed=0)
    x[:SIZE] *= first
    train = Samples(x, drawn(N, 2, seed=1), squared_error())
    measured = squared_error().measured()
    return train, Samples(drawn(M, WIDTH, seed=2), drawn(M, 2, seed=3), measured)


def task(build: Callable[[int], nn.Module], recipe: Recipe, train: Samples, test: Samples) -> Task:
    module = build(0).eval()
    run = Trajectory(TRIAL, [module.state_dict()], [1], [1.0], torch.ones(N, dtype=torch.bool))
    averaged = train.asked(train.objective.averaged(train.targets))
    return Task("t", 0, module, averaged, test, train.objective, [run], [], build, recipe)


def weighted(model: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """A forward pass in training, batch norm written out with weighted sums."""
    for layer in model if isinstance(model, nn.Sequential) else [model]:
        if isinstance(layer, nn.BatchNorm1d) and layer.training:
            total = weights.sum()
            mean = weights @ x / total
            var = weights @ (x - mean) ** 2 / total
            with torch.no_grad():
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.lerp_(mean, 0.1)
                layer.running_var.lerp_(var * total / (total - 1), 0.1)
            x = (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
        else:
            x = layer(x)
    return x


def retrained(
    build: Callable[[int], nn.Module],
    recipe: Recipe,
    train: Samples,
    test: Samples,
    weights: Tensor,
) -> Tensor:
    """Test losses after training with these weights of the samples, by torch.optim."""
    model = build(TRIAL.init_seed()).train()
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(own, 1.0, recipe.momentum)
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(own, 1.0, weight_decay=recipe.weight_decay)
    steps = total_steps(recipe, N)
    for number in range(steps):
        batch = torch.arange(N).split(SIZE)[number % (N // SIZE)]
        w, y = weights[batch], train.targets[batch]
        optimizer.param_groups[0]["lr"] = rate(recipe, number, steps)
        optimizer.zero_grad()
        losses = train.objective.losses(weighted(model, train.inputs[batch], w), y)
        ((w * losses).sum() / w.sum()).backward()
        assert recipe.clip is not None
        nn.utils.clip_grad_norm_(own, recipe.clip)
        optimizer.step()
    with torch.no_grad():
        return test.losses(model.eval()(test.inputs))


def slopes(build: Any, recipe: Recipe, train: Samples, test: Samples) -> Tensor:
    """Minus central differences of retraining, (train, test)."""
    rows = []
    for i in range(N):
        move = torch.zeros(N, dtype=torch.float64).index_fill_(0, torch.tensor(i), MOVE)
        up, down = (retrained(build, recipe, train, test, 1 + s * move) for s in (1, -1))
        rows.append(-(up - down) / (2 * MOVE))
    return torch.stack(rows)


CASES = {
    "dead units": half_dead,
    "frozen": half_frozen,
    "looks at values": Branching,
    "buffer outside of the state": Constant,
    "scalar parameter": Tempered,
    "batch norm": normed,
    "batch norm in evaluation": norm_kept,
    "batch norm used twice": norm_twice,
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_derivative_of_retraining(case: str, recipe: str) -> None:
    build, asked = seeded(CASES[case]), Recipe.model_validate(RECIPES[recipe])
    train, test = data()
    found = magic.attribute(task(build, asked, train, test), shuffle=False)
    expected = slopes(build, asked, train, test)
    scale = float(expected.abs().max())
    assert scale > 1e-4
    assert float((found - expected).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("build", [Counted, normed_otherwise, Distances])
def test_what_it_does_not_differentiate_is_refused(build: Any) -> None:
    """A buffer of the model's own, a batch norm with a forward pass of its own, distances."""
    given = task(seeded(build), Recipe.model_validate(RECIPES["sgd"]), *data())
    with pytest.raises(NotComputableError, match=r"^undefined: .* not differentiate"):
        magic.attribute(given, shuffle=False)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_without_gradient_has_no_influence_under_clipping(recipe: str) -> None:
    """The norm of a gradient of zeros has no derivative, but nothing is clipped there."""
    build, asked = seeded(without_bias), Recipe.model_validate(RECIPES[recipe])
    train, test = data(first=0.0)
    expected = slopes(build, asked, train, test)
    assert float(expected[SIZE:].abs().max()) > 1e-4
    assert float(expected[:SIZE].abs().max()) == 0
    scale = float(expected.abs().max())
    given = task(build, asked, train, test)
    found = magic.attribute(given, shuffle=False)
    assert float((found - expected).abs().max()) < 1e-5 * scale
    outer = dvemb.attribute(given)
    assert outer.isfinite().all()
    assert float(outer[:SIZE].abs().max()) == 0


def test_what_is_frozen_stays() -> None:
    """The frozen layer's values are those of a training of the last layer alone."""
    build, asked = seeded(half_frozen), Recipe.model_validate(RECIPES["adamw"])
    train, test = data()
    model = build(TRIAL.init_seed())

    def features(samples: Samples) -> Samples:
        state = dict(model[0].state_dict())  # type: ignore[index]
        hidden = functional_call(model[0], state, (samples.inputs,)).tanh()  # type: ignore[index]
        return Samples(hidden, samples.targets, samples.objective)

    def alone(seed: int) -> nn.Module:
        return build(seed)[2]  # type: ignore[index, no-any-return]

    whole = magic.attribute(task(build, asked, train, test), shuffle=False)
    last = magic.attribute(task(alone, asked, features(train), features(test)), shuffle=False)
    assert float(last.abs().max()) > 1e-4
    torch.testing.assert_close(whole, last)
