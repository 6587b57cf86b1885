from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from leaveout.curvature.arnoldi import ritz_pairs


def matrix(values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = len(values)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q @ values.double().diag() @ q.T


def start(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_the_whole_space_gives_the_eigenpairs_of_an_indefinite_matrix() -> None:
    exact = torch.tensor([-7.0, 5.0, -3.0, 2.0, 1.0, 0.5, -0.25, 0.1])
    a = matrix(exact)
    values, vectors = ritz_pairs(lambda v: v @ a, start(8), 8)
    torch.testing.assert_close(values, exact.double())  # by magnitude, with their signs
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(8).double())
    torch.testing.assert_close((vectors.T * values) @ vectors, a)


def test_leading_pairs_of_a_large_matrix_converge_first() -> None:
    spectrum = torch.cat([torch.tensor([50.0, -40.0, 30.0]), torch.linspace(-1, 1, 197)])
    a = matrix(spectrum)
    values, vectors = ritz_pairs(lambda v: v @ a, start(200), 30)
    assert len(values) == 30
    reference = eigsh(a.numpy(), 3, which="LM", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(values[:3]), np.sort(reference), rtol=1e-10)
    torch.testing.assert_close(vectors[:3] @ a, values[:3, None] * vectors[:3], atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_stay_orthonormal_after_convergence(dtype: torch.dtype) -> None:
    a = matrix(0.5 ** torch.arange(60.0)).to(dtype)  # converges after a few steps
    values, vectors = ritz_pairs(lambda v: v @ a, start(60, dtype), 50)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(len(vectors), dtype=dtype))
    assert (values > 0.9).sum() == 1  # no eigenvalue comes back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_invariant_space_ends_the_iteration(dtype: torch.dtype) -> None:
    a = matrix(torch.tensor([3.0, 3.0, 3.0, -1.0, -1.0, 0.0, 0.0, 0.0])).to(dtype)
    values, vectors = ritz_pairs(lambda v: v @ a, start(8, dtype), 8)
    expected = torch.tensor([3.0, -1.0, 0.0]).double()  # one vector for each eigenvalue
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    assert vectors.shape == (3, 8)


def test_zero_stays_zero() -> None:
    values, vectors = ritz_pairs(torch.zeros_like, start(5), 4)
    assert values.tolist() == [0.0]
    assert vectors.isfinite().all()
