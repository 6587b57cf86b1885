"""One's own model, in a call: any method, any form of samples, against dense autograd."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import leaveout
from leaveout import Recipe, attribute
from leaveout.doors.attribute import REPLAYED, method_module, method_names
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.store import artefacts

N, M, WIDTH = 14, 4, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(outputs: int = 2, seed: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, outputs)
        )
    return model.double().train()


X, Y = drawn(N, WIDTH), torch.arange(N) % 3
U, V = drawn(M, WIDTH, seed=1), torch.arange(M) % 3


def gradients(model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    model.eval()
    for a, b in zip(x, y, strict=True):
        found = torch.autograd.grad(loss(model(a[None]), b[None]), [*model.parameters()])
        rows.append(torch.cat([g.flatten() for g in found]))
    model.train()
    return torch.stack(rows)


def test_any_form_of_samples_gives_the_same() -> None:
    model, loss = build(3), nn.CrossEntropyLoss()
    right = gradients(model, loss, X, Y) @ gradients(model, loss, U, V).T
    train, test = TensorDataset(X, Y), TensorDataset(U, V)
    for left, other in (
        ((X, Y), (U, V)),
        (train, test),
        (DataLoader(train, 4), DataLoader(test, 3)),
        ((X.numpy(), Y.numpy()), (U.numpy(), V.numpy())),
    ):
        found = attribute("grad_dot", model, left, other, loss=loss)
        torch.testing.assert_close(found.values, right.float())
    with pytest.raises(LeaveoutError, match="another order each time"):
        attribute("grad_dot", model, DataLoader(train, shuffle=True), (U, V), loss=loss)


def test_the_model_is_left_as_it_was() -> None:
    model = build(3)
    model.get_submodule("0").requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribute("if_ekfac", model, (X, Y), (U, V), loss=nn.CrossEntropyLoss(), damping=0.1)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def reduced(loss: Any, how: str) -> Any:
    """The same loss with another reduction."""
    other = copy.copy(loss)
    other.reduction = how
    return other


LOSSES = {
    "weighted": (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]).double()), 3, Y, V),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.2), 3, Y, V),
    "numbers": (nn.MSELoss(), 2, drawn(N, 2, seed=3), drawn(M, 2, seed=4)),
    "labels": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5])),
        2,
        (drawn(N, 2, seed=3) > 0).double(),
        (drawn(M, 2, seed=4) > 0).double(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_influence_is_that_of_the_batch_loss_as_torch_has_it(name: str) -> None:
    """The Hessian of torch's own loss over the whole batch, dense; gradients are its parts'."""
    loss, outputs, y, v = LOSSES[name]
    model = build(outputs).eval()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs_of(t: Tensor, x: Tensor) -> Tensor:
        parts = iter(t.split([p.numel() for p in model.parameters()]))
        named = {k: next(parts).view(p.shape) for k, p in model.named_parameters()}
        return torch.func.functional_call(model, named, (x,))  # type: ignore[no-any-return]

    def without(i: int, t: Tensor) -> Tensor:
        """The batch's loss with sample i's part taken out of the sum, divided as before."""
        rest = torch.arange(N) != i
        weight = getattr(loss, "weight", None)
        count = y.numel() if weight is None else weight[y].sum()
        total: Tensor = reduced(loss, "sum")(outputs_of(t, X[rest]), y[rest])
        return total / count

    matrix = torch.autograd.functional.hessian(lambda t: loss(outputs_of(t, X), y), flat)
    whole = torch.autograd.functional.jacobian(lambda t: loss(outputs_of(t, X), y), flat)
    parts = torch.stack(
        [
            whole - torch.autograd.functional.jacobian(lambda t, i=i: without(i, t), flat)
            for i in range(N)
        ]
    )
    test = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda t, j=j: reduced(loss, "sum")(outputs_of(t, U[j : j + 1]), v[j : j + 1]),
                flat,
            )
            for j in range(M)
        ]
    )
    solved = torch.linalg.solve(matrix + 0.5 * torch.eye(len(flat)).double(), test.T)
    found = attribute("if_explicit", model, (X, y), (U, v), loss=loss, damping=0.5).values
    # a sample's part of the mean over N counts N times
    torch.testing.assert_close(found, (N * parts @ solved).float(), rtol=1e-4, atol=1e-5)


PARAMS: dict[str, Any] = {
    "damping": 0.1, "iterations": 3, "l2": 0.1, "rank": 2, "projection": 8, "models": 2, "k": 3,
    "segments": 1, "base": "if_ekfac", "norm": "l", "depth": 5, "batch": 5, "scaling": 50.0,
    "runs": 2, "weight": 1e-3, "projections": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*method_names()} - REPLAYED))
def test_every_method_scores_and_ranks(name: str) -> None:
    model = build(3)
    recipe = Recipe(learning_rate=0.1, epochs=2, batch_size=7)
    takes = inspect.signature(method_module(name).attribute).parameters
    params = {
        key: PARAMS[key]
        for key, p in takes.items()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }
    states = [build(3, seed).state_dict() for seed in (1, 2)]
    found = attribute(
        name,
        model,
        (X, Y),
        (U, V),
        loss=nn.CrossEntropyLoss(),
        checkpoints=states,
        learning_rates=[0.1, 0.05],
        ensemble=[build(3, seed).state_dict() for seed in (3, 4)],
        recipe=recipe,
        **params,
    )
    assert found.values.shape == (N, M)
    assert found.values.isfinite().all()
    ids, values = found.top(3)
    for j in range(M):
        order = np.argsort(-found.values[:, j].numpy(), kind="stable")
        torch.testing.assert_close(values[j], found.values[order[:3], j])
        assert found.values[ids[j], j].tolist() == values[j].tolist()
    worst, _ = found.top(2, harmful=True)
    assert found.values[worst[0], 0].max() <= found.values[:, 0].median()


def test_self_influence_is_the_gradients_square() -> None:
    model, loss = build(3), nn.CrossEntropyLoss()
    found = attribute("grad_dot", model, (X, Y), loss=loss)
    squares = gradients(model, loss, X, Y).square().sum(1)
    torch.testing.assert_close(found.values, squares.float())
    assert found.top(1)[0].tolist() == [int(squares.argmax())]


def test_checkpoints_are_states_or_files(tmp_path: Path) -> None:
    model, loss = build(3), nn.CrossEntropyLoss()
    states = [build(3, seed).state_dict() for seed in (5, 6)]
    expected = attribute("tracin_cp", model, (X, Y), (U, V), loss=loss, checkpoints=states).values
    total = torch.zeros(N, M).double()
    for state in states:
        own = build(3)
        own.load_state_dict(state)
        total += gradients(own, loss, X, Y) @ gradients(own, loss, U, V).T
    torch.testing.assert_close(expected, total.float())
    for number, state in enumerate(states):
        torch.save(state, tmp_path / f"{number}.pt")
        save_file(state, tmp_path / f"{number}.safetensors")
    for ending in ("pt", "safetensors"):
        files = [tmp_path / f"{k}.{ending}" for k in range(2)]
        found = attribute("tracin_cp", model, (X, Y), (U, V), loss=loss, checkpoints=files).values
        assert torch.equal(found, expected)


def test_scores_are_saved_as_the_workflow_saves_them(tmp_path: Path) -> None:
    found = attribute("grad_dot", build(3), (X, Y), (U, V), loss=nn.CrossEntropyLoss())
    found.save(tmp_path / "score.safetensors", "mine")
    read = artefacts.read(tmp_path / "score.safetensors", "score")
    np.testing.assert_array_equal(read.tensors["score"], found.values.numpy())
    assert (read.meta["setting"], read.meta["method"]) == ("mine", "grad_dot")


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("if_ekfact", {}, "did you mean 'if_ekfac'"),
        ("if_ekfac", {}, "if_ekfac: give damping"),
        ("if_ekfac", {"damping": 1, "dampin": 2}, "takes no 'dampin'; did you mean 'damping'"),
        ("magic", {"shuffle": True}, "train by leaveout.Benchmark"),
        ("source", {"segments": 1}, "give recipe="),
        ("grad_dot", {"loss": "cross_entropi"}, "did you mean 'cross_entropy'"),
        ("grad_dot", {"learning_rates": [1.0, 2.0]}, "2 were given for 1 checkpoints"),
        ("grad_dot", {"checkpoints": [{"x": X}]}, "not a state of this model"),
        ("grad_dot", {"test": (U, V, V, V)}, "."),
        ("grad_dot", {"train": X}, "expected .inputs, targets."),
        ("grad_dot", {"train": (X, Y[:3])}, "tensor 1 .* 3 rows"),
        ("grad_dot", {"train": (X, Y.double())}, "not classes"),
    ],
)
def test_what_is_wrong_is_named(method: str, arguments: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"loss": "cross_entropy", "train": (X, Y), "test": (U, V)} | arguments
    with pytest.raises((LeaveoutError, TypeError), match=words):
        attribute(method, build(3), given.pop("train"), given.pop("test"), **given)


def test_what_a_loss_does_not_tell_is_undefined() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().sum()

    y, v = drawn(N, 2), drawn(M, 2)
    with pytest.raises(NotComputableError, match="undefined: the true Fisher needs a likelihood"):
        attribute("if_ekfac", build(), (X, y), (U, v), loss=loss, damping=0.1)
    found = attribute(
        "if_ekfac", build(), (X, y), (U, v), loss=loss, damping=0.1, fisher="empirical"
    )
    assert found.values.isfinite().all()


def test_public_names_are_there() -> None:
    for name in ("attribute", "Benchmark", "Samples", "Objective", "Recipe", "Split"):
        assert getattr(leaveout, name).__doc__


class Tokens(nn.Module):
    """Scales the gradient of an embedding by how often a token is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 3, scale_grad_by_freq=True)
        self.last = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.tokens(ids).sum(1).tanh())  # type: ignore[no-any-return]


