from __future__ import annotations

from typing import Any

import numpy as np
import torch

from leaveout.attribution import if_cg, if_explicit
from leaveout.curvature.hessian import hessian


def test_it_tends_to_the_explicit_inverse(make_task: Any) -> None:
    task = make_task("linear")
    exact = torch.cat([*if_explicit.attribute(task, damping=0.01)])
    errors = [
        float(
            (torch.cat([*if_cg.attribute(task, damping=0.01, iterations=k)]) - exact).norm()
            / exact.norm()
        )
        for k in (1, 3, 10, 30, 60)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


def test_one_step_is_grad_dot_times_the_step_length(make_task: Any, gradients: Any) -> None:
    task = make_task("mlp")
    state = task.full[0].final
    g, h = (gradients(task, state, part) for part in (task.train, task.test))
    matrix = hessian(task.module, state, task.train).numpy()
    matrix = matrix + 0.5 * np.eye(len(matrix))
    lengths = [b @ b / (b @ matrix @ b) for b in h]
    found = torch.cat([*if_cg.attribute(task, damping=0.5, iterations=1)])
    np.testing.assert_allclose(found, g @ h.T * lengths, atol=1e-10)


def test_heavy_damping_is_grad_dot(task: Any, gradients: Any) -> None:
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    found = torch.cat([*if_cg.attribute(task, damping=1e8, iterations=10)])
    np.testing.assert_allclose(1e8 * found, g @ h.T, atol=1e-6 * np.abs(g @ h.T).max())


def test_many_iterations_stay_finite_in_float32(make_task: Any) -> None:
    for name in ("linear", "mlp", "cnn"):
        task = make_task(name, torch.float32)
        found = torch.cat([*if_cg.attribute(task, damping=1e-5, iterations=200)])
        assert found.isfinite().all()
        assert found.dtype == torch.float32


def test_gauss_newton_tends_to_its_own_inverse(make_task: Any) -> None:
    task, given = make_task("mlp"), {"damping": 0.01, "curvature": "gauss_newton"}
    exact = torch.cat([*if_explicit.attribute(task, **given)])
    found = torch.cat([*if_cg.attribute(task, iterations=200, **given)])
    torch.testing.assert_close(found, exact, atol=1e-5 * float(exact.abs().max()), rtol=0)
    other = torch.cat([*if_cg.attribute(task, damping=0.01, iterations=200)])
    assert (other - exact).norm() > 0.1 * exact.norm()
