from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from leaveout.curvature import hvp, softmax_hvp
from leaveout.curvature.kinds import curvature_products
from leaveout.curvature.softmax_hvp import matrix_products, prepare_matrices, worthwhile
from leaveout.training.stack import Layer

LAYER = Layer("fc", 4, False, 0.0)
MANY = 10**9


def drawn(dtype: torch.dtype, scale: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    state = {
        "fc.weight": scale * torch.randn(4, 11, generator=generator, dtype=torch.float64),
        "fc.bias": torch.randn(4, generator=generator, dtype=torch.float64),
    }
    inputs = torch.randn(37, 11, generator=generator, dtype=torch.float64)
    inputs[:, [2, 7]] = torch.tensor([0.0, 1.5], dtype=torch.float64)  # constant features
    return {name: value.to(dtype) for name, value in state.items()}, inputs.to(dtype)


def explicit(state: dict[str, Tensor], inputs: Tensor) -> Tensor:
    labels = torch.zeros(len(inputs), dtype=torch.long)

    def loss(flat: Tensor) -> Tensor:
        return cross_entropy(inputs @ flat[:44].view(4, 11).T + flat[44:], labels)

    flat = torch.cat([value.flatten() for value in state.values()])
    found = torch.autograd.functional.hessian(loss, flat)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("samples", [37, 10, 1])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # 30: most samples are of one class, to rounding
def test_columns_of_the_explicit_hessian(samples: int, scale: float) -> None:
    state, inputs = drawn(torch.float64, scale)
    net = prepare_matrices(LAYER, state, inputs, samples)
    unit = torch.eye(48, dtype=torch.float64)
    parts = matrix_products(
        net, {"fc.weight": unit[:, :44].view(48, 4, 11), "fc.bias": unit[:, 44:]}
    )
    found = torch.cat([parts["fc.weight"].flatten(1), parts["fc.bias"]], dim=1)
    torch.testing.assert_close(found, explicit(state, inputs), atol=1e-14, rtol=0)


def test_far_samples_that_are_left_out_add_rounding_only() -> None:
    state, inputs = drawn(torch.float32, 4.0)
    exact = explicit(*drawn(torch.float64, 4.0))
    p = torch.softmax(inputs @ state["fc.weight"].T + state["fc.bias"], 1)
    assert int((p[:, 0] * p[:, 1] < 1e-7 * (p[:, 0] * p[:, 1]).mean()).sum()) > 3  # some are
    net = prepare_matrices(LAYER, state, inputs, 37)
    vectors = {"fc.weight": exact[:, :44].view(-1, 4, 11), "fc.bias": exact[:, 44:]}
    parts = matrix_products(net, {name: v.float() for name, v in vectors.items()})
    found = torch.cat([parts["fc.weight"].flatten(1), parts["fc.bias"]], dim=1)
    # sums of some dozens of float32 numbers
    torch.testing.assert_close(
        found.double(), exact @ exact, atol=1e-6 * float((exact @ exact).abs().max()), rtol=0
    )


@pytest.mark.parametrize("problem", ["linear"], indirect=True)
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_how_many_uses_are_announced_decides_the_way_and_not_the_product(
    problem: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem.inputs = problem.inputs.repeat(3, 1, 1, 1)
    problem.labels = problem.labels.repeat(3)
    arguments = (kind, problem.module, problem.state, problem.samples)
    vectors = torch.randn(9, 51, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ways = []

    def forming(*given: Any) -> Any:
        ways.append(given)
        return prepare_matrices(*given)

    monkeypatch.setattr(hvp, "prepare_matrices", forming)
    few = curvature_products(*arguments, 1)(vectors)
    assert not ways
    product = curvature_products(*arguments, MANY)
    torch.testing.assert_close(product(vectors), few, atol=1e-13, rtol=0)
    torch.testing.assert_close(product(vectors[:2]), few[:2], atol=1e-13, rtol=0)
    assert len(ways) == 1


def test_matrices_are_for_many_samples_and_uses_and_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = torch.zeros(5000, 100)
    assert worthwhile(inputs, 10, 5000)
    assert not worthwhile(inputs, 10, 100)  # not worth forming them
    assert not worthwhile(inputs[:200], 10, MANY)  # products are dearer
    monkeypatch.setattr(softmax_hvp, "MATRIX_BYTES", 45 * 101**2 * 4 - 1)
    assert not worthwhile(inputs, 10, 5000)


@pytest.mark.parametrize("problem", ["mlp", "cnn"], indirect=True)
def test_other_modules_take_no_matrices(problem: Any) -> None:
    size = sum(p.numel() for p in problem.module.parameters())
    arguments = (problem.module, problem.state, problem.samples)
    products = curvature_products("hessian", *arguments, uses=MANY)
    found = products(torch.eye(size, dtype=torch.float64)[:5])
    torch.testing.assert_close(found, problem.explicit()[:5], atol=1e-10, rtol=0)
