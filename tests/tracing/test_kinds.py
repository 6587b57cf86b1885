"""Losses, loaders and models of many kinds, against plain autograd sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from leaveout import TracInCP
from leaveout.errors import LeaveoutError

N, M, WIDTH = 9, 3, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int, high: int = 3) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return make().double()


X, Y = drawn(N, WIDTH), classes(N)


def by_autograd(model: nn.Module, losses: Callable[..., Tensor], *batch: Tensor) -> Tensor:
    """Inner products of the first samples' gradients with all, one backward pass a sample."""
    rows = []
    for one in zip(*batch, strict=True):
        *inputs, target = (value[None] for value in one)
        found = torch.autograd.grad(
            losses(model(*inputs), target).sum(),
            [*model.parameters()],
            allow_unused=True,
            materialize_grads=True,
        )
        rows.append(torch.cat([g.flatten() for g in found]))
    gradients = torch.stack(rows)
    return gradients[:M] @ gradients.T


def traced(model: nn.Module, loss: Any, *batch: Tensor, size: int = 4) -> Tensor:
    data = TensorDataset(*batch)
    tracer = TracInCP(model, data, [model.state_dict()], loss_fn=loss, batch_size=size)
    found = tracer.influence(tuple(value[:M] for value in batch))
    assert isinstance(found, Tensor)
    return found


WEIGHT = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.NLLLoss])
def test_weights_of_classes_count_as_in_a_batch(kind: Any, reduction: str) -> None:
    make: Any = (
        (lambda: nn.Linear(WIDTH, 3))
        if kind is nn.CrossEntropyLoss
        else lambda: nn.Sequential(nn.Linear(WIDTH, 3), nn.LogSoftmax(1))
    )
    model, own = seeded(make), kind(weight=WEIGHT, reduction="none")
    found = traced(model, kind(weight=WEIGHT, reduction=reduction), X, Y)
    torch.testing.assert_close(found, by_autograd(model, own, X, Y))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_tokens_count_for_nothing(reduction: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).mT  # type: ignore[no-any-return]

    x, y = drawn(N, 4, WIDTH), classes(N, 4)
    y[::2, 2:] = -100
    y[1] = -100  # nothing of it counts
    model, each = seeded(Reader), nn.CrossEntropyLoss(reduction="none")
    found = traced(model, nn.CrossEntropyLoss(reduction=reduction), x, y)
    scale = 16 if reduction == "mean" else 1  # a sample's mean is over its four positions
    torch.testing.assert_close(found * scale, by_autograd(model, each, x, y))
    assert not found[:, 1].any()


class Tied(nn.Module):
    """Its layer's weight is used past the layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.enc(x).tanh(), self.enc.weight.T)


class Scaled(nn.Module):
    """A hook-free layer whose output is scaled by its own weight's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh()) * self.a.weight.norm()  # type: ignore[no-any-return]


class Checkpointed(nn.Module):
    """It computes activations anew in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda v: self.a(v).tanh(), x, use_reentrant=False))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Tied, Scaled, Checkpointed])
def test_any_model_is_differentiated_right(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    found = traced(model, nn.MSELoss(), X, X)
    torch.testing.assert_close(found, by_autograd(model, nn.MSELoss(), X, X))


class Forward(Sampler[int]):
    """Backwards, and always so."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(N - 1, -1, -1))

    def __len__(self) -> int:
        return N


class Drifting(Forward):
    """Another order each time, by a counter of its own."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter([(k * self.passes * 2 + self.passes) % N for k in range(N)])


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __init__(self, shuffles: bool) -> None:
        self.shuffles = shuffles

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(N) if self.shuffles else torch.arange(N)
        return ((X[k], Y[k]) for k in order)


DATA = TensorDataset(X, Y)
REFUSED: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffle": lambda: DataLoader(DATA, 4, shuffle=True),
    "subset": lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(N))),
    "weighted": lambda: DataLoader(DATA, 4, sampler=WeightedRandomSampler([1.0] * N, N)),
    "own sampler": lambda: DataLoader(DATA, 4, sampler=Drifting()),
    "stream": lambda: DataLoader(Stream(shuffles=True), 4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loaders_without_one_order_are_refused(name: str) -> None:
    model = seeded(lambda: nn.Linear(WIDTH, 3))
    loss, states = nn.CrossEntropyLoss(), [model.state_dict()]
    with pytest.raises(LeaveoutError, match="train_dataset: the DataLoader gives its samples in"):
        TracInCP(model, REFUSED[name](), states, loss_fn=loss)
    tracer = TracInCP(model, DATA, states, loss_fn=loss)
    for ask in (tracer.influence, tracer.self_influence):
        with pytest.raises(LeaveoutError, match="inputs: the DataLoader gives its samples in"):
            ask(REFUSED[name]())


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda: DataLoader(DATA, 4), range(N)),
        (lambda: DataLoader(DATA, 4, sampler=Forward()), range(N - 1, -1, -1)),
        (lambda: DataLoader(Stream(shuffles=False), 4), range(N)),
    ],
)
def test_loaders_with_one_order_give_rows_in_it(make: Any, order: range) -> None:
    model = seeded(lambda: nn.Linear(WIDTH, 3))
    tracer = TracInCP(model, make(), [model.state_dict()], loss_fn=nn.CrossEntropyLoss())
    expected = by_autograd(model, nn.CrossEntropyLoss(reduction="none"), X, Y)
    torch.testing.assert_close(tracer.influence((X[:M], Y[:M])), expected[:, [*order]])


def test_a_model_that_squeezes_is_told_what_to_write() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).squeeze()  # type: ignore[no-any-return]

    model = seeded(Squeezing)
    with pytest.raises(LeaveoutError, match=r"squeeze\(-1\)"):
        traced(model, nn.MSELoss(), X, Y.double())
