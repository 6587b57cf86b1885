from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution import if_explicit
from leaveout.attribution.if_lissa import attribute, inverse
from leaveout.curvature.hessian import hessian
from leaveout.errors import LeaveoutError, NotComputableError


def scores(task: Any, **given: Any) -> torch.Tensor:
    return torch.cat([*attribute(task, **given)])


def test_with_all_samples_a_step_it_tends_to_the_explicit_inverse(make_task: Any) -> None:
    task = make_task("linear")
    exact = torch.cat([*if_explicit.attribute(task, damping=0.2)])
    errors = [
        float(
            (scores(task, depth=d, batch=1000, scaling=5.0, damping=0.2) - exact).norm()
            / exact.norm()
        )
        for d in (1, 10, 100, 600)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-10  # (1 - .2 / 5)^600 is 2e-11


def test_the_limit_does_not_depend_on_the_scaling(make_task: Any) -> None:
    """Where the damping is not divided by the scaling, it is multiplied by it in the limit."""
    task = make_task("linear")
    one, other = (
        scores(task, depth=30 * s, batch=1000, scaling=float(s), damping=1.0) for s in (5, 15)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_mini_batches_are_right_in_the_mean(make_task: Any) -> None:
    """One step is linear in the curvature of its batch, whose mean is that of all samples."""
    task = make_task("mlp")
    v = torch.eye(sum(p.numel() for p in task.module.parameters()), dtype=torch.float64)[:5]
    matrix = hessian(task.module, task.full[0].final, task.train)
    expected = (2 * v - v @ matrix / 3) / 3
    draws = torch.stack(
        [inverse(replace(task, seed=seed), depth=1, batch=6, scaling=3.0)(v) for seed in range(144)]
    )
    errors = (draws.mean(0) - expected) / (draws.std(0) / 12).clamp_min(1e-12)
    assert draws.std(0).max() > 1e-3
    assert errors.abs().max() < 5  # standard errors, of some 900 numbers
    assert errors.std() < 1.5


def test_all_test_samples_see_the_same_mini_batches(make_task: Any) -> None:
    task = make_task("mlp")
    given = {"depth": 20, "batch": 5, "scaling": 10.0}
    every = scores(task, **given)
    part = task.test[3:5]
    torch.testing.assert_close(scores(replace(task, test=part), **given), every[:, 3:5])


def test_mini_batches_are_drawn_by_id(make_task: Any) -> None:
    task = make_task("mlp")
    order = np.random.default_rng(0).permutation(len(task.train.ids))
    moved = task.train[order]
    given = {"depth": 20, "batch": 5, "scaling": 10.0}
    every = scores(task, **given)
    torch.testing.assert_close(scores(replace(task, train=moved), **given), every[order])
    assert not torch.allclose(scores(replace(task, seed=1), **given), every)


def test_too_small_a_scaling_is_undefined_and_never_nan(make_task: Any) -> None:
    task = make_task("linear", torch.float32)
    for depth in (50, 500):
        with pytest.raises(NotComputableError, match="diverges") as error:
            scores(task, depth=depth, batch=10, scaling=0.02)
        assert error.value.reason == "undefined"


@pytest.mark.parametrize("key", ["depth", "batch", "scaling"])
def test_what_makes_no_sense_is_an_error(make_task: Any, key: str) -> None:
    with pytest.raises(LeaveoutError, match=f"if_lissa: .*{key} = 0.* must be positive"):
        scores(make_task("linear"), **{key: 0})


def test_gauss_newton_converges_for_a_deep_model(make_task: Any) -> None:
    task = make_task("mlp")
    given = {"damping": 0.2, "curvature": "gauss_newton"}
    exact = torch.cat([*if_explicit.attribute(task, **given)])
    found = scores(task, depth=1000, batch=1000, scaling=5.0, **given)
    torch.testing.assert_close(found, exact, atol=1e-8 * float(exact.abs().max()), rtol=0)
