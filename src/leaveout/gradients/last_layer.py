"""Inner products of gradients in all layers, or in the last linear layer alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import factored_dots
from leaveout.gradients.features import last_layer_gradients
from leaveout.gradients.per_sample import gradient_dots
from leaveout.gradients.projection_of_factors import project

Samples = tuple[Tensor, Tensor]
"""Inputs and labels."""


def layer_dots(
    module: nn.Module, state: Mapping[str, Tensor], left: Samples, right: Samples, layers: str
) -> Tensor:
    """Return the inner products of the gradients of two sets of samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        left: Inputs and labels.
        right: Inputs and labels.
        layers: ``all`` or ``last``.

    Returns:
        (left samples, right samples).

    Raises:
        LeaveoutError: ``layers`` is something else.
    """
    if layers == "all":
        return gradient_dots(module, state, left, right)
    if layers != "last":
        raise LeaveoutError(f"layers: {layers!r} is not one of all, last")
    a, b = (last_layer_gradients(module, state, *samples) for samples in (left, right))
    return factored_dots(a, b)


def projected_dots(
    module: nn.Module,
    state: Mapping[str, Tensor],
    left: Samples,
    right: Samples,
    layers: str,
    size: int,
    root: int,
    *identity: str | int,
) -> Tensor:
    """Return the same for the last layer, between random projections of the gradients.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        left: Inputs and labels.
        right: Inputs and labels.
        layers: ``last``.
        size: Numbers kept of a gradient, at most.
        root: Root seed.
        *identity: Whose projection it is.

    Raises:
        LeaveoutError: All layers are asked for.
    """
    if layers != "last":
        raise LeaveoutError(
            "projection: only the last layer's gradients are projected; add `layers: last`"
        )
    views = [
        project(last_layer_gradients(module, state, *samples)[0], size, root, *identity)
        for samples in (left, right)
    ]
    return views[0] @ views[1].T
