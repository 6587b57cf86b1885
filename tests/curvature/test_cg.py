from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from leaveout.curvature.cg import conjugate_gradients


def matrix(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    size = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return (q * eigenvalues) @ q.T


def product(a: np.ndarray) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows @ torch.from_numpy(a).to(rows)


A = matrix(np.geomspace(0.05, 3, 12))
B = np.random.default_rng(1).standard_normal((5, 12))


def test_twelve_steps_solve_twelve_unknowns() -> None:
    found = conjugate_gradients(product(A), torch.from_numpy(B), 12)
    np.testing.assert_allclose(found, np.linalg.solve(A, B.T).T, rtol=1e-6)


def test_the_error_falls_with_every_step() -> None:
    exact = np.linalg.solve(A, B.T).T
    errors = []
    for steps in range(13):
        off = conjugate_gradients(product(A), torch.from_numpy(B), steps).numpy() - exact
        errors.append(np.einsum("ni,ij,nj->n", off, A, off))  # the norm CG minimises
    assert (np.diff(errors, axis=0) < 0).all()
    assert (errors[-1] < 1e-10 * errors[0]).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_k_steps_are_the_best_of_the_krylov_space(steps: int) -> None:
    for b, found in zip(
        B, conjugate_gradients(product(A), torch.from_numpy(B), steps).numpy(), strict=True
    ):
        basis, _ = np.linalg.qr(
            np.stack([np.linalg.matrix_power(A, k) @ b for k in range(steps)]).T
        )
        best = basis @ np.linalg.solve(basis.T @ A @ basis, basis.T @ b)
        np.testing.assert_allclose(found, best, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stays_put_after_convergence(dtype: torch.dtype) -> None:
    right = torch.from_numpy(B).to(dtype)
    found = conjugate_gradients(product(A), right, 500)
    assert found.isfinite().all()
    np.testing.assert_allclose(
        found, np.linalg.solve(A, B.T).T, rtol=1e-2 if dtype == torch.float32 else 1e-6
    )


def test_a_zero_right_hand_side_has_solution_zero_and_harms_no_other() -> None:
    right = torch.from_numpy(B.copy())
    right[2] = 0
    found = conjugate_gradients(product(A), right, 20)
    assert torch.equal(found[2], torch.zeros(12, dtype=torch.float64))
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(found[others], np.linalg.solve(A, B[others].T).T, rtol=1e-6)
    nothing = conjugate_gradients(product(A), torch.zeros(3, 12), 20)
    assert torch.equal(nothing, torch.zeros(3, 12))


def test_columns_do_not_depend_on_each_other() -> None:
    whole = conjugate_gradients(product(A), torch.from_numpy(B), 4)
    scaled = conjugate_gradients(product(A), torch.from_numpy(B * 1e6), 4)
    torch.testing.assert_close(scaled, whole * 1e6, rtol=1e-9, atol=0)
    for row in range(len(B)):
        alone = conjugate_gradients(product(A), torch.from_numpy(B[row : row + 1]), 4)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-10, atol=1e-12)


def test_a_direction_of_negative_curvature_stops_its_column_alone() -> None:
    values = np.geomspace(0.5, 3, 12)
    values[0] = -1
    rng = np.random.default_rng(2)
    q, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    a = (q * values) @ q.T
    good = q[:, 1:] @ rng.standard_normal(11)  # never meets the negative direction
    bad = q[:, 0] + 1e-3 * good  # meets it in its first step
    found = conjugate_gradients(product(a), torch.from_numpy(np.stack([good, bad])), 11).numpy()
    np.testing.assert_allclose(found[0], np.linalg.solve(a, good), rtol=1e-5)
    assert (found[1] == 0).all()


def test_negative_curvature_met_later_keeps_what_was_found() -> None:
    a = np.diag([1.0, 2.0, -0.5])
    b = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    steps = [conjugate_gradients(product(a), b, k) for k in range(8)]
    assert steps[1].abs().max() > 0
    assert all(x.isfinite().all() for x in steps)
    assert torch.equal(steps[-1], steps[-2])  # it has stopped
    assert steps[-1].abs().max() < 100


def test_a_preconditioner_changes_the_way_and_not_the_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 30, generator=generator).double()
    scales = torch.logspace(0, 4, 30).double()
    matrix = scales[:, None] * (a @ a.T / 30 + torch.eye(30)) * scales
    right = torch.randn(5, 30, generator=generator).double()
    exact = torch.linalg.solve(matrix, right.T).T

    def error(iterations: int, jacobi: bool) -> float:
        precondition = (lambda r: r / matrix.diagonal()) if jacobi else None
        x = conjugate_gradients(lambda v: v @ matrix, right, iterations, 1e-13, precondition)
        return float(((x - exact) * scales).norm() / (exact * scales).norm())

    assert error(60, True) < 1e-9
    assert error(60, False) > 1e-3


def test_each_column_has_a_tolerance_of_its_own() -> None:
    matrix = torch.diag(torch.linspace(1, 50, 40).double())
    right = torch.ones(2, 40).double()
    x = conjugate_gradients(lambda v: v @ matrix, right, 100, torch.tensor([1e-1, 1e-8]))
    residuals = (x @ matrix - right).norm(dim=1) / right.norm(dim=1)
    assert 1e-3 < residuals[0] <= 1e-1
    assert residuals[1] <= 1e-8
