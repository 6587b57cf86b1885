from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.config import CNN, MLP, Linear, Model
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples

SHAPE, CLASSES = (1, 4, 4), 3
MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(9, 8), dropout=0.5),
    "cnn": CNN(name="cnn", channels=(2, 3), batch_norm=True),
}


@dataclass
class Problem:
    module: nn.Module
    state: dict[str, Tensor]
    left: Samples
    right: Samples

    def naive(self, samples: Samples) -> Tensor:
        """One backward pass a sample through the module itself."""
        module = self.module
        rows = []
        for x, y in zip(samples.inputs, samples.targets, strict=True):
            params = [p.detach().requires_grad_() for p in module.parameters()]
            named = dict(zip(dict(module.named_parameters()), params, strict=True))
            outputs = torch.func.functional_call(module, {**self.state, **named}, (x[None],))
            loss = functional.cross_entropy(outputs, y[None])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]))
        return torch.stack(rows)


@pytest.fixture(params=MODELS)
def problem(request: pytest.FixtureRequest) -> Problem:
    rng = np.random.default_rng(0)
    module = initialise(MODELS[request.param], SHAPE, CLASSES, 1).double()
    with torch.no_grad(), torch.random.fork_rng():  # running statistics not the initial ones
        module(2 * torch.from_numpy(rng.standard_normal((20, *SHAPE))))
    state = {k: v.detach().clone() for k, v in module.state_dict().items()}
    left, right = (
        Samples(
            torch.from_numpy(rng.standard_normal((n, *SHAPE))),
            torch.from_numpy(rng.integers(CLASSES, size=n)),
            CROSS_ENTROPY,
        )
        for n in (11, 5)
    )
    return Problem(module.eval().requires_grad_(False), state, left, right)
