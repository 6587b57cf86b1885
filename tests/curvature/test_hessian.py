from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from leaveout.curvature.hessian import hessian


def test_it_is_the_second_derivative_of_the_mean_loss(problem: Any) -> None:
    expected = problem.explicit()
    found = hessian(problem.module, problem.state, problem.samples)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, found.T, atol=1e-15, rtol=0)


def test_it_is_worked_out_in_float64_from_float32(problem: Any) -> None:
    state = {k: v.float() if v.is_floating_point() else v for k, v in problem.state.items()}
    problem.state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    problem.inputs = problem.inputs.float().double()
    expected = problem.explicit()
    found = hessian(
        problem.module.float(), state, replace(problem.samples, inputs=problem.inputs.float())
    )
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_softmax_regression_is_convex_and_blind_to_a_common_shift(problem: Any) -> None:
    if len(dict(problem.module.named_parameters())) > 2:
        return
    found = hessian(problem.module, problem.state, problem.samples)
    eigenvalues = torch.linalg.eigvalsh(found)
    assert eigenvalues.min() > -1e-12
    # adding one vector to the weights of all classes changes no probability: 16 + 1 null directions
    assert (eigenvalues.abs() < 1e-12).sum() >= 17
    other = hessian(
        problem.module, problem.state, replace(problem.samples, targets=problem.labels.flip(0))
    )
    torch.testing.assert_close(found, other, atol=0, rtol=0)  # labels do not enter


def test_order_of_samples_does_not_matter(problem: Any) -> None:
    samples = problem.samples
    found = hessian(problem.module, problem.state, samples)
    turned = samples[torch.arange(len(samples)).flip(0)]
    flipped = hessian(problem.module, problem.state, turned)
    torch.testing.assert_close(flipped, found, atol=1e-13, rtol=0)
