from __future__ import annotations

import pytest
import torch
from torch import nn

from leaveout.config import CNN, MLP, Linear, Model
from leaveout.models.build import initialise

SHAPE = (1, 9, 8)
CASES: list[tuple[Model, int]] = [
    (Linear(name="linear"), 72 * 4 + 4),
    (MLP(name="mlp", hidden=(6, 5), dropout=0.1), (72 * 6 + 6) + (6 * 5 + 5) + (5 * 4 + 4)),
    # 9 x 8 -> 4 x 4 -> 2 x 2
    (CNN(name="cnn", channels=(3, 2)), (9 * 3 + 3) + (27 * 2 + 2) + (8 * 4 + 4)),
    (
        CNN(name="cnn", channels=(3, 2), batch_norm=True),
        (9 * 3 + 3) + 6 + (27 * 2 + 2) + 4 + (8 * 4 + 4),
    ),
]


@pytest.mark.parametrize(("model", "size"), CASES, ids=["linear", "mlp", "cnn", "cnn-norm"])
def test_sizes_and_shapes(model: Model, size: int) -> None:
    module = initialise(model, SHAPE, 4, 0).eval()
    assert sum(p.numel() for p in module.parameters()) == size
    assert module(torch.zeros(2, *SHAPE)).shape == (2, 4)


@pytest.mark.parametrize("model", [model for model, _ in CASES])
def test_the_weights_depend_on_the_seed_alone(model: Model) -> None:
    before = torch.random.get_rng_state().clone()
    first, again, other = (initialise(model, SHAPE, 4, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(*(state[next(iter(state))] for state in (first, other)))


def test_the_weights_are_torchs_own_of_that_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        expected = nn.Linear(72, 4)
    found = initialise(Linear(name="linear"), SHAPE, 4, 9)
    assert torch.equal(found.linear.weight, expected.weight)
    assert torch.equal(found.linear.bias, expected.bias)


def test_no_dropout_builds_no_dropout_layer() -> None:
    kinds = [type(m) for m in initialise(MLP(name="mlp", hidden=(6,)), SHAPE, 4, 0).children()]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
