"""Every method on problems of all kinds: as dense algebra has it, in float64, or refused.

What is right is computed here from torch's own loss functions and autograd, one sample at a time.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import functional as derivatives
from torch.func import functional_call
from torch.nn import functional

from leaveout.attribution.task import State, Task
from leaveout.errors import NotComputableError
from leaveout.gradients.projection import draw_sparse, project
from leaveout.problem.objectives import OBJECTIVES

DAMPING = 0.3
CONVERGED = {"if_cg": 400, "astra": 600}


def rows_of(tree: Any, part: slice) -> Any:
    if isinstance(tree, Mapping):
        return {key: value[part] for key, value in tree.items()}
    return tree[part]


@dataclass(frozen=True)
class Right:
    """What is right of a problem, at one state, without a line of the package's mathematics."""

    problem: Any
    state: State

    @property
    def task(self) -> Task:
        task: Task = self.problem.task
        return task

    @cached_property
    def names(self) -> list[str]:
        named = dict(self.task.module.named_parameters())
        return [n for n, p in named.items() if p.requires_grad]

    @cached_property
    def flat(self) -> Tensor:
        return torch.cat([self.state[n].flatten() for n in self.names]).detach()

    def places(self, names: list[str]) -> Tensor:
        """Return where some parameters stand among all."""
        sizes = [self.state[n].numel() for n in self.names]
        ends = list(itertools.accumulate(sizes, initial=0))
        parts = {n: torch.arange(a, b) for n, a, b in zip(self.names, ends, ends[1:], strict=False)}
        return torch.cat([parts[n] for n in names])

    def outputs(self, flat: Tensor, inputs: Any) -> Tensor:
        sizes = [self.state[n].numel() for n in self.names]
        parts = {
            n: v.view(self.state[n].shape)
            for n, v in zip(self.names, flat.split(sizes), strict=True)
        }
        given = {**self.state, **parts}
        if isinstance(inputs, Mapping):
            found = functional_call(self.task.module, given, (), dict(inputs))
        else:
            found = functional_call(self.task.module, given, (inputs,))
        assert isinstance(found, Tensor)
        return found

    def one(self, samples: Any, i: int) -> tuple[Any, Tensor]:
        part = slice(i, i + 1)
        return rows_of(samples.inputs, part), samples.targets[part]

    def scale(self) -> Tensor:
        """Return the factor that makes the sum of training losses N times training's own loss."""
        targets = self.task.train.targets
        found: Tensor = len(targets) / self.problem.count(targets)
        return found

    def mean_loss(self, flat: Tensor) -> Tensor:
        train = self.task.train
        h = self.outputs(flat, train.inputs)
        found = self.problem.total(h, train.targets) / self.problem.count(train.targets)
        assert isinstance(found, Tensor)
        return found

    def rows(self, samples: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the gradient of each sample's number, (samples, parameters)."""
        found = []
        for i in range(len(samples)):
            x, t = self.one(samples, i)
            flat = self.flat.clone().requires_grad_()
            found.append(torch.autograd.grad(function(self.outputs(flat, x), t), flat)[0])
        return torch.stack(found)

    @cached_property
    def train(self) -> Tensor:
        return self.scale() * self.rows(self.task.train, self.problem.total)

    @cached_property
    def test(self) -> Tensor:
        return self.rows(self.task.test, self.problem.total)

    @cached_property
    def hessian(self) -> Tensor:
        found = derivatives.hessian(self.mean_loss, self.flat)
        assert isinstance(found, Tensor)
        return found

    @cached_property
    def roots(self) -> list[Tensor]:
        """Return for each training sample R with R R' its part of the Gauss-Newton matrix."""
        found = []
        for i in range(len(self.task.train)):
            x, t = self.one(self.task.train, i)
            h = self.outputs(self.flat, x).detach()
            jacobian = derivatives.jacobian(lambda f, x=x: self.outputs(f, x), self.flat)
            curve = derivatives.hessian(lambda h, t=t: self.scale() * self.problem.total(h, t), h)
            values, vectors = torch.linalg.eigh(curve.reshape(h.numel(), h.numel()))
            root = vectors * values.clamp_min(0).sqrt()
            found.append(jacobian.reshape(h.numel(), -1).T @ root)
        return found

    @cached_property
    def gauss_newton(self) -> Tensor:
        total = torch.stack([root @ root.T for root in self.roots])
        return total.mean(0)


KNOWN: dict[int, Right] = {}


@pytest.fixture
def right(problem: Any) -> Right:
    found = KNOWN.setdefault(id(problem), Right(problem, problem.task.full[0].final))
    return found


def score(task: Task, name: str, **given: Any) -> Tensor:
    found: Any = importlib.import_module(f"leaveout.attribution.{name}").attribute(task, **given)
    return found if isinstance(found, Tensor) else torch.cat([*found])


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    assert found.shape == expected.shape
    assert found.dtype == torch.float64
    assert float(expected.std()) > 0
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def solved(right: Right, matrix: Tensor, damping: float = DAMPING) -> Tensor:
    eye = torch.eye(len(matrix), dtype=torch.float64)
    return torch.linalg.solve(matrix + damping * eye, right.test.T)


def refused(task: Task, name: str, *words: str, **given: Any) -> None:
    with pytest.raises(NotComputableError) as error:
        score(task, name, **given)
    assert error.value.reason == "undefined"
    assert any(word in error.value.detail for word in words), error.value.detail


def test_what_is_right_is_what_training_minimises(right: Right) -> None:
    """The mean of the rows is the gradient of torch's own loss of all training samples."""
    flat = right.flat.clone().requires_grad_()
    (whole,) = torch.autograd.grad(right.mean_loss(flat), flat)
    torch.testing.assert_close(right.train.mean(0), whole, atol=1e-12, rtol=1e-9)


def test_grad_dot_and_grad_cos(right: Right) -> None:
    a, b = right.train, right.test
    close(score(right.task, "grad_dot"), a @ b.T, 1e-10)
    cosine = functional.normalize(a) @ functional.normalize(b).T
    close(score(right.task, "grad_cos"), cosine, 1e-10)


def test_tracin_over_runs_and_along_one(problem: Any) -> None:
    task = problem.task
    runs = [Right(problem, run.final) for run in task.full]
    expected = sum((0.3 * at.train @ at.test.T for at in runs), torch.zeros(()))
    close(score(task, "tracin", runs=2, weight=0.3), expected, 1e-10)
    run = task.full[0]
    steps = [Right(problem, state) for state in run.states]
    expected = sum(
        (rate * at.train @ at.test.T for rate, at in zip(run.learning_rates, steps, strict=True)),
        torch.zeros(()),
    )
    close(score(task, "tracin_cp"), expected, 1e-10)


LAST = {"regression": "2", "one_logit": "2", "multi_label": "2", "weighted": "2"}
LAST |= {"residual": "linear", "named": "out", "frozen": "4"}


MEASURED = {"tokens": "token_cross_entropy", "multi_label": "multi_label"}
MEASURED |= {"one_logit": "binary_cross_entropy", "residual": "cross_entropy"}


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_attributed_may_be_another_function(
    name: str, make_problem: Callable[..., Any]
) -> None:
    """The margin of test samples, negative as a loss is lower where it is better."""
    problem = make_problem(name)
    measured = OBJECTIVES[MEASURED[name]](measure="margin").measured()
    task = replace(problem.task, test=problem.task.test.asked(measured))
    right = Right(problem, task.full[0].final)
    asked = right.rows(task.test, lambda h, t: -problem.margin(h, t))
    close(score(task, "grad_dot"), right.train @ asked.T, 1e-10)
    eye = torch.eye(len(right.flat), dtype=torch.float64)
    inverse = torch.linalg.inv(right.gauss_newton + DAMPING * eye)
    found = score(task, "if_explicit", damping=DAMPING, curvature="gauss_newton")
    close(found, right.train @ inverse @ asked.T)
    found = score(task, "if_cg", damping=DAMPING, iterations=400, curvature="gauss_newton")
    close(found, right.train @ inverse @ asked.T, 1e-6)


def test_the_last_layer_s_gradients(right: Right, request: pytest.FixtureRequest) -> None:
    name = LAST.get(request.node.callspec.params["problem"])
    if name is None:
        refused(right.task, "grad_dot", "more than one vector", layers="last")
        refused(right.task, "tracin_cp", "more than one vector", layers="last", projection=64)
        refused(right.task, "feature_cosine", "more than one vector")
        return
    part = right.places([f"{name}.weight", f"{name}.bias"])
    expected = right.train[:, part] @ right.test[:, part].T
    close(score(right.task, "grad_dot", layers="last"), expected, 1e-10)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_explicit_influence(right: Right, curvature: str) -> None:
    expected = right.train @ solved(right, getattr(right, curvature))
    close(score(right.task, "if_explicit", damping=DAMPING, curvature=curvature), expected)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_conjugate_gradients(right: Right, curvature: str) -> None:
    matrix = getattr(right, curvature)
    damping = DAMPING - min(0.0, float(torch.linalg.eigvalsh(matrix)[0]))
    found = score(
        right.task, "if_cg", damping=damping, iterations=CONVERGED["if_cg"], curvature=curvature
    )
    close(found, right.train @ solved(right, matrix, damping), 1e-6)


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_lissa_is_its_series(right: Right, curvature: str) -> None:
    matrix, scaling = getattr(right, curvature), 20.0
    e = right.test
    for _ in range(7):
        e = right.test + e - (e @ matrix + DAMPING * e) / scaling
    found = score(
        right.task,
        "if_lissa",
        damping=DAMPING,
        depth=7,
        batch=1000,
        scaling=scaling,
        curvature=curvature,
    )
    close(found, right.train @ e.T / scaling)


def test_arnoldi_s_whole_space(right: Right) -> None:
    size = len(right.flat)
    found = score(
        right.task,
        "if_arnoldi",
        damping=DAMPING,
        iterations=size,
        projections=size,
        curvature="gauss_newton",
    )
    close(found, right.train @ solved(right, right.gauss_newton), 1e-6)


def test_astra_s_limit_is_the_damped_gauss_newton_solve(right: Right) -> None:
    found = score(right.task, "astra", damping=DAMPING, iterations=CONVERGED["astra"])
    close(found, right.train @ solved(right, right.gauss_newton), 1e-5)


def test_datainf(right: Right) -> None:
    groups: dict[str, list[str]] = {}
    for name in right.names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    total = torch.zeros(len(right.train), len(right.test), dtype=torch.float64)
    for names in groups.values():
        part = right.places(names)
        a, b = right.train[:, part], right.test[:, part]
        x = torch.stack(
            [
                torch.linalg.solve(torch.outer(g, g) + DAMPING * torch.eye(len(g)).double(), b.T)
                for g in a
            ]
        )
        total += a @ x.mean(0)
    close(score(right.task, "datainf", damping=DAMPING), total)


@pytest.mark.parametrize("norm", ["theta", "l"])
def test_relatif(right: Right, norm: str) -> None:
    eye = torch.eye(len(right.flat), dtype=torch.float64)
    x = torch.linalg.solve(right.gauss_newton + DAMPING * eye, right.train.T).T
    scale = x.norm(dim=1) if norm == "theta" else (x * right.train).sum(1).sqrt()
    expected = right.train @ solved(right, right.gauss_newton) / scale[:, None]
    found = score(
        right.task,
        "relatif",
        base="if_explicit",
        norm=norm,
        damping=DAMPING,
        curvature="gauss_newton",
    )
    close(found, expected)


def matrices(right: Right) -> dict[str, list[str]]:
    """Return the parameters of every linear layer and convolution that shares none."""
    found = {}
    for name, layer in right.task.module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and f"{name}.weight" in right.names:
            found[name] = [n for n in right.names if n.rpartition(".")[0] == name]
    return found


def test_kronecker_factors_are_the_fisher_of_layers(
    right: Right, request: pytest.FixtureRequest
) -> None:
    """Where a layer sees one vector a sample: Kronecker products of moments, from a loop."""
    if request.node.callspec.params["problem"] in ("tokens", "residual", "named"):
        pytest.skip("several positions, or norms: tests/curvature has them")
    n = len(right.train)
    shape = right.train.shape[0], right.test.shape[0]
    plain, corrected = torch.zeros(shape).double(), torch.zeros(shape).double()
    for weight, bias in matrices(right).values():
        out, width = right.state[weight].shape
        place = torch.cat(
            [right.places([weight]).view(out, width), right.places([bias])[:, None]], 1
        ).flatten()
        # a root of a sample's Fisher has in this layer d a', and a ends with a one
        pseudo = [root[place].T.reshape(-1, out, width + 1) for root in right.roots]
        inputs = torch.stack([seen_by(right, weight, i) for i in range(n)])
        a = torch.einsum("ni,nj->ij", inputs, inputs) / n
        d = sum(torch.einsum("ro,rp->op", g[:, :, -1], g[:, :, -1]) for g in pseudo) / n
        into, q = torch.linalg.eigh(a), torch.linalg.eigh(d)
        values = q.eigenvalues[:, None] * into.eigenvalues
        second = sum((q.eigenvectors.T @ g @ into.eigenvectors).square().sum(0) for g in pseudo) / n
        left, other = (
            q.eigenvectors.T @ g[:, place].reshape(-1, out, width + 1) @ into.eigenvectors
            for g in (right.train, right.test)
        )
        for total, each in ((plain, values), (corrected, second)):
            total += torch.einsum("nop,mop->nm", left / (each + DAMPING), other)
    close(score(right.task, "if_kfac", damping=DAMPING), plain)
    close(score(right.task, "if_ekfac", damping=DAMPING), corrected)
    once = score(right.task, "astra", damping=DAMPING, iterations=1)
    close(once, corrected)


def seen_by(right: Right, weight: str, i: int) -> Tensor:
    """Return what a linear layer sees of a training sample, and a one."""
    layer = right.task.module.get_submodule(weight.rpartition(".")[0])
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].detach()[0]))
    right.outputs(right.flat, right.one(right.task.train, i)[0])
    hook.remove()
    return torch.cat([seen[0], torch.ones(1, dtype=torch.float64)])


