from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leaveout.curvature.cg import conjugate_gradients
from leaveout.curvature.nystrom import nystrom

SIZE = 120


def matrix() -> Tensor:
    """Return a matrix of eigenvalues 1, 1/2, 1/4 ... in random directions."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return (q * 0.5 ** torch.arange(SIZE)) @ q.T


def rows() -> Tensor:
    return torch.randn(4, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("rank", "at_once"), [(60, 7), (60, 64), (SIZE, 50), (500, 500)])
def test_it_is_the_inverse_once_the_sketch_holds_what_exceeds_the_shift(
    rank: int, at_once: int
) -> None:
    a, v = matrix(), rows()
    solve = nystrom(lambda x: x @ a, v[0], rank, 1e-4, at_once)
    exact = torch.linalg.solve(a + 1e-4 * torch.eye(SIZE), v.T).T
    # it misses 2^-60, below rounding; 16 roundings of the largest eigenvalue, 4e-15, are added to a
    # matrix whose smallest eigenvalues are 1e-4 times those of A, themselves small beside 1e-4
    assert (solve(v) - exact).norm() < 1e-6 * exact.norm()


def test_it_makes_conjugate_gradients_converge_at_once() -> None:
    a, v = matrix(), rows()

    def product(x: Tensor) -> Tensor:
        return x @ a + 1e-4 * x

    def residual(iterations: int, precondition: object) -> float:
        x = conjugate_gradients(product, v, iterations, 1e-14, precondition)  # type: ignore[arg-type]
        return float((product(x) - v).norm() / v.norm())

    solve = nystrom(lambda x: x @ a, v[0], 30, 1e-4, 16)
    assert residual(3, solve) < 1e-6
    assert residual(3, None) > 1e-2


@pytest.mark.parametrize("shift", [1e-1, 1e-3, 1e-6])
def test_in_float32_it_stays_positive_definite(shift: float) -> None:
    a = matrix().float()
    solve = nystrom(lambda x: x @ a, a[0], 60, shift, 16)
    found = solve(torch.eye(SIZE)).double()
    assert torch.linalg.eigvalsh((found + found.T) / 2).min() > 0
