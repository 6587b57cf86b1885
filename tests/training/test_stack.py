from __future__ import annotations

import pytest
import torch
from torch import nn

from leaveout.config import MLP, Linear
from leaveout.models.build import initialise
from leaveout.training.functional import stack_states
from leaveout.training.stack import Layer, parse, stack_outputs


def seq(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


@pytest.fixture(autouse=True)
def _own_randomness() -> object:
    with torch.random.fork_rng():
        yield


def test_stacks_of_linear_layers_are_read() -> None:
    assert parse(initialise(Linear(name="linear"), (2, 3), 4, 0)) == [
        Layer("linear", 4, hidden=False, dropout=0)
    ]
    assert parse(initialise(MLP(name="mlp", hidden=(5, 6), dropout=0.2), (2, 3), 4, 0)) == [
        Layer("fc1", 5, hidden=True, dropout=0.2),
        Layer("fc2", 6, hidden=True, dropout=0.2),
        Layer("fc3", 4, hidden=False, dropout=0),
    ]
    relu = nn.ReLU()  # one object in two places is ordinary for a layer without parameters
    shared = seq(nn.Linear(3, 5), relu, nn.Dropout(0.1), nn.Linear(5, 4), relu, nn.Linear(4, 2))
    assert parse(shared) == [
        Layer("0", 5, hidden=True, dropout=0.1),
        Layer("3", 4, hidden=True, dropout=0),
        Layer("5", 2, hidden=False, dropout=0),
    ]


def repeated_linear() -> nn.Module:
    linear = nn.Linear(3, 3)
    return seq(linear, nn.ReLU(), linear, nn.ReLU(), nn.Linear(3, 2))


def repeated_dropout() -> nn.Module:
    drop = nn.Dropout(0.5)
    return seq(nn.Linear(3, 3), nn.ReLU(), drop, nn.Linear(3, 3), nn.ReLU(), drop, nn.Linear(3, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(3, 2),
        lambda: seq(nn.Linear(3, 2, bias=False)),
        lambda: seq(nn.Linear(3, 2), nn.Linear(2, 2)),
        lambda: seq(nn.Linear(3, 2), nn.ReLU()),
        lambda: seq(nn.ReLU(), nn.Linear(3, 2)),
        lambda: seq(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)),
        lambda: seq(nn.Linear(3, 2), nn.Dropout(0.1), nn.ReLU(), nn.Linear(2, 2)),
        lambda: seq(
            nn.Linear(3, 2), nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.1), nn.ReLU(), nn.Linear(2, 2)
        ),
        lambda: seq(nn.Dropout(0.1), nn.Linear(3, 2)),
        lambda: seq(nn.Linear(3, 2), nn.Flatten(), nn.Linear(2, 2)),
        lambda: seq(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)),
        lambda: seq(),
        repeated_linear,
        repeated_dropout,
    ],
)
def test_anything_else_is_not(make: object) -> None:
    assert parse(make()) is None  # type: ignore[operator]


def test_outputs_are_those_of_each_module_without_dropout() -> None:
    model = MLP(name="mlp", hidden=(5, 6), dropout=0.2)
    modules = [initialise(model, (2, 3), 4, seed).double().eval() for seed in range(3)]
    inputs = torch.randn(7, 2, 3, dtype=torch.float64)
    layers = parse(modules[0])
    assert layers is not None
    with torch.no_grad():
        expected = torch.stack([module(inputs) for module in modules])
    found = stack_outputs(layers, stack_states(modules), inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
