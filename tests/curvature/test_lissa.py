from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from leaveout.curvature.lissa import lissa
from leaveout.errors import NotComputableError


def matrix(size: int = 12, lowest: float = 0.0) -> Tensor:
    """Eigenvalues from ``lowest`` to 2."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q @ torch.linspace(lowest, 2, size, dtype=torch.float64).diag() @ q.T


def rows(count: int = 3, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


def steps(a: Tensor, depth: int) -> Iterator[Callable[[Tensor], Tensor]]:
    return (lambda v: v @ a for _ in range(depth))


@pytest.mark.parametrize("scaling", [2.0, 4.0])
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_it_tends_to_the_inverse_whatever_the_scaling(scaling: float, damping: float) -> None:
    a, v = matrix(), rows()
    exact = torch.linalg.solve(a + damping * torch.eye(12).double(), v.T).T
    errors = [
        float((lissa(steps(a, depth), v, damping, scaling) - exact).norm() / exact.norm())
        for depth in (1, 10, 100, 2000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-12


def test_it_is_the_partial_sum_of_neumanns_series() -> None:
    a, v = matrix(), rows()
    step = torch.eye(12).double() - (a + 0.3 * torch.eye(12).double()) / 5
    total = torch.stack([torch.linalg.matrix_power(step, k) for k in range(8)]).sum(0) / 5
    torch.testing.assert_close(lissa(steps(a, 7), v, 0.3, 5.0), v @ total)


def test_the_vectors_given_stay_as_they_are() -> None:
    v = rows()
    lissa(steps(matrix(), 3), v, 0.1, 2.0)
    assert torch.equal(v, rows())


@pytest.mark.parametrize("depth", [20, 100, 5000])  # 5000: beyond the largest number
def test_a_scaling_below_half_the_largest_eigenvalue_is_an_error(depth: int) -> None:
    with pytest.raises(NotComputableError, match=r"diverges for 3 of 3.*scaling = 0.5") as error:
        lissa(steps(matrix(), depth), rows(), 0.0, 0.5)
    assert error.value.reason == "undefined"


def test_a_few_slightly_negative_eigenvalues_are_none() -> None:
    a, v = matrix(lowest=-0.05), rows()
    found = lissa(steps(a, 100), v, 0.0, 10.0)
    assert found.isfinite().all()
