from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leaveout.errors import NotComputableError
from leaveout.gradients import features
from leaveout.gradients.factors import form
from leaveout.gradients.features import (
    last_layer_gradients,
    last_linear,
    penultimate_features,
)
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-12}


@pytest.fixture(params=[256, 3])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_features_are_what_the_last_layer_sees(problem: Any) -> None:
    found = penultimate_features(problem.module, problem.state, problem.left)
    name = last_linear(problem.module, problem.state, problem.left)
    weight, bias = (problem.state[f"{name}.{part}"] for part in ("weight", "bias"))
    outputs = torch.func.functional_call(problem.module, problem.state, (problem.left.inputs,))
    torch.testing.assert_close(found @ weight.T + bias, outputs, **CLOSE)
    if len(list(problem.module.parameters())) == 2:
        assert torch.equal(found, problem.left.inputs.flatten(1))


@pytest.mark.usefixtures("block")
def test_gradients_in_the_last_layer_are_the_last_ones(problem: Any) -> None:
    (factor,) = last_layer_gradients(problem.module, problem.state, problem.left)
    expected = problem.naive(problem.left)
    found = form([factor])
    torch.testing.assert_close(found, expected[:, -found.shape[1] :], **CLOSE)
    assert found.shape[1] < expected.shape[1] or len(list(problem.module.parameters())) == 2


def test_the_last_layer_is_the_last_that_is_called() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)
            self.body = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(inputs).relu_()).log_softmax(1)

    with torch.random.fork_rng():
        module = Reversed()
    state, inputs = dict(module.state_dict()), torch.arange(8.0).view(2, 4)
    samples = Samples(inputs, torch.tensor([0, 1]), CROSS_ENTROPY)
    assert last_linear(module, state, samples) == "head"
    expected = module.body(inputs).relu().detach()
    torch.testing.assert_close(penultimate_features(module, state, samples), expected)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Flatten(), "no linear layer"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)), "0? ?1 sees more"),
    ],
)
def test_a_model_without_features_says_so(module: nn.Module, message: str) -> None:
    samples = Samples(torch.ones(2, 3, 2, 2), torch.tensor([0, 1]), CROSS_ENTROPY)
    with pytest.raises(NotComputableError, match=message):
        penultimate_features(module, dict(module.state_dict()), samples)
    assert not any(m._forward_hooks for m in module.modules())
