from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from leaveout.attribution import source
from leaveout.attribution.if_explicit import attribute as if_explicit
from leaveout.attribution.if_kfac import fisher_samples
from leaveout.attribution.source import Scale, Segment, segment_vectors
from leaveout.attribution.task import Task
from leaveout.config import Recipe
from leaveout.curvature.ekfac import ekfac
from leaveout.errors import LeaveoutError, NotComputableError

P, N, TESTS = 6, 11, 4
RECIPE = Recipe(learning_rate=0.2, epochs=6, batch_size=6)  # that of make_task


def matrix(seed: int, singular: bool = False) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((P, 3 if singular else 2 * P))
    return draw @ draw.T / P


def segment(curvature: np.ndarray, span: float) -> Segment:
    values, basis = torch.linalg.eigh(torch.from_numpy(curvature))

    def apply(vectors: Tensor, scale: Scale) -> Tensor:
        return (vectors @ basis * scale(values)) @ basis.T

    return Segment([], span, apply)


def unrolled(
    stages: list[tuple[np.ndarray, np.ndarray]], steps: int, rate: float, decay: float
) -> np.ndarray:
    """Gradient descent on quadratics, stage by stage, differentiated step by step.

    The mean loss of a stage is w'Hw/2, of which one of N samples has a linear part g'w more; what
    it moves obeys d <- (I - rate (H + decay)) d + rate g / N once it is left out.
    """
    moved = np.zeros(P)
    for curvature, gradient in stages:
        for _ in range(steps):
            moved = moved - rate * (curvature @ moved + decay * moved) + rate * gradient / N
    return moved


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 3])
def test_it_tends_to_the_exact_derivative_as_steps_get_shorter(count: int, decay: float) -> None:
    rng = np.random.default_rng(5)
    stages = [(matrix(k, singular=k == 1), rng.standard_normal(P)) for k in range(count)]
    right = rng.standard_normal((TESTS, P))
    span, errors = 1.7, []
    parts = [segment(curvature, span) for curvature, _ in stages]
    vectors = segment_vectors(parts, torch.from_numpy(right), N, decay)
    found = sum(v.numpy() @ g for v, (_, g) in zip(vectors, stages, strict=True))
    for steps in (100, 1000, 10000):
        exact = right @ unrolled(stages, steps, span / steps, decay)
        errors.append(np.abs(found - exact).max() / np.abs(exact).max())
    # the flow differs from steps of length h by O(h)
    assert errors[2] < 1e-3
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.1)
    np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.1)


def test_where_the_curvature_is_flat_every_step_adds_the_gradient() -> None:
    parts = [segment(np.zeros((P, P)), 2.0), segment(np.zeros((P, P)), 3.0)]
    right = torch.from_numpy(np.random.default_rng(0).standard_normal((TESTS, P)))
    first, second = segment_vectors(parts, right, N, 0.0)
    torch.testing.assert_close(first, right * 2 / N)
    torch.testing.assert_close(second, right * 3 / N)


def test_a_long_segment_is_the_influence_function() -> None:
    curvature = matrix(0)
    right = np.random.default_rng(0).standard_normal((TESTS, P))
    (found,) = segment_vectors([segment(curvature, 1e6)], torch.from_numpy(right), N, 0.0)
    np.testing.assert_allclose(found, np.linalg.solve(N * curvature, right.T).T)


