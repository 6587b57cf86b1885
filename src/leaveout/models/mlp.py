"""Multi-layer perceptron: linear layers with ReLU or tanh, dropout after each hidden one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def build(
    input_shape: tuple[int, ...],
    n_outputs: int,
    hidden: Sequence[int],
    dropout: float,
    activation: str = "relu",
) -> nn.Sequential:
    """Build the model.

    Args:
        input_shape: Shape of one sample.
        n_outputs: Number of outputs, e.g. classes.
        hidden: Width of each hidden layer.
        dropout: Probability of dropping a hidden unit; 0 builds no dropout layer.
        activation: ``relu`` or ``tanh``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(input_shape)
    for number, units in enumerate(hidden, start=1):
        layers[f"fc{number}"] = nn.Linear(width, units)
        layers[f"{activation}{number}"] = ACTIVATIONS[activation]()
        if dropout > 0:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        width = units
    layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, n_outputs)
    return nn.Sequential(layers)
