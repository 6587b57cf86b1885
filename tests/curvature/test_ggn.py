from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from leaveout.curvature import ggn, hvp
from leaveout.curvature.ggn import gauss_newton_map
from leaveout.curvature.hvp import hessian_products
from leaveout.curvature.kinds import curvature_products


def explicit(problem: Any) -> Tensor:
    """mean_i J_i' (diag p - p p') J_i, with each sample's Jacobian by autograd."""
    names = [name for name, _ in problem.module.named_parameters()]
    total = torch.zeros((), dtype=torch.float64)
    for x in problem.inputs:

        def outputs(params: dict[str, Tensor], x: Tensor = x) -> Tensor:
            found: Tensor = functional_call(problem.module, {**problem.state, **params}, (x[None],))
            return found[0]

        params = {name: problem.state[name] for name in names}
        parts = jacrev(outputs)(params)
        jacobian = torch.cat([parts[name].flatten(1) for name in names], dim=1)
        p = outputs(params).softmax(0)
        total = total + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return total / len(problem.inputs)


def vectors(problem: Any, count: int = 7) -> Tensor:
    size = sum(p.numel() for p in problem.module.parameters())
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize(("samples", "count"), [(23, 7), (10, 2), (22, 1)])
def test_products_with_the_explicit_matrix_however_they_are_cut(
    problem: Any, monkeypatch: pytest.MonkeyPatch, by_hand: bool, samples: int, count: int
) -> None:
    for module in (ggn, hvp):
        monkeypatch.setattr(module, "at_once", lambda *_: (samples, count))
    monkeypatch.setattr(hvp, "stacked_at_once", lambda _: (samples, count))
    v = vectors(problem)
    arguments = (problem.module, problem.state, problem.samples)
    products = (
        curvature_products("gauss_newton", *arguments, uses=len(v))
        if by_hand
        else gauss_newton_map(*arguments)
    )
    found = products(v)
    torch.testing.assert_close(found, v @ explicit(problem), atol=1e-10, rtol=0)


def test_it_is_the_hessian_where_outputs_are_linear_and_nowhere_else(problem: Any) -> None:
    v = vectors(problem)
    arguments = (problem.module, problem.state, problem.samples)
    one = curvature_products("gauss_newton", *arguments, uses=len(v))(v)
    other = hessian_products(*arguments, v)
    linear = len(list(problem.module.parameters())) == 2
    assert torch.allclose(one, other, atol=1e-10) == linear
    assert linear or (one - other).norm() > 0.05 * other.norm()


def test_labels_do_not_matter_and_nothing_given_is_changed(problem: Any) -> None:
    v = vectors(problem)
    before = [v.clone(), *(value.clone() for value in problem.state.values())]
    arguments = ("gauss_newton", problem.module, problem.state)
    one = curvature_products(*arguments, problem.samples, uses=len(v))(v)
    other = curvature_products(
        *arguments, replace(problem.samples, targets=2 - problem.labels), uses=len(v)
    )(v)
    assert torch.equal(one, other)
    assert all(map(torch.equal, [v, *problem.state.values()], before))