class Phases(nn.Module):
    """Has a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.last = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.last(ids.float()) * self.phase).abs()


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Tokens, r"tokens mixes the samples of a batch.*scale_grad_by_freq"),
        (
            lambda: nn.Sequential(
                nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
            ),
            r"1 mixes the samples of a batch.*track_running_stats",
        ),
        (Phases, "the model has complex parameters"),
    ],
)
def test_models_without_a_gradient_for_each_sample_are_refused(
    model: Callable[[], nn.Module], why: str, test: bool
) -> None:
    with torch.random.fork_rng():
        module = model()
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (6, 4), generator=drawn)
    inputs = ids if isinstance(module, Tokens) else ids.float()
    data = inputs, torch.arange(6) % 2
    methods: dict[str, dict[str, Any]] = {
        "grad_dot": {},
        "if_cg": {"damping": 1.0, "iterations": 2},
    }
    for method, params in methods.items():
        with pytest.raises(NotComputableError, match=f"^undefined: {why}"):
            attribute(
                method, module, data, data if test else None, loss=nn.CrossEntropyLoss(), **params
            )


@pytest.mark.parametrize("method", ["if_ekfac", "if_kfac", "logra"])
def test_layers_that_are_not_there_are_a_reason(method: str) -> None:
    """A row of a table, not its end."""
    more = {"rank": 2} if method == "logra" else {}
    module = nn.Sequential(nn.LayerNorm(4))
    data = torch.ones(6, 4), torch.arange(6) % 4
    with pytest.raises(NotComputableError, match=r"^undefined: .*(no nn.Linear|no linear layer)"):
        attribute(method, module, data, data, loss=nn.CrossEntropyLoss(), damping=0.1, **more)
