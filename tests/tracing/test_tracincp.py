from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from leaveout import TracInCP, TracInCPFast, TracInCPFastRandProj
from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import Factor
from leaveout.gradients.parts import choose, fit, gradient_parts
from leaveout.tracing import tracincp
from leaveout.tracing.batches import per_sample
from leaveout.tracing.most import most_influential

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-11}  # float64, scores of order 1
N, M, RATES = 13, 6, (0.5, 0.2)


class Twice(nn.Module):
    """A layer used twice, one on sequences, an embedding, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
        hidden = self.norm(self.mix(self.mix(self.embed(tokens)).tanh()))
        return self.head((hidden * weight[..., None]).mean(1) * self.scale)


class Columns(nn.Module):
    """A layer that sees samples along its second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(inputs.transpose(0, 1))).mean(0))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding="same", dilation=2),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0), bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 3),
    )


def images(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 2, 6, 6).double(),)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        lambda n: (torch.randn(n, 5).double(),),
    ),
    "conv": (conv, images),
    "twice": (Twice, lambda n: (torch.randint(7, (n, 3)), torch.rand(n, 3).double())),
    "columns": (Columns, lambda n: (torch.randn(n, 2, 5).double(),)),
}


class Problem:
    def __init__(self, name: str) -> None:
        self.make, inputs = MODELS[name]
        with torch.random.fork_rng():
            torch.manual_seed(3)
            states = []
            for _ in RATES:
                self.model = self.make().double()
                self.model(*inputs(20))  # running statistics not the initial ones
                states.append({k: v.clone() for k, v in self.model.state_dict().items()})
            self.train = TensorDataset(*inputs(N), torch.randint(3, (N,)))
            self.test = (*inputs(M), torch.randint(3, (M,)))
        self.checkpoints = list(zip(states, RATES, strict=True))
        self.last = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)][-1]

    def load(self, model: nn.Module, checkpoint: Any) -> float:
        model.load_state_dict(checkpoint[0])
        return float(checkpoint[1])

    def tracer(self, kind: Any = TracInCP, **changes: Any) -> Any:
        given = {
            "train_dataset": self.train,
            "checkpoints": self.checkpoints,
            "checkpoints_load_func": self.load,
            "loss_fn": nn.CrossEntropyLoss(),
            **changes,
        }
        if kind is not TracInCP:
            given = {"final_fc_layer": self.last, **given}
        return kind(self.model, **given)

    def naive(self, prefix: str = "", loss: Any = functional.cross_entropy) -> Any:
        """One backward pass a sample and checkpoint: sqrt(rate) x gradients, stacked."""
        with torch.random.fork_rng():
            other = self.make()
        stacks: list[list[Tensor]] = [[], []]
        for state, rate in self.checkpoints:
            module = other.double().eval()
            module.load_state_dict(state)
            chosen = [p for n, p in module.named_parameters() if n.startswith(prefix)]
            for stack, data in zip(stacks, (self.train.tensors, self.test), strict=True):
                found = []
                for i in range(len(data[0])):
                    *x, y = (value[i : i + 1] for value in data)
                    gradients = torch.autograd.grad(loss(module(*x), y).sum(), chosen)
                    found.append(torch.cat([g.flatten() for g in gradients]))
                stack.append(rate**0.5 * torch.stack(found))
        return tuple(torch.cat(stack, dim=1) for stack in stacks)