def dense(task: Task, states: list[Any]) -> np.ndarray:
    """EK-FAC of all these states, as one matrix: of the samples of each, taken for one set."""
    one = fisher_samples(task, "true")
    calls = [
        fisher_samples(replace(task, full=[replace(task.full[0], states=[s])]), "true")
        for s in states
    ]

    def outputs(model: Any, batch: Any, start: int) -> Any:
        return calls[batch[0]].outputs(model, batch[1], start)

    batches = [(k, one) for one in task.train.split(1) for k in range(len(states))]
    curvature = ekfac(replace(one, batches=batches, outputs=outputs))
    parameters = sum(p.numel() for p in task.module.parameters())
    return curvature.multiply(torch.eye(parameters, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_it_is_the_formula_written_out(
    make_task: Any, gradients: Any, segments: int, momentum: float
) -> None:
    recipe = RECIPE.model_copy(update={"momentum": momentum, "weight_decay": 0.01})
    task = replace(make_task("mlp"), recipe=recipe)
    run, n = task.full[0], len(task.train.ids)
    right = gradients(task, run.final, task.test)
    of = {1: [[0, 1, 2]], 2: [[0], [1, 2]], 3: [[0], [1], [2]]}[segments]
    if segments == 2:  # epochs 2, 4 and 6 of 6: the first half ends after the third
        assert tuple(run.epochs) == (2, 4, 6)
    expected, after = np.zeros((n, len(right))), np.eye(right.shape[1])
    for mine in reversed(of):
        states = [run.states[k] for k in mine]
        curvature = dense(task, states) + 0.01 * np.eye(right.shape[1])
        steps = 6 * -(-n // 6) / segments
        span = steps * np.mean([run.learning_rates[k] for k in mine]) / (1 - momentum)
        mean = np.mean([gradients(task, s, task.train) for s in states], axis=0)
        decayed = expm(-span * curvature)
        response = np.linalg.solve(curvature, np.eye(len(decayed)) - decayed) / n
        expected += mean @ response @ after @ right.T
        after = decayed @ after
    found = torch.cat([*source.attribute(task, segments=segments)]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("keys", [{"epochs": 6}, {"iterations": 30}])
def test_rates_are_the_mean_over_the_steps_of_a_segment(
    make_task: Any, monkeypatch: pytest.MonkeyPatch, keys: dict[str, int]
) -> None:
    """A warm-up and a cosine, written out; not the rates at the checkpoints."""
    values = {"learning_rate": 0.2, "batch_size": 6, "schedule": "cosine", "warmup": 3, **keys}
    task = replace(make_task("linear"), recipe=Recipe.model_validate(values))
    n = len(task.train.ids)
    steps = keys.get("iterations", 6 * -(-n // 6))
    run = task.full[0]
    if "iterations" in keys:
        run = replace(run, epochs=[10, 20, 30])
    task = replace(task, full=[replace(run, learning_rates=[7.0, 8.0, 9.0])])
    cosine = (1 + np.cos(np.pi * np.arange(steps - 3) / (steps - 3))) / 2
    rates = np.concatenate([0.2 * np.array([1, 2, 3]) / 4, 0.2 * cosine])
    spans: list[float] = []

    def seen(parts: Any, right: Tensor, *others: Any) -> Any:
        spans.extend(part.span for part in parts)
        return segment_vectors(parts, right, *others)

    monkeypatch.setattr(source, "segment_vectors", seen)
    torch.cat([*source.attribute(task, segments=3)])
    cuts = [steps * k // 3 for k in range(4)]
    expected = [rates[a:b].mean() * steps / 3 for a, b in pairwise(cuts)]
    np.testing.assert_allclose(spans, expected)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"optimizer": "adamw"}, "adamw scales each parameter's gradient"),
        ({"optimizer": "adam"}, "adam scales each parameter's gradient"),
        ({"clip": 1.0}, "clipped steps are shorter"),
        ({"weight_decay": 0.1, "decay": "matrices"}, "some parameters decay and others do not"),
    ],
)
def test_steps_that_are_no_flow_of_the_gradient(
    make_task: Any, keys: dict[str, Any], reason: str
) -> None:
    task = replace(make_task("linear"), recipe=RECIPE.model_copy(update=keys))
    with pytest.raises(NotComputableError, match=f"^undefined: .*{reason}"):
        next(source.attribute(task, segments=1))


def test_one_long_segment_of_the_final_model_is_the_influence_function_over_n(
    make_task: Any, gradients: Any
) -> None:
    task = make_task("linear")
    last = replace(task.full[0], states=[task.full[0].final], epochs=[6], learning_rates=[1e3])
    recipe = RECIPE.model_copy(update={"weight_decay": 0.05})
    task = replace(task, full=[last], recipe=recipe)
    found = torch.cat([*source.attribute(task, segments=1)]).numpy()
    g, h = (gradients(task, last.final, part) for part in (task.train, task.test))
    inverse = np.linalg.inv(dense(task, [last.final]) + 0.05 * np.eye(g.shape[1]))
    np.testing.assert_allclose(found, g @ inverse @ h.T / len(g), rtol=1e-6)
    # and near the exact one: for one layer the Gauss-Newton matrix is the Hessian
    exact = torch.cat([*if_explicit(task, damping=0.05)]).numpy() / len(g)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9


def test_a_segment_without_a_checkpoint_has_no_score(make_task: Any) -> None:
    """A row of the table says so, and the table stands."""
    task = make_task("linear")
    with pytest.raises(NotComputableError, match=r"3 checkpoints none falls into segment . of 4"):
        torch.cat([*source.attribute(task, segments=4)])
    with pytest.raises(LeaveoutError, match="segments = 0"):
        torch.cat([*source.attribute(task, segments=0)])


def test_memory_is_asked_for_before_it_is_taken(make_task: Any) -> None:
    task = replace(make_task("linear"), memory=100)
    with pytest.raises(
        NotComputableError, match="one test sample's 9 vectors of all parameters would take"
    ):
        next(source.attribute(task, segments=3))


def test_blocks_are_no_matter(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("cnn")
    whole = torch.cat([*source.attribute(task, segments=3)])
    monkeypatch.setattr("leaveout.attribution.task.BLOCK_BYTES", 300)
    blocks = [*source.attribute(task, segments=3)]
    assert len(blocks) > 3
    torch.testing.assert_close(torch.cat(blocks), whole, rtol=1e-9, atol=1e-12)