@pytest.mark.parametrize("method", ["if_kfac", "if_ekfac"])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_kronecker_factors_under_much_damping_are_grad_dot(
    right: Right, method: str, fisher: str
) -> None:
    found = score(right.task, method, damping=1e9, fisher=fisher) * 1e9
    close(found, right.train @ right.test.T, 1e-5)


def test_logra_of_full_rank_is_the_layers_fisher(right: Right) -> None:
    total = torch.zeros(len(right.train), len(right.test), dtype=torch.float64)
    for names in matrices(right).values():
        part = right.places(names)
        a, b = right.train[:, part], right.test[:, part]
        fisher = a.T @ a / len(a) + DAMPING * torch.eye(len(part), dtype=torch.float64)
        total += a @ torch.linalg.solve(fisher, b.T)
    close(score(right.task, "logra", damping=DAMPING, rank=1000), total)


def test_grass_is_the_fisher_of_its_sketch(right: Right) -> None:
    size, task = len(right.flat), right.task
    sketch = draw_sparse(
        size, 7, task.seed, (task.setting, "grass", "projection"), torch.device("cpu")
    )
    dense = project(sketch, torch.eye(size, dtype=torch.float64))
    a, b = right.train @ dense, right.test @ dense
    fisher = a.T @ a / len(a) + DAMPING * torch.eye(7, dtype=torch.float64)
    found = score(task, "grass", damping=DAMPING, projection=7, blowup=1000)
    close(found, a @ torch.linalg.solve(fisher, b.T))


