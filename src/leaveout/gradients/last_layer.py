"""Inner products of gradients in all layers, or in the last linear layer alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import factored_dots, factored_norms, gradient_factors
from leaveout.gradients.features import last_layer_gradients
from leaveout.gradients.per_sample import gradient_chunks, gradient_dots
from leaveout.gradients.projection_of_factors import project

Samples = tuple[Tensor, Tensor]
"""Inputs and labels."""

BLOCK = 4096
"""Samples whose factors are held at once."""


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
    _only_last(layers)
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
    _only_last_projected(layers)
    views = [
        project(last_layer_gradients(module, state, *samples)[0], size, root, *identity)
        for samples in (left, right)
    ]
    return views[0] @ views[1].T


def squared_norms(
    module: nn.Module,
    state: Mapping[str, Tensor],
    samples: Samples,
    layers: str,
    size: int = 0,
    root: int = 0,
    *identity: str | int,
) -> Tensor:
    """Return the inner product of each sample's gradient with itself, (samples,).

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Inputs and labels.
        layers: ``all`` or ``last``.
        size: With ``last``, numbers that a projection keeps, at most; 0 for none.
        root: Root seed.
        *identity: Whose projection it is.

    Raises:
        LeaveoutError: ``layers`` is something else.
    """
    found = []
    if size:
        _only_last_projected(layers)
    for x, y in zip(samples[0].split(BLOCK), samples[1].split(BLOCK), strict=True):
        if layers == "all":
            factors = gradient_factors(module, state, x, y)
        else:
            _only_last(layers)
            factors = last_layer_gradients(module, state, x, y)
        if factors is None:
            chunks = gradient_chunks(module, state, x, y)
            found += [gradients.square().sum(1) for _, gradients in chunks]
        elif size:
            found.append(project(factors[0], size, root, *identity).square().sum(1))
        else:
            found.append(factored_norms(factors).square())
    return torch.cat(found)


def _only_last(layers: str) -> None:
    if layers != "last":
        raise LeaveoutError(f"layers: {layers!r} is not one of all, last")


def _only_last_projected(layers: str) -> None:
    if layers != "last":
        raise LeaveoutError(
            "projection: only the last layer's gradients are projected; add `layers: last`"
        )
