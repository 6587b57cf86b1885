from __future__ import annotations

from typing import Any

import pytest
import torch

from leaveout.curvature.hessian import hessian
from leaveout.curvature.kinds import check_kind, curvature_products
from leaveout.errors import LeaveoutError


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_and_the_explicit_matrix_of_a_name_agree(problem: Any, kind: str) -> None:
    arguments = (problem.module, problem.state, problem.samples)
    matrix = hessian(*arguments, kind)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-15, rtol=1e-15)
    found = curvature_products(kind, *arguments)(torch.eye(len(matrix), dtype=torch.float64))
    torch.testing.assert_close(found, matrix, atol=1e-12, rtol=0)
    if kind == "gauss_newton":
        assert torch.linalg.eigvalsh(matrix)[0] > -1e-12


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(LeaveoutError, match="'gaus newton' is unknown; did you mean 'gauss_newton"):
        check_kind("gaus newton")
    with pytest.raises(LeaveoutError, match="Valid: hessian, gauss_newton"):
        check_kind("")
