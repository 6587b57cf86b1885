"""Products of models that torch.func can not run, against the dense matrices by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leaveout.curvature import ggn, hvp
from leaveout.curvature.ggn import gauss_newton_map
from leaveout.curvature.hvp import at_once, hessian_map
from leaveout.curvature.plain import or_plain
from leaveout.errors import NotComputableError
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import OBJECTIVES
from leaveout.problem.samples import Samples

N, T, F, OUT = 7, 4, 3, 2


@pytest.fixture(autouse=True)
def _seeded(_global_randomness_untouched: None) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * slopes[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.inside, self.last = kind(F, 3, batch_first=True), nn.Linear(3, OUT)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.inside(x)[0][:, -1])
        return out


class Middle(nn.Module):
    def __init__(self, middle: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(F, 4), nn.Linear(4, OUT), middle
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.first, x[:, 0]))
        return out


def looks(first: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = first(x).tanh()
    return found * 0 if found.abs().max().item() > 1e9 else found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "checkpoint": lambda: Middle(
        lambda first, x: checkpoint(lambda z: first(z).tanh(), x, use_reentrant=False)
    ),
    "own function": lambda: Middle(lambda first, x: Cube.apply(first(x))),
    "looks at values": lambda: Middle(looks),
}

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda h, t: functional.cross_entropy(h, t, reduction="sum"),
    "squared_error": lambda h, t: (h - t).square().sum() / 2,
    "multi_label": lambda h, t: functional.binary_cross_entropy_with_logits(h, t, reduction="sum"),
}


def problem(model: str, objective: str) -> tuple[nn.Module, dict[str, Tensor], Samples]:
    module = MODELS[model]().double().eval()
    state = {name: 2 * p.detach() for name, p in module.named_parameters()}
    targets = {
        "cross_entropy": torch.randint(OUT, (N,)),
        "squared_error": torch.randn(N, OUT).double(),
        "multi_label": torch.randint(2, (N, OUT)).double(),
    }[objective]
    return module, state, Samples(torch.randn(N, T, F).double(), targets, OBJECTIVES[objective]())


def dense(
    module: nn.Module, state: dict[str, Tensor], samples: Samples, loss: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the Hessian and the Gauss-Newton matrix of the mean loss, row by row by autograd."""

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([value.numel() for value in state.values()])
        named = zip(state.items(), parts, strict=True)
        given = {name: part.view(value.shape) for (name, value), part in named}
        found: Tensor = functional_call(module, given, (samples.inputs,))
        return found

    class Whole(nn.Module):  # checkpoints run again in the backward pass, with these parameters
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
            h = self.module(samples.inputs)
            slope = torch.autograd.grad(
                loss(h, samples.targets) / N, leaves, create_graph=True, **KEPT
            )
            line = torch.cat([s.flatten() for s in slope])
            hessian = [torch.autograd.grad(n, leaves, retain_graph=True, **KEPT) for n in line]
            rows = [torch.autograd.grad(n, leaves, retain_graph=True, **KEPT) for n in h.flatten()]
            both = [
                torch.stack([torch.cat([s.flatten() for s in r]) for r in t])
                for t in (hessian, rows)
            ]
            return both[0], both[1]

    named = {f"module.{name}": value.clone().requires_grad_() for name, value in state.items()}
    leaves = [*named.values()]
    hessian, jacobian = functional_call(Whole(), named, (torch.zeros(0),))
    h = outputs(torch.cat([value.flatten() for value in state.values()])).detach()
    curve = torch.autograd.functional.hessian(lambda h: loss(h, samples.targets) / N, h)
    assert isinstance(curve, Tensor)
    return hessian, jacobian.T @ curve.view(N * OUT, N * OUT) @ jacobian


KEPT: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}


@pytest.mark.parametrize("size", [N, 3])
@pytest.mark.parametrize("objective", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_products_are_those_of_the_dense_matrices(
    model: str, objective: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module_of in (ggn, hvp):
        monkeypatch.setattr(module_of, "at_once", lambda *_: (size, 2))
    module, state, samples = problem(model, objective)
    before = {name: value.clone() for name, value in state.items()}
    rights = dense(module, state, samples, LOSSES[objective])
    vectors = torch.randn(3, len(rights[0])).double()
    for products, right in zip((hessian_map, gauss_newton_map), rights, strict=True):
        expected = vectors @ right
        assert expected.abs().max() > 1e-3
        work = products(module, state, samples)
        for _ in range(2):  # the second time it knows which way to go
            found = work(vectors)
            assert not found.requires_grad
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert not any(value.requires_grad for value in state.values())


def test_without_a_likelihood_there_is_no_gauss_newton_matrix() -> None:
    module, state, samples = problem("lstm", "squared_error")
    odd = Objective("odd", lambda h, t: (h - t).abs().sum(1))
    with pytest.raises(NotComputableError, match="odd"):
        gauss_newton_map(module, state, samples.asked(odd))


class Distances(nn.Linear):
    """torch has no second derivative of distances."""

    def __init__(self) -> None:
        super().__init__(F, OUT)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cdist(input[:, 0], self.weight)


def test_without_a_second_derivative_there_is_no_hessian() -> None:
    module, (_, _, samples) = Distances().double(), problem("gru", "squared_error")
    state = {name: p.detach() for name, p in module.named_parameters()}
    vectors = torch.ones(1, sum(value.numel() for value in state.values())).double()
    with pytest.raises(NotComputableError, match=r"^undefined: .* twice: .*_cdist_backward"):
        hessian_map(module, state, samples)(vectors)


class Rolled(torch.autograd.Function):
    """Has another gradient than its values: no function has this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.roll(1, -1) * slopes[0]


class Straight(nn.Linear):
    def __init__(self) -> None:
        super().__init__(F, OUT)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = Rolled.apply(super().forward(input[:, 0]))  # type: ignore[no-untyped-call]
        return out


def test_what_is_not_symmetric_is_no_hessian() -> None:
    module, (_, _, samples) = Straight().double(), problem("gru", "squared_error")
    state = {name: p.detach() for name, p in module.named_parameters()}
    vectors = torch.ones(1, sum(value.numel() for value in state.values())).double()
    with pytest.raises(NotComputableError, match=r"^undefined: .* not symmetric"):
        hessian_map(module, state, samples)(vectors)


def test_a_lack_of_memory_is_no_reason_to_go_the_other_way() -> None:
    def full(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        or_plain(full, lambda v: v)(torch.ones(1))


class Functional(nn.Module):
    """A perceptron that has no layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(F, width) / 2)
        self.u = nn.Parameter(torch.randn(width, OUT) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, 0] @ self.w).tanh() @ self.u


def test_what_is_computed_outside_of_layers_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (_, _, samples) = Functional(1000).double(), problem("gru", "squared_error")
    state = {name: p.detach() for name, p in module.named_parameters()}
    monkeypatch.setattr(hvp, "CHUNK_BYTES", 80_000)  # of a sample its 1000 numbers take 8000
    size, count = at_once(module, state, samples)
    assert size == N
    assert count == 1
    monkeypatch.setattr(hvp, "CHUNK_BYTES", 30_000)
    size, count = at_once(module, state, samples)
    assert (size, count) == (3, 1)
    assert not any(value.requires_grad for value in state.values())
