from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from leaveout.attribution import if_explicit
from leaveout.attribution.if_explicit import attribute
from leaveout.curvature.hessian import hessian
from leaveout.errors import LeaveoutError, NotComputableError


def closed_form(task: Any, damping: float) -> np.ndarray:
    """Softmax regression by hand: g = (p - y) kron x, H = mean of (diag p - p p') kron x x'."""
    state = task.full[0].final
    weight, bias = (state[f"linear.{name}"].double().numpy() for name in ("weight", "bias"))

    def parts(samples: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = samples.inputs.double().flatten(1).numpy()
        p = softmax(x @ weight.T + bias, axis=1)
        x = np.c_[x, np.ones(len(x))]
        d = p - np.eye(len(bias))[samples.targets]
        return x, p, np.stack([np.kron(a, b) for a, b in zip(d, x, strict=True)])

    x, p, g = parts(task.train)
    _, _, h = parts(task.test)
    hessian = np.mean(
        [np.kron(np.diag(q) - np.outer(q, q), np.outer(z, z)) for q, z in zip(p, x, strict=True)],
        axis=0,
    )
    return g @ np.linalg.inv(hessian + damping * np.eye(len(hessian))) @ h.T


@pytest.mark.parametrize("damping", [1, 1e-2, 1e-5])
def test_softmax_regression_in_closed_form(make_task: Any, damping: float) -> None:
    task = make_task("linear")
    expected = closed_form(task, damping)
    # condition numbers up to 1e6: relative to the largest score
    np.testing.assert_allclose(
        torch.cat([*attribute(task, damping=damping)]), expected, atol=1e-8 * np.abs(expected).max()
    )


def test_float32_tasks_are_solved_in_float64(make_task: Any) -> None:
    task = make_task("linear", torch.float32)
    found, expected = torch.cat([*attribute(task, damping=1e-3)]), closed_form(task, 1e-3)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("damping", [1, 1e-3])
def test_any_model_against_finite_differences(task: Any, gradients: Any, damping: float) -> None:
    """H by central differences of the mean gradient; at .001 a deep model's H is indefinite."""
    state = dict(task.full[0].final)
    names = [n for n, _ in task.module.named_parameters()]
    flat = torch.cat([state[n].flatten() for n in names])

    def at(vector: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = vector.split([state[n].numel() for n in names])
        return {**state, **{n: v.view_as(state[n]) for n, v in zip(names, parts, strict=True)}}

    inputs, labels = task.train.inputs, task.train.targets

    def mean_gradient(vector: torch.Tensor) -> np.ndarray:
        named = {n: v.clone().requires_grad_() for n, v in at(vector).items() if n in names}
        outputs = torch.func.functional_call(task.module, {**state, **named}, (inputs,))
        loss = torch.nn.functional.cross_entropy(outputs, labels)
        found = torch.autograd.grad(loss, [named[n] for n in names])
        return np.concatenate([g.numpy().ravel() for g in found])

    step = 1e-5
    rows = []
    for unit in torch.eye(len(flat), dtype=torch.float64):
        ahead, behind = mean_gradient(flat + step * unit), mean_gradient(flat - step * unit)
        rows.append((ahead - behind) / (2 * step))
    hessian = np.stack(rows)
    hessian = (hessian + hessian.T) / 2 + damping * np.eye(len(rows))
    g, h = (gradients(task, state, part) for part in (task.train, task.test))
    expected = g @ np.linalg.solve(hessian, h.T)
    # differences are good to 1e-9 or so, the condition number is up to 1e4
    np.testing.assert_allclose(
        torch.cat([*attribute(task, damping=damping)]), expected, atol=1e-4 * np.abs(expected).max()
    )


def test_gauss_newton_is_another_matrix_for_a_deep_model_only(task: Any, gradients: Any) -> None:
    state, damping = task.full[0].final, 0.3
    found = torch.cat([*attribute(task, damping=damping, curvature="gauss_newton")])
    matrix = hessian(task.module, state, task.train, "gauss_newton").numpy()
    g, h = (gradients(task, state, part) for part in (task.train, task.test))
    expected = g @ np.linalg.inv(matrix + damping * np.eye(len(matrix))) @ h.T
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    other = torch.cat([*attribute(task, damping=damping)])
    linear = len(list(task.module.parameters())) == 2
    assert torch.allclose(found, other, atol=1e-12) == linear


def test_a_matrix_that_does_not_fit_is_refused_before_it_is_made(
    make_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("linear")

    def never(*_: Any) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(if_explicit, "hessian", never)
    exact = 2 * 8 * 51**2  # itself and a second one, in float64
    with pytest.raises(NotComputableError, match=r"the hessian of 51\^2 numbers") as error:
        next(iter(attribute(replace(task, memory=exact - 1), damping=0.1)))
    assert error.value.reason == "memory"
    with pytest.raises(AssertionError, match="made"):
        next(iter(attribute(replace(task, memory=exact), damping=0.1)))


def test_a_singular_matrix_is_undefined(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("linear")
    monkeypatch.setattr(if_explicit, "hessian", lambda *_: torch.zeros(51, 51).double())
    with pytest.raises(NotComputableError, match="damping = 0 is singular") as error:
        next(iter(attribute(task, damping=0.0)))
    assert error.value.reason == "undefined"


def test_a_wrong_curvature_is_answered_with_the_nearest(make_task: Any) -> None:
    with pytest.raises(LeaveoutError, match="'gauss-newton' is unknown; did you mean 'gauss_new"):
        next(iter(attribute(make_task("linear"), damping=0.1, curvature="gauss-newton")))
