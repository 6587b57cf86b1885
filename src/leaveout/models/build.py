"""Build the architecture that a setting names."""

from __future__ import annotations

import torch
from torch import nn

from leaveout.config import CNN, MLP, Linear, Model
from leaveout.models import cnn, linear, mlp


def build_model(model: Model, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """Build a freshly initialised model from its configuration, with torch's own initialisation.

    Args:
        model: The architecture section of a setting.
        input_shape: Shape of one sample.
        n_outputs: Number of outputs, e.g. classes.
    """
    match model:
        case Linear():
            return linear.build(input_shape, n_outputs)
        case MLP(hidden=hidden, dropout=dropout):
            return mlp.build(input_shape, n_outputs, hidden, dropout)
        case CNN(channels=channels, batch_norm=batch_norm):
            return cnn.build(input_shape, n_outputs, channels, batch_norm)


def initialise(model: Model, input_shape: tuple[int, ...], n_outputs: int, seed: int) -> nn.Module:
    """Build a model whose initial weights depend on ``seed`` alone.

    The weights are drawn on the CPU, so that every device starts from the same ones, and torch's
    global generator is left as it was.

    Args:
        model: The architecture section of a setting.
        input_shape: Shape of one sample.
        n_outputs: Number of outputs.
        seed: Integer seed, see :func:`leaveout.seeds.torch_seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(model, input_shape, n_outputs)