def test_factored_grass_is_that_of_each_layer(right: Right) -> None:
    task = right.task
    total = torch.zeros(len(right.train), len(right.test), dtype=torch.float64)
    for name, names in matrices(right).items():
        weight = right.state[names[0]].flatten(1)
        columns = [right.places(names[:1]).view(weight.shape)]
        columns += [right.places([bias])[:, None] for bias in names[1:]]
        part = torch.cat(columns, 1).flatten()
        identity = (task.setting, "factgrass", "projection", name)
        sketch = draw_sparse(len(part), 7, task.seed, identity, torch.device("cpu"))
        dense = project(sketch, torch.eye(len(part), dtype=torch.float64))
        a, b = right.train[:, part] @ dense, right.test[:, part] @ dense
        fisher = a.T @ a / len(a) + DAMPING * torch.eye(7, dtype=torch.float64)
        total += a @ torch.linalg.solve(fisher, b.T)
    found = score(task, "grass", damping=DAMPING, projection=7, blowup=10_000, factored=True)
    close(found, total)


@pytest.mark.parametrize("relative", [False, True])
def test_trak_in_all_dimensions(problem: Any, relative: bool) -> None:
    task = problem.task
    given = {"models": 2, "projection": 1, "projector": "identity", "relative": relative}
    if problem.margin is None:
        refused(task, "trak", "has none", **given)
        return
    total, doubt = torch.zeros(()), torch.zeros(())
    for run in task.half:
        at = Right(problem, run.final)
        x, y = (at.rows(part, problem.margin) for part in (task.train, task.test))
        kernel = torch.linalg.pinv(x, rtol=1e-10)  # K = X^+ X^+'
        products = x @ kernel @ kernel.T @ y.T
        if relative:
            products = products / (x @ kernel).square().sum(1).sqrt()[:, None]
        total = total + products / 2
        for i in range(len(x)):
            inputs, t = at.one(task.train, i)
            with torch.no_grad():
                odds = problem.margin(at.outputs(at.flat, inputs), t)
            share = at.scale() * problem.weight(t) / 2 / (1 + odds.exp())
            doubt = doubt + share * functional.one_hot(torch.tensor(i), len(x))
    expected = total if relative else total * doubt[:, None]
    close(score(task, "trak", **given), expected, 1e-6)


