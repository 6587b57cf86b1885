from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from leaveout.attribution.task import Task
from leaveout.attribution.trak import attribute, self_influence
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import n_parameters
from leaveout.gradients.projection import draw, project
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples

EXACT: dict[str, Any] = {"projection": 1, "projector": "identity"}


def run(task: Task, **params: Any) -> np.ndarray:
    return torch.cat([*attribute(task, **params)]).numpy()


def naive_margin(task: Task, state: dict[str, Tensor], part: Samples) -> tuple[Any, Any]:
    """Gradients of log(p / (1 - p)) as the paper writes it, one by one, and 1 - p."""
    rows, doubts = [], []
    for x, y in zip(part.inputs, part.targets, strict=True):
        named: dict[str, Any] = {
            n: state[n].clone().requires_grad_() for n, _ in task.module.named_parameters()
        }
        p = functional_call(task.module, {**state, **named}, (x[None],)).softmax(1)[0, y]
        found = torch.autograd.grad(torch.log(p / (1 - p)), list(named.values()))
        rows.append(np.concatenate([g.numpy().ravel() for g in found]))
        doubts.append(1 - p.item())
    return np.stack(rows), np.array(doubts)


def naive(task: Task, models: int, maps: list[np.ndarray] | None = None) -> np.ndarray:
    """The definition, with explicit (pseudo-)inverses."""
    kernels: list[np.ndarray] = []
    doubts: list[np.ndarray] = []
    for number, trajectory in enumerate(task.half[:models]):
        x, doubt = naive_margin(task, trajectory.final, task.train)
        t, _ = naive_margin(task, trajectory.final, task.test)
        if maps:
            x, t = x @ maps[number].T, t @ maps[number].T
        kernels.append(x @ np.linalg.pinv(x.T @ x, rcond=1e-11, hermitian=True) @ t.T)
        doubts.append(doubt)
    return np.mean(kernels, 0) * np.mean(doubts, 0)[:, None]  # type: ignore[no-any-return]


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("models", [1, 3])
def test_the_definition_where_there_are_more_parameters_than_samples(
    task: Task, models: int
) -> None:
    assert n_parameters(task.module) > len(task.train.ids)  # X'X is singular, then
    close(run(task, models=models, **EXACT), naive(task, models))


def test_the_definition_where_the_inverse_exists(make_task: Any) -> None:
    # a linear model's deltas add up to zero: X'X has rank 2/3 of 51 at most, and is singular still;
    # through 8 numbers it is not
    task = make_task("linear", n_train=60)
    for kind in ("rademacher", "sparse"):
        maps = []
        for model in range(2):
            identity = (task.setting, "trak", "projection", model, 0)
            of = draw(kind, 51, 8, task.seed, identity, torch.device("cpu"))
            maps.append(project(of, torch.eye(51, dtype=torch.float64)).T.numpy())
        found = run(task, models=2, projection=8, projector=kind)
        close(found, naive(task, 2, maps))
        assert not np.allclose(maps[0], maps[1])  # each model has its own
    close(run(task, models=2, **EXACT), naive(task, 2))


def test_more_numbers_than_samples_are_the_pseudo_inverse(make_task: Any) -> None:
    task = make_task("mlp")
    identity = (task.setting, "trak", "projection", 0, 0)
    size = n_parameters(task.module)
    of = draw("sparse", size, 40, task.seed, identity, torch.device("cpu"))
    maps = [project(of, torch.eye(size, dtype=torch.float64)).T.numpy()]
    assert len(task.train.ids) < 40
    close(run(task, models=1, projection=40), naive(task, 1, maps))


def test_margins_stay_finite_where_probabilities_do_not() -> None:
    outputs = torch.tensor([[200.0, 0, -3], [-200, 0, 1], [0.3, 0.1, -0.5]])
    labels = torch.tensor([0, 0, 2])
    exact = outputs.double()
    expected = exact[[0, 1, 2], labels] - torch.stack(
        [torch.logsumexp(row[[c for c in range(3) if c != y]], 0) for row, y in zip(exact, labels)]  # noqa: B905
    )
    torch.testing.assert_close(
        CROSS_ENTROPY.margin(outputs, labels).double(), expected, atol=1e-4, rtol=0
    )
    found = vmap(grad(lambda o, y: CROSS_ENTROPY.margin(o[None], y[None])[0]))(outputs, labels)
    others = torch.tensor([[0, 3.0], [0, 1], [0.3, 0.1]])
    others[0, 1] = -3
    soft = others.softmax(1)
    torch.testing.assert_close(found[0], torch.tensor([1, -soft[0, 0], -soft[0, 1]]))
    torch.testing.assert_close(found[1], torch.tensor([1, -soft[1, 0], -soft[1, 1]]))
    torch.testing.assert_close(found[2], torch.tensor([-soft[2, 0], -soft[2, 1], 1]))


