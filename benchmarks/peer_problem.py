"""What the other libraries score: the samples and weights that leaveout scores, as plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

State = dict[str, Tensor]


class Net(nn.Module):
    """Linear layers with ReLU between them, named as in the weights; dropout is off."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make the layers from the shapes of their weights."""
        super().__init__()
        self.names = list(shapes)
        for name, (outputs, inputs) in shapes.items():
            setattr(self, name, nn.Linear(inputs, outputs))

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the last layer gets."""
        inputs = inputs.flatten(1)
        for name in self.names[:-1]:
            inputs = torch.relu(getattr(self, name)(inputs))
        return inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        outputs: Tensor = getattr(self, self.names[-1])(self.features(inputs))
        return outputs


@dataclass(frozen=True)
class Problem:
    """Samples, and models with the weights of each run and checkpoint.

    Attributes:
        train: (input, label).
        test: The same.
        full: State dicts of full models, by run and checkpoint.
        half: Of half models.
        rates: Learning rate at each checkpoint.
    """

    train: TensorDataset
    test: TensorDataset
    full: list[list[State]]
    half: list[list[State]]
    rates: list[float]

    def net(self) -> Net:
        """Return a model with the weights of full run 0."""
        state = self.full[0][-1]
        shapes = {
            name.removesuffix(".weight"): tuple(array.shape)
            for name, array in sorted(state.items())
            if name.endswith(".weight")
        }
        net = Net(shapes)
        net.load_state_dict(state)
        return net.eval()


def read(folder: Path) -> Problem:
    """Read ``data.npz`` and ``models.npz``: arrays (run, checkpoint, ...) by KIND/NAME."""
    with np.load(folder / "data.npz") as found:
        data = {name: torch.from_numpy(array) for name, array in found.items()}
    with np.load(folder / "models.npz") as found:
        arrays = {name: torch.from_numpy(array) for name, array in found.items()}
    rates = arrays.pop("rates").tolist()
    models: dict[str, list[list[State]]] = {}
    for kind in ("full", "half"):
        named = {k.removeprefix(f"{kind}/"): v for k, v in arrays.items() if k.startswith(kind)}
        runs, checkpoints = next(iter(named.values())).shape[:2]
        models[kind] = [
            [{n: v[run, c].clone() for n, v in named.items()} for c in range(checkpoints)]
            for run in range(runs)
        ]
    return Problem(
        train=TensorDataset(data["train_inputs"], data["train_labels"].long()),
        test=TensorDataset(data["test_inputs"], data["test_labels"].long()),
        **models,
        rates=rates,
    )
