"""A model with other parameters: what is tied or used twice, and that the model stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad

from leaveout.problem.call import call_with, load_state, state_of, work_with


class Tied(nn.Module):
    """One tensor in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())  # type: ignore[no-any-return]


def repeated() -> nn.Module:
    """The same layers under several names, as where all blocks share their weights."""
    layer, norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
    return nn.Sequential(layer, norm, nn.Tanh(), layer, norm)


def both() -> nn.Module:
    tied = Tied()
    return nn.Sequential(tied, nn.Tanh(), tied, tied.first)


MODELS: dict[str, Callable[[], nn.Module]] = {"tied": Tied, "repeated": repeated, "both": both}
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def two(name: str) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return MODELS[name]().double().eval(), MODELS[name]().double().eval()


@pytest.mark.parametrize("every_name", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_model_with_this_state(name: str, every_name: bool) -> None:
    model, other = two(name)
    state = dict(other.state_dict()) if every_name else state_of(other)
    kept = model.state_dict(keep_vars=True)
    values = {key: value.clone() for key, value in kept.items()}
    with torch.no_grad():
        expected = other(X)
    for _ in range(2):
        found = call_with(model, state, X)
        inside = work_with(model, state, lambda: model(X).sum())
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        torch.testing.assert_close(inside, expected.sum(), atol=1e-12, rtol=0)
        after = model.state_dict(keep_vars=True)
        assert all(after[key] is kept[key] for key in kept)  # the very tensors
        assert all(torch.equal(after[key], values[key]) for key in kept)
    loaded = copy.deepcopy(model)
    load_state(loaded, state)
    torch.testing.assert_close(loaded(X), expected, atol=0, rtol=0, check_stride=False)


@pytest.mark.parametrize("name", MODELS)
def test_its_derivative_is_autograds(name: str) -> None:
    model, other = two(name)
    own = dict(other.named_parameters())
    fixed = dict(other.named_buffers())
    found = grad(lambda p: call_with(model, {**p, **fixed}, X).square().sum())(
        {key: p.detach() for key, p in own.items()}
    )
    expected = torch.autograd.grad(other(X).square().sum(), [*own.values()])
    for key, value in zip(own, expected, strict=True):
        torch.testing.assert_close(found[key], value, atol=1e-12, rtol=0)
    copy.deepcopy(model)  # nothing of torch.func's is left in it