def test_saturated_samples_count_as_any(make_task: Any) -> None:
    task = make_task("linear", dtype=torch.float32)
    sure = []
    for trajectory in task.half:
        states = [{k: 300 * v for k, v in state.items()} for state in trajectory.states]
        sure.append(replace(trajectory, states=states))
    outputs = functional_call(task.module, sure[0].final, (task.train.inputs,))
    assert float(outputs.softmax(1).max()) == 1
    assert float(outputs.abs().max()) > 200
    found = run(replace(task, half=sure), models=2, projection=6)
    assert np.isfinite(found).all()
    # 1 - p of a sample that is wrong is 1: it has its score; of one that is right it is nearly 0
    wrong = (outputs.argmax(1) != task.train.targets).numpy()
    assert wrong.any()
    assert np.abs(found[wrong]).max() > 1e-3
    exact = run(
        replace(
            make_task("linear"),
            half=[
                replace(t, states=[{k: v.double() for k, v in s.items()} for s in t.states])
                for t in sure
            ],
        ),
        models=2,
        projection=6,
    )
    close(found, exact, 1e-3)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("masks", [0, 2])
def test_self_influence_is_the_diagonal(make_task: Any, relative: bool, masks: int) -> None:
    task = make_task("mlp")
    params = {"models": 2, "projection": 9, "masks": masks, "relative": relative}
    whole = run(replace(task, test=task.train), **params)
    found = self_influence(task, **params)
    assert found.std() > 0
    close(found.numpy(), whole.diagonal())


def test_relative_divides_by_the_norm_of_the_loss_gradient(task: Task) -> None:
    params = {"models": 1, "projection": 9}
    plain, own = run(task, **params), self_influence(task, **params).numpy()
    _, doubt = naive_margin(task, task.half[0].final, task.train)
    # |(1 - p) x|^2 in the kernel is (1 - p) times the self-influence (1 - p) x' K x
    close(run(task, **params, relative=True), plain / np.sqrt(own * doubt)[:, None])


def test_masks_are_other_models_the_same_for_every_sample(make_task: Any) -> None:
    task = make_task("mlp")
    one, two = (run(task, models=1, masks=masks, projection=9) for masks in (1, 2))
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(one - run(task, models=1, projection=9)).max() > 1e-3
    half = task.test[3:]
    close(run(replace(task, test=half), models=1, masks=2, projection=9), two[:, 3:])


@pytest.mark.parametrize("name", ["linear", "cnn"])
def test_a_model_without_dropout_has_no_masks(make_task: Any, name: str) -> None:
    with pytest.raises(NotComputableError, match="the model has no dropout") as caught:
        run(make_task(name), models=1, projection=4, masks=1)
    assert caught.value.reason == "undefined"


def test_projections_that_are_wide_come_near_the_exact_scores(make_task: Any) -> None:
    task = make_task("linear", n_train=60)
    exact = run(task, models=1, **EXACT)
    narrow, wide = (
        np.corrcoef(run(task, models=1, projection=k).ravel(), exact.ravel())[0, 1]
        for k in (5, 400)
    )
    assert wide > 0.95 > narrow


@pytest.mark.parametrize("models", [0, 4])
def test_more_models_than_there_are(task: Task, models: int) -> None:
    with pytest.raises(LeaveoutError, match=rf"trak.models: {models} .* 3 half models; lower"):
        run(task, models=models, projection=4)


def test_memory_is_asked_for_first(make_task: Any) -> None:
    task = replace(make_task("linear"), memory=1000)
    with pytest.raises(NotComputableError) as caught:
        run(task, models=1, projection=512)
    assert caught.value.reason == "memory"


def test_a_diverged_model_gives_no_numbers(make_task: Any) -> None:
    task = make_task("linear")
    bad = [replace(t, states=[{k: v * torch.inf for k, v in t.final.items()}]) for t in task.half]
    assert np.isnan(run(replace(task, half=bad), models=1, projection=4)).all()
