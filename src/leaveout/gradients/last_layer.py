"""Squared norms of gradients in all layers, or in the last linear layer alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import factored_norms, gradient_factors
from leaveout.gradients.features import last_layer_gradients
from leaveout.gradients.per_sample import gradient_chunks
from leaveout.gradients.projection_of_factors import project
from leaveout.problem.samples import Samples

BLOCK = 4096
"""Samples whose factors are held at once."""


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
        samples: Whose objective is differentiated.
        layers: ``all`` or ``last``.
        size: With ``last``, numbers that a projection keeps, at most; 0 for none.
        root: Root seed.
        *identity: Whose projection it is.

    Raises:
        LeaveoutError: ``layers`` is something else, or all layers are to be projected.
    """
    check_layers(layers, size > 0)
    found = []
    for part in samples.split(BLOCK):
        if layers == "all":
            factors = gradient_factors(module, state, part)
        else:
            factors = last_layer_gradients(module, state, part)
        if factors is None:
            chunks = gradient_chunks(module, state, part)
            found += [gradients.square().sum(1) for _, gradients in chunks]
        elif size:
            found.append(project(factors[0], size, root, *identity).square().sum(1))
        else:
            found.append(factored_norms(factors).square())
    return torch.cat(found)


def check_layers(layers: str, projected: bool) -> None:
    """Check which layers' gradients are asked for.

    Raises:
        LeaveoutError: Neither all nor the last one's, or projections of all.
    """
    if layers not in ("all", "last"):
        raise LeaveoutError(f"layers: {layers!r} is not one of all, last")
    if projected and layers != "last":
        raise LeaveoutError(
            "projection: only the last layer's gradients are projected; add `layers: last`"
        )
