"""Products of a first hidden layer with its inputs, sparing the samples a unit is off for.

The first layer of a stack holds most of its parameters. A unit whose ReLU is off for a sample
passes neither a change nor a gradient, so each unit is multiplied with the samples it is on for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BUSY = 0.75
"""Share of samples that units are on for from which on sparing the others gains nothing."""


def on_samples(after: Tensor) -> list[Tensor] | None:
    """Return the samples each unit is on for, or None where sparing the others gains nothing.

    Args:
        after: Outputs of the ReLU, (units, samples).
    """
    on = after > 0
    return [row.nonzero()[:, 0] for row in on] if float(on.float().mean()) < BUSY else None


def push(inputs: Tensor, active: Sequence[Tensor] | None, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the changes of all units, 0 or anything for a sample the unit is off for.

    Args:
        inputs: (samples, features).
        active: From :func:`on_samples`.
        weight: Changes of the weights, (units, vectors, features).
        bias: Changes of the biases, (units, vectors).

    Returns:
        (units, vectors, samples).
    """
    units, count, _ = weight.shape
    if active is None:
        found = (weight.flatten(0, 1) @ inputs.T).view(units, count, -1)
        return found.add_(bias[:, :, None])
    found = weight.new_zeros(units, count, len(inputs))
    for unit, chosen in enumerate(active):
        there = inputs.index_select(0, chosen)
        part = torch.addmm(bias[unit][:, None], weight[unit], there.T)
        found[unit].index_copy_(1, chosen, part)
    return found


def pull(inputs: Tensor, active: Sequence[Tensor] | None, change: Tensor) -> Tensor:
    """Return the gradients of the weights.

    Args:
        inputs: (samples, features).
        active: From :func:`on_samples`.
        change: Gradients in the outputs, (units, vectors, samples), 0 where a unit is off.

    Returns:
        (units, vectors, features).
    """
    units, count, _ = change.shape
    if active is None:
        return (change.flatten(0, 1) @ inputs).view(units, count, -1)
    found = change.new_empty(units, count, inputs.shape[1])
    for unit, chosen in enumerate(active):
        there = inputs.index_select(0, chosen)
        torch.mm(change[unit].index_select(1, chosen), there, out=found[unit])
    return found
