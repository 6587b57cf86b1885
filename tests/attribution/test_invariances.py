"""What every method of config/methods.yaml must hold to, whatever it computes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Method, load_methods
from leaveout.errors import NotComputableError
from leaveout.problem.samples import Samples
from leaveout.scoring.self_influence import self_influence

METHODS = load_methods(Path(__file__).parents[2] / "config" / "methods.yaml")
# Sizes that fit a handful of samples and parameters.
SMALL = {"runs": 2, "models": 2, "projection": 8, "depth": 5, "batch": 8, "iterations": 5}
# Their scores depend on which steps saw a sample, and so on where it stands.
BY_POSITION = {"random", "magic", "dvemb"}
# They do not look at labels, or (RPS-L2) need not.
BLIND = {"random", "feature_cosine", "rps_l2"}


def middle(method: Method) -> dict[str, Any]:
    """Return the grid point in the middle, small enough for these tasks."""
    point = method.grid[len(method.grid) // 2]
    return {key: min(value, SMALL.get(key, value)) for key, value in point.items()}  # type: ignore[type-var]


def score(method: Method, task: Task) -> Tensor:
    """Score by the grid point in the middle; skip what is not defined for the model."""
    try:
        found = importlib.import_module(method.module).attribute(task, **middle(method))
        return found if isinstance(found, Tensor) else torch.cat([*found])
    except NotComputableError as error:
        if error.reason != "undefined":  # hardly any memory and time are needed here
            raise
        pytest.skip(str(error))


KNOWN: dict[tuple[str, int, bool], Tensor] = {}


def usual(method: Method, task: Task, on_train: bool = False) -> Tensor:
    """Return the scores of a task as it is, or on its training samples, which are computed once.

    That they are the same each time is a test of its own; tasks live as long as the tests.
    """
    key = (method.name, id(task), on_train)
    if key not in KNOWN:
        KNOWN[key] = score(method, replace(task, test=task.train) if on_train else task)
    return KNOWN[key]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def chosen(part: Samples, rows: Any) -> Samples:
    return part[rows]


def with_train(task: Task, train: Samples, origin: Tensor) -> Task:
    """Replace the training samples; ``origin`` says which of the old ones each is, or is like."""

    def again(found: Trajectory) -> Trajectory:
        return replace(found, trained_on=found.trained_on[origin])

    return replace(task, train=train, full=[*map(again, task.full)], half=[*map(again, task.half)])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare relative to the largest score, as methods differ in scale by many orders."""
    assert found.isfinite().all()
    assert expected.isfinite().all()
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_it_scores_every_pair_and_not_all_alike(method: Method, task: Task) -> None:
    found = usual(method, task)
    assert found.shape == (len(task.train.ids), len(task.test.ids))
    assert found.isfinite().all()
    assert found.std() > 0


def test_it_gives_the_same_twice_and_leaves_everything_as_it_was(
    method: Method, task: Task
) -> None:
    def everything() -> Iterator[Tensor]:
        for part in (task.train, task.test):
            yield from (part.inputs, part.targets)
        yield from task.module.state_dict().values()
        for trajectory in (*task.full, *task.half):
            for state in trajectory.states:
                yield from state.values()
        yield torch.get_rng_state()

    first = usual(method, task)
    before = [value.clone() for value in everything()]
    assert torch.equal(score(method, task), first)
    for value, was in zip(everything(), before, strict=True):
        assert torch.equal(value, was)
    assert not task.module.training
    assert not any(p.requires_grad for p in task.module.parameters())
    assert not any(len(m._forward_hooks) for m in task.module.modules())


def test_the_order_of_test_samples_is_nothing(method: Method, task: Task) -> None:
    order = torch.randperm(len(task.test.ids), generator=torch.Generator().manual_seed(0))
    if method.module.endswith("random"):
        pytest.skip("drawn by position")
    found = score(method, replace(task, test=chosen(task.test, order)))
    close(found, usual(method, task)[:, order], 1e-9)


def test_the_order_of_training_samples_is_nothing(method: Method, task: Task) -> None:
    if method.module.rpartition(".")[2] in BY_POSITION:
        pytest.skip("a sample's place decides which steps see it")
    order = torch.randperm(len(task.train.ids), generator=torch.Generator().manual_seed(0))
    found = score(method, with_train(task, chosen(task.train, order), order))
    close(found, usual(method, task)[order], 1e-9)


def test_a_sample_that_is_there_twice_scores_alike(method: Method, task: Task) -> None:
    if method.module.rpartition(".")[2] in BY_POSITION:
        pytest.skip("a sample's place decides which steps see it")
    origin = torch.cat([torch.arange(len(task.train.ids)), torch.tensor([5])])
    train = chosen(task.train, origin)
    train.ids[-1] = 1000
    found = score(method, with_train(task, train, origin))
    close(found[-1], found[5], 1e-9)


def test_the_size_of_chunks_is_nothing(
    method: Method, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2000  # a few gradients
    expected = usual(method, task)
    for module in ("gradients.per_sample", "curvature.hvp"):
        monkeypatch.setattr(f"leaveout.{module}.CHUNK_BYTES", size)
    if method.module.rpartition(".")[2] != "random":
        monkeypatch.setattr("leaveout.attribution.task.BLOCK_BYTES", size)
    close(score(method, task), expected, 1e-9)


def test_single_precision_is_enough(method: Method, make_task: Any) -> None:
    for name in ("linear", "mlp"):
        exact = usual(method, make_task(name, torch.float64))
        found = score(method, make_task(name, torch.float32))
        assert found.dtype == torch.float32
        close(found.double(), exact.double(), 1e-3)


def test_a_test_sample_s_twin_helps_it_and_its_mislabelled_twin_does_not(
    method: Method, make_task: Any
) -> None:
    if method.module.rpartition(".")[2] in BY_POSITION | BLIND:
        pytest.skip("it does not look at labels")
    task = make_task("linear")
    train, test = task.train, task.test
    n, wrong = len(test.ids), (test.targets + 1) % 3
    samples = Samples(
        torch.cat([train.inputs, test.inputs, test.inputs]),
        torch.cat([train.targets, test.targets, wrong]),
        train.objective,
        torch.arange(len(train.ids) + 2 * n).numpy(),
    )
    origin = torch.zeros(len(samples.ids), dtype=torch.long)
    origin[: len(train.ids)] = torch.arange(len(train.ids))
    found = score(method, with_train(task, samples, origin))
    helps, harms = found[len(train.ids) : -n].diagonal(), found[-n:].diagonal()
    assert (helps > 0).all()
    assert (helps > harms).all()


@pytest.mark.parametrize("size", [7, 24])
def test_self_influence_is_the_diagonal(
    method: Method, task: Task, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read off blocks, or by the method's own function: score[i, i], each sample being tested."""
    if method.name == "random":
        return  # draws for the pairs there are, others for others
    expected = usual(method, task, on_train=True).diagonal()
    module = importlib.import_module(method.module)
    monkeypatch.setattr("leaveout.scoring.self_influence.block_size", lambda *_: size)
    found = torch.from_numpy(self_influence(module, task, middle(method), []))
    close(found.to(expected), expected, 1e-5)  # stored in float32
