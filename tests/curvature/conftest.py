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

SHAPE, CLASSES, N = (1, 4, 4), 3, 23
MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(5,), dropout=0.5),
    "deep": MLP(name="mlp", hidden=(6, 5, 4)),
    "cnn": CNN(name="cnn", channels=(2,), batch_norm=True),
}


@dataclass
class Problem:
    module: nn.Module
    state: dict[str, Tensor]
    inputs: Tensor
    labels: Tensor

    @property
    def samples(self) -> Samples:
        """All of them."""
        return Samples(self.inputs, self.labels, CROSS_ENTROPY)

    def explicit(self) -> Tensor:
        """The Hessian by torch.autograd, of the loss as a function of one flat vector."""
        named = dict(self.module.named_parameters())
        flat = torch.cat([self.state[name].flatten() for name in named])

        def loss(vector: Tensor) -> Tensor:
            parts = vector.split([p.numel() for p in named.values()])
            params = {n: v.view(named[n].shape) for n, v in zip(named, parts, strict=True)}
            outputs = torch.func.functional_call(
                self.module, {**self.state, **params}, (self.inputs,)
            )
            return functional.cross_entropy(outputs, self.labels)

        found = torch.autograd.functional.hessian(loss, flat)
        assert isinstance(found, Tensor)
        return found


def make(name: str) -> Problem:
    rng = np.random.default_rng(0)
    module = initialise(MODELS[name], SHAPE, CLASSES, 4).double()
    with torch.no_grad(), torch.random.fork_rng():  # dropout draws
        for p in module.parameters():
            p.mul_(2)  # away from the flat start
        module(2 * torch.from_numpy(rng.standard_normal((20, *SHAPE))))
    state = {k: v.detach().clone() for k, v in module.state_dict().items()}
    return Problem(
        module.eval().requires_grad_(False),
        state,
        torch.from_numpy(rng.standard_normal((N, *SHAPE))),
        torch.from_numpy(rng.integers(CLASSES, size=N)),
    )


@pytest.fixture(params=MODELS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return make(request.param)
