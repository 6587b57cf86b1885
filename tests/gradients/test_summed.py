from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.errors import LeaveoutError
from leaveout.gradients import summed
from leaveout.gradients.factors import Factor
from leaveout.gradients.summed import same, summed_dots
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-12}  # float64, sums of order 1
WEIGHTS = (0.5, -0.25, 2.0)
N, M = 11, 5


class Squashed(nn.Module):
    """A fixed nonlinearity before the first layer, whose inputs are then not the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(inputs.flatten(1).tanh())))


class Twice(nn.Module):
    """A layer used twice: its gradients do not factor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(self.body(inputs.flatten(1)).tanh()))


class Branches(nn.Module):
    """Two layers see the samples, one of them a part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 3, bias=False)
        self.right = nn.Linear(2, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return self.head(self.left(flat).relu()) + self.right(flat[:, 1:3])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    "conv": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)),
    "squashed": Squashed,
    "twice": Twice,
    "branches": Branches,
}


class Problem:
    def __init__(self, name: str) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            modules = [MODELS[name]().double() for _ in WEIGHTS]
            self.left, self.right = (
                Samples(torch.randn(n, 1, 2, 2).double(), torch.randint(3, (n,)), CROSS_ENTROPY)
                for n in (N, M)
            )
        self.module = modules[0].eval().requires_grad_(False)
        self.states = [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in modules]

    def naive(self, state: dict[str, Tensor], samples: Samples, last: int) -> Tensor:
        """One backward pass a sample; gradients in the last so many parameters, 0 for all."""
        rows = []
        for x, y in zip(samples.inputs, samples.targets, strict=True):
            named = {k: v.clone().requires_grad_() for k, v in state.items()}
            loss = functional.cross_entropy(
                torch.func.functional_call(self.module, named, (x[None],)), y[None]
            )
            found = torch.autograd.grad(loss, list(named.values())[-last:])
            rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

    def expected(self, last: int = 0, cosine: bool = False) -> Tensor:
        total = torch.zeros(N, M).double()
        for state, weight in zip(self.states, WEIGHTS, strict=True):
            g, h = (self.naive(state, samples, last) for samples in (self.left, self.right))
            if cosine:
                g, h = (functional.normalize(values) for values in (g, h))
            total += weight * g @ h.T
        return total

    def found(self, **changes: Any) -> Tensor:
        blocks = self.left.split(8)
        return torch.cat(
            [*summed_dots(self.module, self.states, WEIGHTS, blocks, self.right, **changes)]
        )


@pytest.fixture(params=MODELS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(request.param)


@pytest.fixture(params=[(1024, 1 << 20), (3, 1), (5, 2 * M * 8)])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summed, "ROWS", request.param[0])
    monkeypatch.setattr(summed, "TILE_BYTES", request.param[1])


@pytest.mark.usefixtures("sizes")
def test_it_is_the_sum_over_states_of_all_inner_products(problem: Problem) -> None:
    found = problem.found()
    assert found.std() > 0.01
    torch.testing.assert_close(found, problem.expected(), **CLOSE)


@pytest.mark.usefixtures("sizes")
def test_cosines(problem: Problem) -> None:
    torch.testing.assert_close(
        problem.found(cosine=True), problem.expected(cosine=True), rtol=0, atol=1e-11
    )


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("name", ["linear", "mlp", "conv", "squashed", "twice"])
def test_the_last_layer(name: str) -> None:
    problem = Problem(name)
    torch.testing.assert_close(problem.found(layers="last"), problem.expected(2), **CLOSE)


def test_one_test_sample_no_hidden_unit_is_on_for() -> None:
    """Its hidden units are equal, 0, at all states, and those of training samples are not."""
    problem = Problem("mlp")
    problem.right = replace(problem.right[:1], inputs=-problem.left.inputs[:1].abs())
    problem.states = [
        {k: v.abs() if k.startswith("1.") else v for k, v in state.items()}
        for state in problem.states
    ]
    for state in problem.states:
        state["1.bias"] = torch.zeros_like(state["1.bias"])
    with torch.no_grad():
        hidden = problem.right.inputs.flatten(1) @ problem.states[0]["1.weight"].T
    assert (hidden < 0).all()
    expected = sum(
        w * problem.naive(s, problem.left, 0) @ problem.naive(s, problem.right, 0).T
        for s, w in zip(problem.states, WEIGHTS, strict=True)
    )
    assert expected.std() > 0.01
    torch.testing.assert_close(problem.found(), expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "layers", "pairs"),
    [
        ("linear", "all", 1),
        ("mlp", "all", 1 + 3),
        ("squashed", "all", 1 + 3),  # the same for all states, though not the samples
        ("branches", "all", 2 + 3),
        ("linear", "last", 1),
        ("mlp", "last", 3),
    ],
)
def test_equal_inputs_are_multiplied_once_for_all_states(
    name: str, layers: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, multiply = [], summed.factored_dots

    def counted(left: list[Factor], right: list[Factor]) -> Tensor:
        counts.append(len(left))
        return multiply(left, right)

    monkeypatch.setattr(summed, "factored_dots", counted)
    Problem(name).found(layers=layers)
    assert counts == [pairs, pairs]  # two blocks


def test_right_samples_are_differentiated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, differentiate = [], summed.gradient_factors

    def counted(module: nn.Module, state: Any, samples: Samples) -> Any:
        sizes.append(len(samples))
        return differentiate(module, state, samples)

    monkeypatch.setattr(summed, "gradient_factors", counted)
    Problem("mlp").found()
    assert sizes == [M] * 3 + [8] * 3 + [3] * 3


def test_other_layers_are_refused() -> None:
    problem = Problem("linear")
    with pytest.raises(LeaveoutError, match="'first' is not one of all, last"):
        problem.found(layers="first")
    with pytest.raises(LeaveoutError, match="add `layers: last`"):
        problem.found(projection=lambda _, factor: factor)


def test_same_numbers_or_the_same_memory() -> None:
    values = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
    assert same(values, values.view(2, 2))
    assert not same(values, values.T)
    assert not same(values[:1], values[1:])
    assert same(values[:1], values[:1].clone())
    assert not same(values[:1], values[:1].double())
