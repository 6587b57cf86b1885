"""Build the architecture that a setting names, or that a module of the user's returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from leaveout.config import CNN, GPT, MLP, Linear, Model, Own, OwnModel, ResNet9, Setting
from leaveout.errors import LeaveoutError
from leaveout.models import cnn, gpt, linear, mlp, resnet9
from leaveout.problem.randomness import seeded
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, tensors, tree_map
from leaveout.problem.user import call_own


def build_model(model: Model, input_shape: Any, n_outputs: int) -> nn.Module:
    """Build a freshly initialised model from its configuration, with torch's own initialisation.

    Args:
        model: The architecture section of a setting.
        input_shape: Shape of one sample; a tree of shapes where inputs are a tree.
        n_outputs: Number of outputs, e.g. classes.

    Raises:
        LeaveoutError: The architecture can't take such inputs, or the user's function returned no
            model.
    """
    if isinstance(model, OwnModel):
        made = call_own(model, input_shape=input_shape, n_outputs=n_outputs)
        if not isinstance(made, nn.Module):
            raise LeaveoutError(
                f"model: {model.module}.{model.function} returned {type(made).__name__}; expected "
                "a torch.nn.Module"
            )
        return made
    _check_shape(model, input_shape)
    match model:
        case Linear():
            return linear.build(input_shape, n_outputs)
        case MLP(hidden=hidden, dropout=dropout, activation=activation):
            return mlp.build(input_shape, n_outputs, hidden, dropout, activation)
        case CNN(channels=channels, batch_norm=batch_norm):
            return cnn.build(input_shape, n_outputs, channels, batch_norm)
        case ResNet9(width=width):
            return resnet9.build(input_shape, n_outputs, width)
        case GPT():
            return gpt.build(
                model.vocabulary,
                model.context,
                model.layers,
                model.heads,
                model.width,
                model.dropout,
                model.bias,
                model.tied,
            )


_DIMS = {"cnn": (3, "images, (channels, height, width)"), "gpt": (1, "token ids, (positions,)")}
_DIMS["resnet9"] = _DIMS["cnn"]


def _check_shape(model: Any, shape: Any) -> None:
    """Refuse inputs that an architecture can't take.

    Raises:
        LeaveoutError: Says what it takes.
    """
    whole = isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
    dims, what = _DIMS.get(model.name, (None, "one tensor"))
    if not whole or (dims is not None and len(shape) != dims):
        raise LeaveoutError(
            f"model: {model.name} takes {what}; a sample's inputs are {shape}. Choose another "
            "model, or give a module of your own"
        )
    if model.name == "gpt" and shape[0] > model.context:
        raise LeaveoutError(
            f"model.context: {model.context} positions at most, and samples have {shape[0]}"
        )


def initialise(model: Model, input_shape: Any, n_outputs: int, seed: int) -> nn.Module:
    """Build a model whose initial weights depend on ``seed`` alone.

    The weights are drawn on the CPU, so that every device starts from the same ones, and torch's
    global generator is left as it was.

    Args:
        model: The architecture section of a setting.
        input_shape: Shape of one sample; a tree of shapes where inputs are a tree.
        n_outputs: Number of outputs.
        seed: Integer seed, see :func:`leaveout.seeds.torch_seed`.
    """
    with seeded(seed, "model"):  # a user's function can draw from other generators than torch's
        torch.manual_seed(seed)
        return build_model(model, input_shape, n_outputs)


def builder(
    setting: Setting, train: Samples, test: Samples, n_classes: int | None
) -> Callable[[int], nn.Module]:
    """Return what builds a setting's models from an integer seed.

    Args:
        setting: Its model and objective.
        train: Training samples, which say what a model takes.
        test: Test samples.
        n_classes: How many classes there are, where each sample has one.
    """
    shape = tree_map(lambda value: tuple(value.shape[1:]), train.inputs)
    outputs = n_outputs(setting, train.targets, test.targets, n_classes)
    return lambda seed: initialise(setting.model, shape, outputs, seed)


def n_outputs(setting: Setting, train: Tree, test: Tree, n_classes: int | None) -> int:
    """Return how many numbers a model gives for a sample, or for a position of one.

    Classes are as many as the data say, or one more than the largest that occurs; logits and
    numbers as many as a sample's targets.
    """
    asked = "" if isinstance(setting.objective, Own) else setting.objective.name
    if asked == "binary_cross_entropy":
        return 1
    found = [*tensors(train), *tensors(test)]
    if asked in ("squared_error", "multi_label") or _are_numbers(found):
        return math.prod(found[0].shape[1:]) if found else 1
    return n_classes or 1 + max(int(value.max()) for value in found)


def _are_numbers(found: list[Tensor]) -> bool:
    return not found or any(
        value.is_floating_point() or value.dtype == torch.bool for value in found
    )
