from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from leaveout.curvature.spectrum import effective_dimension, spectral_density

SIZE = 16


def matrix(rank: int = SIZE, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0][:, :rank]
    values = np.logspace(1, -4, rank)
    return torch.from_numpy((basis * values) @ basis.T)


# Signs of which every two rows are orthogonal: the mean of their quadratic forms is the trace.
ALL = torch.from_numpy(hadamard(SIZE).astype(np.float64))


@pytest.mark.parametrize("rank", [SIZE, 3])
def test_as_many_steps_as_eigenvalues_leave_no_error(rank: int) -> None:
    a = matrix(rank)
    values, weights = spectral_density(lambda v: v @ a, ALL)
    assert float(weights.sum()) == pytest.approx(SIZE)
    for damping in (1e-3, 0.1, 5.0):
        exact = torch.trace(a @ torch.linalg.inv(a + damping * torch.eye(SIZE)))
        # 1e-8: an eigenvalue found to rounding, over a damping of 1e-3
        found = effective_dimension(values, weights, damping)
        assert found == pytest.approx(float(exact), rel=1e-8)


def test_few_steps_are_near_for_a_smooth_function() -> None:
    a = matrix()
    values, weights = spectral_density(lambda v: v @ a, ALL, steps=6)
    assert len(values) == 6 * SIZE
    exact = float(torch.trace(a @ torch.linalg.inv(a + torch.eye(SIZE))))
    assert effective_dimension(values, weights, 1.0) == pytest.approx(exact, rel=1e-4)


def test_each_probe_is_a_quadratic_form_of_its_own() -> None:
    a = matrix(seed=1)
    both = spectral_density(lambda v: v @ a, ALL[:2])
    alone = [spectral_density(lambda v: v @ a, ALL[k : k + 1]) for k in (0, 1)]
    assert effective_dimension(*both, 0.1) == pytest.approx(
        sum(effective_dimension(*one, 0.1) for one in alone) / 2
    )


def test_negative_curvature_counts_as_none() -> None:
    a = torch.diag(torch.tensor([2.0, -3.0, 0.0, 1.0], dtype=torch.float64))
    found = spectral_density(lambda v: v @ a, torch.from_numpy(hadamard(4).astype(np.float64)))
    assert effective_dimension(*found, 0.5) == pytest.approx(2 / 2.5 + 1 / 1.5)
