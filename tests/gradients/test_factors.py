from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from leaveout.gradients.factors import (
    factored_dots,
    factored_norms,
    form,
    gradient_factors,
    is_linear,
)
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples


def of(inputs: torch.Tensor, labels: torch.Tensor) -> Samples:
    return Samples(inputs, labels, CROSS_ENTROPY)


def factors(problem: Any) -> tuple[Any, Any]:
    return tuple(
        gradient_factors(problem.module, problem.state, samples)
        for samples in (problem.left, problem.right)
    )


def test_factors_give_the_gradients_without_forming_them(problem: Any) -> None:
    left, right = factors(problem)
    if any(isinstance(m, nn.Conv2d) for m in problem.module.modules()):
        assert not is_linear(problem.module)
        assert left is None
        assert right is None
        return
    assert is_linear(problem.module)
    g, h = problem.naive(problem.left), problem.naive(problem.right)
    torch.testing.assert_close(form(left), g, atol=1e-13, rtol=0)
    torch.testing.assert_close(factored_dots(left, right), g @ h.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(factored_norms(left), g.norm(dim=1), atol=1e-12, rtol=0)


class Twice(nn.Module):
    """A linear layer used twice: its gradient is a sum of two outer products."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.layer = nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            values = self.layer(values)
        return values


class Tokens(nn.Module):
    """A linear layer on more than one vector a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values.view(-1, 2, 2)).mean(1)


@pytest.mark.parametrize("make", [lambda: Twice(2), Tokens])
def test_linear_layers_used_otherwise_have_no_factors(make: Any) -> None:
    with torch.random.fork_rng():
        module = make()
    state = dict(module.state_dict())
    assert gradient_factors(module, state, of(torch.ones(3, 4), torch.tensor([0, 1, 2]))) is None
    assert not any(m._forward_hooks for m in module.modules())


def test_a_layer_without_bias() -> None:
    with torch.random.fork_rng():
        module = nn.Sequential(nn.Linear(4, 3, bias=False))
    state = dict(module.state_dict())
    inputs, labels = torch.arange(8.0).view(2, 4) / 8, torch.tensor([2, 0])
    found = gradient_factors(module, state, of(inputs, labels))
    assert found is not None
    delta = torch.softmax(inputs @ state["0.weight"].T, 1)
    delta[[0, 1], labels] -= 1
    expected = torch.einsum("no,ni->noi", delta, inputs).flatten(1)
    torch.testing.assert_close(form(found), expected)
    torch.testing.assert_close(factored_dots(found, found), expected @ expected.T)
    torch.testing.assert_close(factored_norms(found), expected.norm(dim=1))


def test_an_error_in_the_forward_pass_leaves_no_hooks() -> None:
    with torch.random.fork_rng():
        module = nn.Sequential(nn.Linear(4, 3))
    samples = of(torch.ones(2, 5), torch.tensor([0, 1]))
    with pytest.raises(RuntimeError):
        gradient_factors(module, dict(module.state_dict()), samples)
    assert not module[0]._forward_hooks


def test_a_relu_in_place_after_a_layer_spoils_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = [
            nn.Sequential(
                nn.Linear(4, 5), nn.ReLU(inplace=inplace), nn.Linear(5, 3), nn.ReLU(inplace=inplace)
            ).double()
            for inplace in (True, False)
        ]
        inputs, labels = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    state = dict(modules[0].state_dict())
    found, expected = (gradient_factors(m, state, of(inputs, labels)) for m in modules)
    assert found is not None
    assert expected is not None
    assert form(expected).abs().max() > 0.1
    assert torch.equal(form(found), form(expected))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.inputs, other.inputs)
