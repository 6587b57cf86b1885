"""How a model is called: one tensor, several in order, or several by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from leaveout.errors import LeaveoutError
from leaveout.problem.trees import Tree

State = Mapping[str, Tensor]
"""Parameters and buffers by name."""


def arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how inputs are handed to a model: in order and by name.

    A mapping goes by name, a tuple or list in order, anything else as the one argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def call(module: nn.Module, inputs: Tree) -> Any:
    """Return the outputs of a model."""
    args, named = arguments(inputs)
    return module(*args, **named)


def call_with(module: nn.Module, state: State, inputs: Tree) -> Any:
    """Return the outputs of a model whose parameters and buffers are replaced."""
    args, named = arguments(inputs)
    return functional_call(module, dict(state), args, named)


def numbers(module: nn.Module, state: State | None = None) -> Tensor:
    """Return an empty tensor of the dtype, and on the device, that results of a model have.

    They come from its parameters, never from its inputs: those may be token ids.
    """
    known = dict(module.named_parameters())
    values = (known[name] if state is None else state[name] for name in known)
    found = next((value for value in values if value.is_floating_point()), None)
    if found is None:
        raise LeaveoutError("the model has no parameters, so there is nothing to differentiate in")
    return found.detach().new_empty(0)
