"""Six problems of one's own from Python: gradients against plain autograd, and a ground truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import characters, colour, several_labels
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

from leaveout import Benchmark, Recipe, attribute
from leaveout.errors import LeaveoutError

N, M = 24, 4


class Residual(nn.Module):
    """A residual block with batch norm, on colour images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        return self.head((x + self.second(x.tanh())).mean((2, 3)))


class Causal(nn.Module):
    """A causal transformer whose head is its embedding, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(len(characters.TOKENS) + 2, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, len(characters.TOKENS) + 2, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.body(self.tokens(ids), mask=later))


def table(load: Callable[..., Any]) -> tuple[Any, Any]:
    x, y = load(return_X_y=True)
    x = torch.from_numpy((x - x.mean(0)) / x.std(0)).float()
    y = torch.from_numpy((y - y.mean()) / y.std() if len(set(y)) > 2 else y).float()[:, None]
    return (x[:N], y[:N]), (x[N : N + M], y[N : N + M])


def shipped(module: Any) -> tuple[Any, Any]:
    split = module.data(N, M)

    def part(pair: Any) -> tuple[Tensor, Tensor]:
        x, y = (torch.as_tensor(value) for value in pair)
        return (x.float() if x.is_floating_point() else x), y

    return part(split.train), part(split.test)


def tokens_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


PROBLEMS: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module], Any, Any]] = {
    "colour": (lambda: shipped(colour), Residual, nn.CrossEntropyLoss(), functional.cross_entropy),
    "characters": (lambda: shipped(characters), Causal, "token_cross_entropy", tokens_loss),
    "diabetes": (
        lambda: table(datasets.load_diabetes),
        lambda: nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 1)),
        nn.MSELoss(),
        functional.mse_loss,
    ),
    "cancer": (
        lambda: table(datasets.load_breast_cancer),
        lambda: nn.Sequential(nn.Linear(30, 1)),
        nn.BCEWithLogitsLoss(),
        functional.binary_cross_entropy_with_logits,
    ),
    "labels": (
        lambda: shipped(several_labels),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.BCEWithLogitsLoss(),
        functional.binary_cross_entropy_with_logits,
    ),
}


def gradients(model: nn.Module, loss: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
    rows = []
    for x, y in zip(*pair, strict=True):
        found = torch.autograd.grad(loss(model(x[None]), y[None]), [*model.parameters()])
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_autograds(name: str) -> None:
    data, build, loss, right_loss = PROBLEMS[name]
    (x, y), test = data()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build().double().eval()
    if x.is_floating_point():
        x, y, test = (
            x.double(),
            y.double() if y.is_floating_point() else y,
            (
                test[0].double(),
                test[1].double() if test[1].is_floating_point() else test[1],
            ),
        )
    found = attribute("grad_cos", model, (x, y), test, loss=loss)
    left, right = (functional.normalize(gradients(model, right_loss, p)) for p in ((x, y), test))
    torch.testing.assert_close(found.values.double(), left @ right.T, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_has_a_ground_truth(name: str, tmp_path: Path) -> None:
    data, build, loss, _ = PROBLEMS[name]
    recipe = Recipe(optimizer="adamw", learning_rate=0.01, epochs=2, batch_size=8)
    bench = Benchmark(*data(), build, loss, recipe, folder=tmp_path, name=name)
    result = bench.score("grad_dot").against(bench.lds(subsets=6, runs=2))
    assert math.isfinite(result.value)
    assert result.low <= result.value <= result.high
    assert (result.n_test, result.n_undefined) == (M, 0)


class Draws(nn.Linear):
    """Noise that no function of torch's can be asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + torch.rand_like(x[:, :1]))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: nn.AlphaDropout(0.1), "AlphaDropout"),
        (lambda: Draws(10, 10), "draws random numbers while training"),
    ],
)
def test_dropout_that_cannot_be_repeated_is_refused(
    layer: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    recipe = Recipe(learning_rate=0.01, epochs=1, batch_size=8)
    bench = Benchmark(
        *table(datasets.load_diabetes),
        lambda: nn.Sequential(layer(), nn.Linear(10, 1)),
        nn.MSELoss(),
        recipe,
        folder=tmp_path,
    )
    with torch.random.fork_rng(), pytest.raises(LeaveoutError, match=words):
        bench.lds(subsets=4)


def test_bert_takes_dictionaries() -> None:
    pytest.importorskip("transformers", reason="an optional extra")
    from examples import bert

    split = bert.data(N, M)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = bert.model().double().eval()
    found = attribute("grad_cos", model, split.train, split.test, loss=nn.CrossEntropyLoss())
    rows = []
    for inputs, labels in (split.train, split.test):
        for k in range(len(labels)):
            logits = model(**{key: value[k : k + 1] for key, value in inputs.items()}).logits
            loss = functional.cross_entropy(logits, labels[k : k + 1])
            each = torch.autograd.grad(loss, [*model.parameters()])
            rows.append(torch.cat([g.flatten() for g in each]))
    left, right = functional.normalize(torch.stack(rows)).split([N, M])
    torch.testing.assert_close(found.values.double(), left @ right.T, atol=1e-6, rtol=1e-5)