def test_what_is_about_classes(right: Right, request: pytest.FixtureRequest) -> None:
    task, name = right.task, request.node.callspec.params["problem"]
    if name in ("regression", "multi_label", "tokens"):
        refused(task, "label_match", "has none")
        refused(task, "knn_shapley", "has none", k=2)
    else:
        labels, own = task.train.targets, task.test.targets
        match = torch.tensor([[float(a == b) for b in own] for a in labels]).double()
        close(score(task, "label_match"), match)
        layer, k = LAST[name], 3
        features = [
            torch.stack([seen_by(at, f"{layer}.weight", i)[:-1] for i in range(len(part))])
            for at, part in ((right, task.train), (Right(swapped(right), right.state), task.test))
        ]
        near = torch.cdist(features[1], features[0]).argsort(1)
        close(score(task, "knn_shapley", k=k), shapley(near, match.T, k).T)
        cosine = functional.normalize(features[0]) @ functional.normalize(features[1]).T
        close(score(task, "feature_cosine"), cosine)
    if name not in ("residual", "named", "frozen"):
        for targets in ("model", "labels"):
            refused(task, "rps_l2", "plain cross-entropy", l2=0.1, targets=targets)


def swapped(right: Right) -> Any:
    return replace(right.problem, task=replace(right.task, train=right.task.test))