@pytest.fixture(params=MODELS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(request.param)


@pytest.fixture(params=["large", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut everything that can be cut into pieces, or nothing; return a batch size."""
    if request.param == "large":
        return 100
    for name, value in (("CHUNK_BYTES", 2500), ("GROUP_BYTES", 4000), ("HELD_BYTES", 2500)):
        monkeypatch.setattr(tracincp, name, value)
    return 4


def test_influence_self_influence_and_embeddings(problem: Problem, sizes: int) -> None:
    train, test = problem.naive()
    tracer = problem.tracer(batch_size=sizes)
    scores = tracer.influence(problem.test)
    torch.testing.assert_close(scores, test @ train.T, **CLOSE)
    assert scores.std() > 0.01
    total = tracer.influence(problem.test, aggregate=True)
    torch.testing.assert_close(total, (test @ train.T).sum(0, keepdim=True), **CLOSE)
    loader = DataLoader(TensorDataset(*problem.test), batch_size=2)
    torch.testing.assert_close(tracer.influence(loader), scores, **CLOSE)
    torch.testing.assert_close(tracer.self_influence(), train.square().sum(1), **CLOSE)
    torch.testing.assert_close(tracer.self_influence(problem.test), test.square().sum(1), **CLOSE)
    mine = tracer.embeddings()
    torch.testing.assert_close(mine @ tracer.embeddings(loader).T, scores.T, **CLOSE)
    assert mine.shape == train.shape


def test_the_k_most_influential(problem: Problem, sizes: int) -> None:
    tracer = problem.tracer(batch_size=sizes)
    scores = tracer.influence(problem.test)
    for proponents in (True, False):
        order = scores.argsort(dim=1, descending=proponents)[:, :5]
        found = tracer.influence(problem.test, k=5, proponents=proponents)
        assert torch.equal(found.indices, order)
        torch.testing.assert_close(found.influence_scores, scores.gather(1, order), **CLOSE)
    assert tracer.influence(problem.test, k=99).indices.shape == (M, N)


def test_the_last_layer_and_chosen_layers(problem: Problem, sizes: int) -> None:
    train, test = problem.naive(problem.last)
    fast = problem.tracer(TracInCPFast, batch_size=sizes)
    torch.testing.assert_close(fast.influence(problem.test), test @ train.T, **CLOSE)
    chosen = problem.tracer(layers=[problem.last])
    torch.testing.assert_close(chosen.influence(problem.test), test @ train.T, **CLOSE)
    first = next(n for n, m in problem.model.named_children() if [*m.parameters()])
    train, test = problem.naive(first + ".")
    one = problem.tracer(layers=[first], batch_size=sizes)
    torch.testing.assert_close(one.influence(problem.test), test @ train.T, **CLOSE)
    weight = problem.last + ".weight"
    train, test = problem.naive(weight)
    bare = problem.tracer(TracInCPFast, bias=False)
    torch.testing.assert_close(bare.influence(problem.test), test @ train.T, **CLOSE)


def test_no_gradient_goes_through_the_body(problem: Problem) -> None:
    tracer = problem.tracer(TracInCPFast)
    graph = []

    def note(_: nn.Module, args: tuple[Tensor]) -> None:
        graph.append(args[0].requires_grad)

    hook = problem.model.get_submodule(problem.last).register_forward_pre_hook(note)
    tracer.influence(problem.test)
    hook.remove()
    assert graph
    assert not any(graph)


def test_random_projections_keep_inner_products_in_expectation() -> None:
    problem = Problem("mlp")
    exact = problem.tracer(TracInCPFast).influence(problem.test)
    whole = problem.tracer(TracInCPFastRandProj)
    torch.testing.assert_close(whole.influence(problem.test), exact, **CLOSE)
    tracers = [
        problem.tracer(TracInCPFastRandProj, projection_dim=4, seed=seed) for seed in range(150)
    ]
    found = torch.stack([tracer.influence(problem.test) for tracer in tracers])
    assert tracers[0].embeddings().shape == (N, len(RATES) * 4)
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    # 78 entries: the largest of as many standard normals is below 4.5 but for one in 1,900 draws
    assert ((mean - exact) / error).abs().max() < 4.5
    assert error.max() < 0.2 * exact.abs().max()
    again = problem.tracer(TracInCPFastRandProj, projection_dim=4, seed=7, batch_size=2)
    torch.testing.assert_close(again.influence(problem.test), found[7], **CLOSE)
    most = again.influence(problem.test, k=3)
    torch.testing.assert_close(most.influence_scores, found[7].topk(3).values, **CLOSE)
    torch.testing.assert_close(
        again.self_influence(), problem.tracer(TracInCPFast).self_influence(), **CLOSE
    )


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, nn.MSELoss])
def test_reductions_make_no_difference(make: Any) -> None:
    problem = Problem("mlp")
    if make is nn.MSELoss:
        train, test = (
            functional.one_hot(d[-1], 3).double() for d in (problem.train.tensors, problem.test)
        )
        problem.train = TensorDataset(problem.train.tensors[0], train)
        problem.test = (problem.test[0], test)
    mean = problem.tracer(loss_fn=make()).influence(problem.test)
    factor = 9 if make is nn.MSELoss else 1  # a sum over three outputs, on both sides
    total = problem.tracer(loss_fn=make(reduction="sum")).influence(problem.test)
    torch.testing.assert_close(total, factor * mean, **CLOSE)
    if make is nn.MSELoss:
        with pytest.raises(LeaveoutError, match="one number a sample"):
            problem.tracer(loss_fn=make(reduction="none")).influence(problem.test)
    else:
        each = problem.tracer(loss_fn=make(reduction="none")).influence(problem.test)
        torch.testing.assert_close(each, mean, **CLOSE)


def test_other_losses() -> None:
    problem = Problem("mlp")
    plain = problem.tracer().influence(problem.test)

    def stubborn(outputs: Tensor, targets: Tensor) -> Tensor:  # cannot be vectorised
        assert float(outputs.detach().sum()) != 0
        return functional.cross_entropy(outputs, targets)

    torch.testing.assert_close(
        problem.tracer(loss_fn=stubborn).influence(problem.test), plain, **CLOSE
    )

    def logit(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.gather(1, targets[:, None])[:, 0]

    (train, _), (_, test) = problem.naive(), problem.naive(loss=logit)
    tracer = problem.tracer(test_loss_fn=logit)
    torch.testing.assert_close(tracer.influence(problem.test), test @ train.T, **CLOSE)
    torch.testing.assert_close(tracer.embeddings(problem.test) @ train.T, test @ train.T, **CLOSE)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = problem.model

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return functional.cross_entropy(self.inner(inputs["x"]), inputs["y"], reduction="none")

    class Mappings(Dataset[Any]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            x, y = problem.train[i]
            return {"x": x, "y": y}, 0

    def load(model: Any, checkpoint: Any) -> float:
        return problem.load(model.inner, checkpoint)

    own = TracInCP(Own(), Mappings(), problem.checkpoints, load, batch_size=5)
    test_batch = ({"x": problem.test[0], "y": problem.test[1]}, torch.zeros(M))
    torch.testing.assert_close(own.influence(test_batch), plain, **CLOSE)


def state_of(model: nn.Module) -> list[Any]:
    return [
        [m.training for m in model.modules()],
        [
            (id(p), p.requires_grad, None if p.grad is None else id(p.grad))
            for p in model.parameters()
        ],
        [id(b) for b in model.buffers()],
        [len(m._forward_hooks) for m in model.modules()],
    ]


@pytest.mark.parametrize("failing", ["", "load", "loss", "forward"])
def test_the_model_is_left_as_it_was(problem: Problem, failing: str) -> None:
    model = problem.model.train()
    next(model.children()).eval()
    first = next(model.parameters())
    first.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    before, values = state_of(model), {k: v.clone() for k, v in model.state_dict().items()}

    def load(module: nn.Module, checkpoint: Any) -> float:
        module.load_state_dict(checkpoint[0], assign=True)
        if failing == "load" and checkpoint is problem.checkpoints[1]:
            raise ValueError
        return 0.1

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if failing == "loss":
            raise ValueError
        return functional.cross_entropy(outputs, targets)

    tracer = problem.tracer(checkpoints_load_func=load, loss_fn=loss)
    wrong = (torch.zeros(3, 1, 1, 1, 1), torch.zeros(3, dtype=torch.int64))
    for call in (
        lambda: tracer.influence(wrong if failing == "forward" else problem.test),
        lambda: tracer.self_influence(wrong if failing == "forward" else None),
        lambda: tracer.embeddings(wrong if failing == "forward" else None),
    ):
        if failing:
            with pytest.raises((ValueError, RuntimeError, TypeError)):
                call()
        else:
            call()
        assert state_of(model) == before
        torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)


def test_frozen_parameters_do_not_count() -> None:
    problem = Problem("mlp")
    problem.model[0].requires_grad_(False)
    found = problem.tracer().influence(problem.test)
    torch.testing.assert_close(found, problem.tracer(TracInCPFast).influence(problem.test), **CLOSE)


def test_files_and_iterators_of_checkpoints(tmp_path: Path) -> None:
    problem = Problem("mlp")
    expected = problem.tracer().influence(problem.test)
    for number, (state, rate) in zip((10, 9), problem.checkpoints, strict=True):
        prefixed = {f"module.{name}": value for name, value in state.items()}
        torch.save({"state_dict": prefixed, "learning_rate": rate}, tmp_path / f"step{number}.pt")
    given: dict[str, Any] = {"loss_fn": nn.CrossEntropyLoss()}
    tracer = TracInCP(problem.model, problem.train, tmp_path, **given)
    assert [path.name for path in tracer.checkpoints] == ["step9.pt", "step10.pt"]
    torch.testing.assert_close(tracer.influence(problem.test), expected, **CLOSE)
    states: Iterator[Any] = ({**s, "learning_rate": r} for s, r in problem.checkpoints)
    tracer = TracInCP(problem.model, problem.train, states, **given)
    for _ in range(2):
        torch.testing.assert_close(tracer.influence(problem.test), expected, **CLOSE)
    plain = TracInCP(problem.model, problem.train, [problem.checkpoints[0][0]], **given)
    doubled = problem.tracer(checkpoints=[(problem.checkpoints[0][0], 1.0)])
    torch.testing.assert_close(
        plain.influence(problem.test), doubled.influence(problem.test), **CLOSE
    )


class Stream(IterableDataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(len(self.data)))


def test_any_kind_of_data_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("mlp")
    expected = problem.tracer().influence(problem.test)
    for data in (
        Stream(problem.train),
        DataLoader(problem.train, batch_size=3),
        torch.utils.data.Subset(problem.train, range(N)),
    ):
        found = problem.tracer(train_dataset=data).influence(problem.test)
        torch.testing.assert_close(found, expected, **CLOSE)
    assert not capsys.readouterr().err
    problem.tracer(batch_size=5).influence(problem.test, show_progress=True)
    assert "TracInCP: 100%" in (shown := capsys.readouterr().err)
    assert "6/6" in shown  # three batches, two checkpoints


def test_linear_layers_keep_factors_and_nothing_is_formed() -> None:
    problem = Problem("mlp")
    model = problem.model.requires_grad_(False)
    chosen = choose(model, [name for name, _ in model.named_parameters()])
    losses = per_sample(nn.CrossEntropyLoss(), "loss_fn")
    assert fit(model, chosen, losses, problem.test) == 0
    assert all(isinstance(p, Factor) for p in gradient_parts(model, chosen, losses, problem.test))


def test_of_equal_scores_the_first_are_taken_however_they_stream() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(4, size=(5, 40)).astype(float))
    for proponents in (True, False):
        order = (scores if not proponents else -scores).sort(dim=1, stable=True).indices[:, :7]
        for size in (1, 3, 7, 40):
            found = most_influential(scores.split(size, dim=1), 7, proponents)
            assert torch.equal(found.indices, order)
            assert torch.equal(found.influence_scores, scores.gather(1, order))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["3"]}, "no layer '3' with parameters; it has 0, 2"),
        ({"layers": "2"}, "expected a list"),
        ({"checkpoints": []}, "there are none"),
        ({"checkpoints": "no/such/folder"}, "is no folder"),
        ({"checkpoints_load_func": lambda m, c: None}, "returned None"),
        ({"checkpoints_load_func": lambda m, c: -1.0}, "returned -1.0"),
        ({"train_dataset": [1, 2]}, "expected a Dataset or DataLoader, got list"),
        (
            {"train_dataset": DataLoader(TensorDataset(torch.ones(3)), shuffle=True)},
            "another order",
        ),
        ({"loss_fn": lambda o, t: o}, "one number a sample"),
    ],
)
def test_wrong_arguments_say_what_to_do(changes: dict[str, Any], message: str) -> None:
    problem = Problem("mlp")
    with pytest.raises(LeaveoutError, match=message):
        problem.tracer(**changes).influence(problem.test)


def test_other_wrong_calls_say_what_to_do() -> None:
    problem = Problem("mlp")
    with pytest.raises(LeaveoutError, match=r"'1' is no|1 is no linear layer.*it has 0, 2"):
        problem.tracer(TracInCPFast, final_fc_layer="1")
    with pytest.raises(LeaveoutError, match="at least 1"):
        problem.tracer().influence(problem.test, k=0)
    with pytest.raises(LeaveoutError, match="inputs: expected a batch"):
        problem.tracer().influence(problem.test[0])
    problem.model.requires_grad_(False)
    with pytest.raises(LeaveoutError, match="no parameter requires a gradient"):
        problem.tracer()
    nan = torch.tensor([[0.0, 1, torch.nan, torch.nan]])
    with pytest.raises(LeaveoutError, match="2 scores of training samples 1 to 3 are NaN"):
        most_influential([nan[:, :1], nan[:, 1:]], 1)
