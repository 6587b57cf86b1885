"""Logistic regression: one linear layer on the flattened input."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn


def build(input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
    """Build the model.

    Args:
        input_shape: Shape of one sample.
        n_outputs: Number of outputs, e.g. classes.
    """
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(math.prod(input_shape), n_outputs))
    )
