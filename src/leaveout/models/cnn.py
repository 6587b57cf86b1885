"""Small convolutional network: blocks of 3x3 convolution, ReLU and pooling, then a linear layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def build(
    input_shape: tuple[int, ...], n_outputs: int, channels: Sequence[int], batch_norm: bool
) -> nn.Sequential:
    """Build the model.

    Args:
        input_shape: Shape of one sample, (channels, height, width).
        n_outputs: Number of outputs, e.g. classes.
        channels: Output channels of each block; every block halves height and width.
        batch_norm: Whether a batch norm follows each convolution.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width, height, breadth = input_shape
    for number, units in enumerate(channels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(width, units, 3, padding=1)
        if batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(units)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        width, height, breadth = units, height // 2, breadth // 2
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(width * height * breadth, n_outputs)
    return nn.Sequential(layers)
