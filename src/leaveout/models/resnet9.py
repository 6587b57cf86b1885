"""Residual network of three basic blocks (He et al. 2015), as the published CIFAR-2 panel has it.

A 3x3 convolution to 64 channels, basic blocks 64-128 (stride 1), 128-256 and 256-512 (stride 2),
each of two 3x3 convolutions with batch norm and a 1x1 convolution beside them, the average over all
places, and a linear layer: 4.8 million parameters.
"""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions with batch norm, and a 1x1 convolution beside them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
        self.norm3 = nn.BatchNorm2d(after)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations after the block, (samples, channels, height, width)."""
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        found: Tensor = self.relu2(inner + self.norm3(self.shortcut(x)))
        return found


def build(input_shape: tuple[int, ...], n_outputs: int, width: int) -> nn.Sequential:
    """Build the model.

    Args:
        input_shape: Shape of one sample, (channels, height, width).
        n_outputs: Number of outputs, e.g. classes.
        width: Channels of the first convolution; the blocks have 2, 4 and 8 times as many.
    """
    found = nn.Sequential()
    found.add_module("conv", nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False))
    found.add_module("norm", nn.BatchNorm2d(width))
    found.add_module("relu", nn.ReLU())
    for number, stride in enumerate((1, 2, 2), start=1):
        found.add_module(f"block{number}", Block(width << number - 1, width << number, stride))
    found.add_module("pool", nn.AdaptiveAvgPool2d(1))
    found.add_module("flatten", nn.Flatten())
    found.add_module("linear", nn.Linear(width << 3, n_outputs))
    return found
