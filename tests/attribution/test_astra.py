from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution import astra, if_ekfac
from leaveout.curvature.kinds import curvature_products
from leaveout.errors import LeaveoutError, NotComputableError


def exact(task: Any, vectors: np.ndarray, damping: float, kind: str) -> np.ndarray:
    size = vectors.shape[1]
    product = curvature_products(kind, task.module, task.full[0].final, task.train)
    matrix = product(torch.eye(size, dtype=torch.float64)).numpy() + damping * np.eye(size)
    return np.linalg.solve((matrix + matrix.T) / 2, vectors.T).T


# the Hessians of these models have eigenvalues down to -1
@pytest.mark.parametrize(("kind", "damping"), [("gauss_newton", 0.3), ("hessian", 1.5)])
def test_it_tends_to_the_inverse(task: Any, gradients: Any, kind: str, damping: float) -> None:
    h = gradients(task, task.full[0].final, task.test)
    expected = exact(task, h, damping, kind)

    def after(iterations: int) -> float:
        found = astra.inverse(task, damping=damping, iterations=iterations, curvature=kind)(
            torch.from_numpy(h)
        )
        return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))

    errors = [after(k) for k in (1, 3, 10, 80)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_some_iterations_are_nearer_than_ekfac(make_task: Any, gradients: Any, name: str) -> None:
    task = make_task(name)
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    expected = g @ exact(task, h, 1e-2, "gauss_newton").T

    def scores(iterations: int) -> np.ndarray:
        found = [*astra.attribute(task, damping=1e-2, iterations=iterations)]
        return np.asarray(torch.cat(found).numpy())

    plain = torch.cat([*if_ekfac.attribute(task, damping=1e-2)]).numpy()
    np.testing.assert_allclose(scores(1), plain, atol=1e-9 * np.abs(plain).max())
    before, after = (np.linalg.norm(s - expected) for s in (plain, scores(40)))
    assert after < 0.5 * before


def test_scores_are_products(make_task: Any, gradients: Any) -> None:
    task = make_task("mlp")
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    solved = astra.inverse(task, damping=0.1, iterations=7)(torch.from_numpy(h)).numpy()
    found = torch.cat([*astra.attribute(task, damping=0.1, iterations=7)]).numpy()
    np.testing.assert_allclose(found, g @ solved.T, atol=1e-10)


def test_divergence_is_no_score(make_task: Any) -> None:
    with pytest.raises(NotComputableError, match="undefined: the iterations diverge"):
        torch.cat(
            [*astra.attribute(make_task("mlp"), damping=0.1, iterations=200, curvature="hessian")]
        )


def test_mini_batches_are_drawn_by_identity_and_come_near(make_task: Any, gradients: Any) -> None:
    task = make_task("mlp")
    h = torch.from_numpy(gradients(task, task.full[0].final, task.test))
    options: dict[str, Any] = {"damping": 0.1, "iterations": 60, "batch": 16}
    found = astra.inverse(task, **options)(h)
    expected = torch.from_numpy(exact(task, h.numpy(), 0.1, "gauss_newton"))
    # two thirds of the samples a step: noise of some per cent stays
    assert (found - expected).norm() < 0.2 * expected.norm()
    turned = torch.arange(len(task.train.ids) - 1, -1, -1)
    part = task.train
    backwards = part[turned]
    again = astra.inverse(replace(task, train=backwards), **options)(h)
    torch.testing.assert_close(again, found)
    other = astra.inverse(replace(task, seed=1), **options)(h)
    assert (other - found).norm() > 1e-4 * found.norm()


def test_misuse_is_named(make_task: Any) -> None:
    with pytest.raises(LeaveoutError, match="iterations = 0"):
        torch.cat([*astra.attribute(make_task("linear"), damping=1, iterations=0)])
    with pytest.raises(LeaveoutError, match="unknown"):
        torch.cat([*astra.attribute(make_task("linear"), damping=1, curvature="ggn")])
