from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution import if_arnoldi, if_explicit
from leaveout.attribution.if_arnoldi import attribute
from leaveout.curvature.hessian import hessian
from leaveout.errors import LeaveoutError, NotComputableError


def scores(task: Any, **given: Any) -> torch.Tensor:
    return torch.cat([*attribute(task, **given)])


def matrix(task: Any, kind: str = "hessian") -> np.ndarray:
    state = task.full[0].final
    return hessian(task.module, state, task.train, kind).numpy()


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_in_the_whole_krylov_space_it_is_the_explicit_inverse(task: Any, curvature: str) -> None:
    """The gradients of training samples have no part outside it that H does not map to 0."""
    exact = torch.cat([*if_explicit.attribute(task, damping=0.3, curvature=curvature)])
    found = scores(task, damping=0.3, iterations=1000, projections=1000, curvature=curvature)
    torch.testing.assert_close(found, exact, atol=1e-6 * float(exact.abs().max()), rtol=0)


def test_negative_eigenvalues_count_with_their_sign(make_task: Any, gradients: Any) -> None:
    task = make_task("mlp")
    state = task.full[0].final
    values, vectors = np.linalg.eigh(matrix(task))
    assert values[0] < -0.01
    kept = np.abs(values).argsort()[::-1][: (np.abs(values) >= -values[0]).sum()]
    assert values[kept[-1]] == values[0]  # the last one kept is the most negative
    g, h = (gradients(task, state, part) @ vectors[:, kept] for part in (task.train, task.test))
    damping = -0.5 * values[0]  # the sum is still negative
    found = scores(task, damping=damping, iterations=500, projections=len(kept))
    expected = (g / (values[kept] + damping)) @ h.T
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_fewer_projections_leave_out_the_smaller_eigenvalues(
    make_task: Any, gradients: Any
) -> None:
    task = make_task("linear")
    values, vectors = np.linalg.eigh(matrix(task))
    lead = vectors[:, -3:]
    g, h = (gradients(task, task.full[0].final, p) @ lead for p in (task.train, task.test))
    found = scores(task, damping=0.01, iterations=40, projections=3)
    expected = (g / (values[-3:] + 0.01)) @ h.T
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_float32_without_damping_stays_finite_in_a_singular_space(make_task: Any) -> None:
    for name in ("linear", "mlp", "cnn"):
        task = make_task(name, torch.float32)
        found = scores(task, damping=0.0, iterations=300)
        assert found.isfinite().all()
        assert found.dtype == torch.float32


def test_the_start_is_the_settings_and_does_not_matter_once_converged(make_task: Any) -> None:
    task = make_task("mlp")
    one, other = (
        [scores(t, damping=0.1, iterations=40, projections=3), scores(t, damping=0.1, iterations=9)]
        for t in (task, replace(task, seed=5))
    )
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(one[1], other[1], rtol=1e-2)
    assert torch.equal(one[1], scores(task, damping=0.1, iterations=9))


def test_the_products_are_those_of_the_scores(task: Any, gradients: Any) -> None:
    g, h = (gradients(task, task.full[0].final, p) for p in (task.train, task.test))
    given = {"damping": 0.1, "iterations": 9, "projections": 5}
    solved = if_arnoldi.inverse(task, **given)(torch.from_numpy(h))
    np.testing.assert_allclose(scores(task, **given), g @ solved.numpy().T, atol=1e-10)


def test_what_makes_no_sense_or_does_not_fit_is_an_error(make_task: Any) -> None:
    task = make_task("linear")
    with pytest.raises(LeaveoutError, match=r"iterations = 0.* must be positive"):
        scores(task, damping=0.1, iterations=0)
    with pytest.raises(NotComputableError, match="a Krylov space of 51 x 51 numbers") as error:
        scores(replace(task, memory=1000), damping=0.1, iterations=100)
    assert error.value.reason == "memory"
