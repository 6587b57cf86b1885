from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from leaveout.attribution import if_ekfac, if_kfac
from leaveout.curvature import kronecker
from leaveout.curvature.hessian import hessian
from leaveout.errors import LeaveoutError

METHODS = (if_kfac, if_ekfac)


def scores(method: Any, task: Any, **options: Any) -> np.ndarray:
    return torch.cat([*method.attribute(task, **options)]).numpy()


def by_hand(task: Any, damping: float, empirical: bool, corrected: bool) -> np.ndarray:
    """Softmax regression in NumPy, gradients formed, eigenvalues summed sample by sample."""
    state = task.full[0].final
    weight, bias = (state[f"linear.{name}"].double().numpy() for name in ("weight", "bias"))

    def parts(samples: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = samples.inputs.double().flatten(1).numpy()
        p = softmax(x @ weight.T + bias, axis=1)
        y = np.eye(len(bias))[samples.targets]
        return np.c_[x, np.ones(len(x))], p, y

    a, p, y = parts(task.train)
    if empirical:
        deltas = [(p - y, np.ones(len(p)))]
    else:
        deltas = [(p - e, p[:, c]) for c, e in enumerate(np.eye(p.shape[1]))]
    n = len(a)
    second = sum((d * w[:, None]).T @ d for d, w in deltas) / n
    into_values, into = np.linalg.eigh(a.T @ a / n)
    out_values, out = np.linalg.eigh(second)
    values = np.outer(out_values, into_values)
    if corrected:
        values = np.zeros_like(values)
        for d, w in deltas:
            for i in range(n):
                values += w[i] * (out.T @ np.outer(d[i], a[i]) @ into) ** 2 / n
    b, q, z = parts(task.test)
    basis = np.kron(out, into)
    matrix = basis @ np.diag(values.ravel()) @ basis.T
    g, h = (
        np.stack([np.kron(u, v) for u, v in zip(d, x, strict=True)])
        for d, x in ((p - y, a), (q - z, b))
    )
    return np.asarray(g @ np.linalg.inv(matrix + damping * np.eye(len(matrix))) @ h.T)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("damping", [1, 1e-3])
@pytest.mark.parametrize("method", METHODS)
def test_softmax_regression_by_hand(
    make_task: Any, method: Any, damping: float, fisher: str
) -> None:
    task = make_task("linear")
    expected = by_hand(task, damping, fisher == "empirical", method is if_ekfac)
    found = scores(method, task, damping=damping, fisher=fisher)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_scores_are_products_with_solved_gradients(
    make_task: Any, gradients: Any, name: str, method: Any
) -> None:
    """Factored or formed: the same numbers; and self-influence is the diagonal."""
    task = make_task(name)
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    solved = method.inverse(task, damping=1e-2)(torch.from_numpy(h)).numpy()
    np.testing.assert_allclose(scores(method, task, damping=1e-2), g @ solved.T, atol=1e-10)
    assert np.linalg.norm(solved - h / 1e-2) > 0.1 * np.linalg.norm(solved)
    solved = method.inverse(task, damping=1e-2)(torch.from_numpy(g)).numpy()
    found = method.self_influence(task, damping=1e-2).numpy()
    np.testing.assert_allclose(found, (g * solved).sum(1), atol=1e-10)


def test_blocks_and_batches_do_not_matter(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlp", "cnn"):
        task = make_task(name)
        whole = scores(if_ekfac, task, damping=1e-3)
        with monkeypatch.context() as patch:
            patch.setattr(kronecker, "BATCH_BYTES", 1000)
            patch.setattr(kronecker, "VECTOR_BYTES", 2500)
            patch.setattr(kronecker, "TRAIN_BYTES", 2500)
            patch.setattr("leaveout.attribution.task.BLOCK_BYTES", 7 * 8 * 5)
            assert len(list(if_kfac.fisher_samples(task, "true").batches)) > 3
            cut = scores(if_ekfac, task, damping=1e-3)
        np.testing.assert_allclose(cut, whole, atol=1e-9 * np.abs(whole).max())


def test_drawn_labels_go_with_the_sample(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaveout.curvature.kfac.MOST_CLASSES", 1)
    task = make_task("mlp")
    plain = scores(if_ekfac, task, damping=1e-2)
    turned = torch.arange(len(task.train.ids) - 1, -1, -1)
    part = task.train
    backwards = part[turned]
    found = scores(if_ekfac, replace(task, train=backwards), damping=1e-2)
    np.testing.assert_allclose(found[::-1], plain, atol=1e-9 * np.abs(plain).max())
    other = scores(if_ekfac, replace(task, seed=1), damping=1e-2)
    assert np.abs(other - plain).max() > 1e-3 * np.abs(plain).max()


def test_float32_is_close_to_float64(make_task: Any) -> None:
    for name in ("linear", "mlp", "cnn"):
        found, expected = (
            scores(if_ekfac, make_task(name, dtype), damping=1e-3)
            for dtype in (torch.float32, torch.float64)
        )
        assert found.dtype == np.float32
        # weights trained in float32 differ as well
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_it_is_nearer_to_the_gauss_newton_inverse_than_the_identity(
    make_task: Any, gradients: Any
) -> None:
    """On softmax regression the Hessian is the true Fisher."""
    task = make_task("linear", n_train=200)
    state = task.full[0].final
    g, h = (gradients(task, state, part) for part in (task.train, task.test))
    matrix = hessian(task.module, state, task.train).numpy()
    exact = g @ np.linalg.solve(matrix + 1e-3 * np.eye(len(matrix)), h.T)

    def correlation(found: np.ndarray) -> float:
        return float(np.corrcoef(found.ravel(), exact.ravel())[0, 1])

    assert correlation(scores(if_ekfac, task, damping=1e-3)) > 0.95 > correlation(g @ h.T)


def test_an_unknown_fisher_is_an_error(make_task: Any) -> None:
    with pytest.raises(LeaveoutError, match="expected true or empirical, got 'exact'"):
        scores(if_ekfac, make_task("linear"), damping=1, fisher="exact")