def shapley(near: Tensor, match: Tensor, k: int) -> Tensor:
    """Average what a sample adds to the vote over random orders of all; exact by all subsets."""
    n = near.shape[1]
    values = torch.zeros(near.shape, dtype=torch.float64)
    subsets = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    weight = torch.tensor(
        [1 / n / float(np.prod([(n - 1 - j) / (j + 1) for j in range(s)])) for s in range(n)],
        dtype=torch.float64,
    )
    for row, (order, hits) in enumerate(zip(near, match, strict=True)):
        there = subsets[:, order].double()
        votes = ((there.cumsum(1) <= k) * there * hits[order]).sum(1) / k
        for i in range(n):
            without = torch.nonzero(subsets[:, i] == 0)[:, 0]
            size = subsets[without].sum(1)
            gain = votes[without + (1 << i)] - votes[without]
            values[row, i] = (weight[size] * gain).sum()
    return values


@pytest.mark.parametrize("targets", ["model", "labels"])
@pytest.mark.parametrize("name", ["residual", "named", "frozen"])
def test_representers(make_problem: Callable[..., Any], name: str, targets: str) -> None:
    problem = make_problem(name)
    task, l2 = problem.task, 0.05
    right = Right(problem, task.full[0].final)
    there = Right(swapped(right), right.state)
    layer = f"{LAST[name]}.weight"
    f = functional.normalize(
        torch.stack([seen_by(right, layer, i)[:-1] for i in range(len(task.train))])
    )
    g = functional.normalize(
        torch.stack([seen_by(there, layer, i)[:-1] for i in range(len(task.test))])
    )
    with torch.no_grad():
        own = right.outputs(right.flat, task.train.inputs).softmax(1)
    goal = own if targets == "model" else functional.one_hot(task.train.targets, 3).double()
    weights = torch.zeros(3, f.shape[1], dtype=torch.float64, requires_grad=True)
    for _ in range(20_000):  # plain descent on a strongly convex problem
        loss = functional.cross_entropy(f @ weights.T, goal) + l2 * weights.square().sum()
        (slope,) = torch.autograd.grad(loss, weights)
        if float(slope.norm()) < 1e-12:
            break
        weights = (weights - slope).detach().requires_grad_()
    alpha = (goal - (f @ weights.T).softmax(1)) / (2 * l2 * len(f))
    expected = (alpha[:, task.test.targets] * (f @ g.T)).detach()
    close(score(task, "rps_l2", l2=l2, targets=targets), expected, 1e-7)
