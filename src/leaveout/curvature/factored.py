"""Per-sample gradients of matrix layers as factors, over the positions that a layer sees.

The gradient of sample i in a layer's weight (the bias as one more column) is sum_t d_it a_it'. In a
stack of linear layers there is one position; linear layers on sequences and convolutions have many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leaveout.curvature.kfac import empirical_fisher
from leaveout.curvature.kronecker import checked_layers
from leaveout.curvature.taps import Layer, sweep
from leaveout.errors import NotComputableError
from leaveout.gradients.factors import gradient_factors
from leaveout.problem.call import call_with, slow_paths
from leaveout.problem.samples import Samples

State = Mapping[str, Tensor]

FACTOR_BYTES = 64 << 20
"""Factors of all layers held at once, about."""


@dataclass(frozen=True)
class Sequences:
    """One layer's gradients of many samples.

    Attributes:
        name: The layer's name.
        inputs: a, with a one at the end where the layer has a bias: (samples, positions, in).
        deltas: d, (samples, positions, out).
    """

    name: str
    inputs: Tensor
    deltas: Tensor


def matrix_layers(module: nn.Module, state: State, samples: Samples) -> list[Layer]:
    """Return the matrix layers of a model, and what dimension of their inputs samples are.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Some, two at least: one alone does not tell where samples are.

    Raises:
        NotComputableError: One is used in a way that is not known, or there is none.
    """
    found = [layer for layer in checked_layers(module, state, samples) if layer.matrix]
    if not found:
        raise NotComputableError("undefined", "the model has no linear layer and no convolution")
    return found


def samples_at_once(factors: list[Sequences]) -> int:
    """Return of how many samples the factors take about ``FACTOR_BYTES``, from those of a few."""
    held = [value for f in factors for value in (f.inputs, f.deltas)]
    each = sum(value[0].numel() * value.element_size() for value in held)
    return max(1, FACTOR_BYTES // each)


def layer_factors(
    module: nn.Module, state: State, samples: Samples, layers: list[Layer]
) -> list[Sequences]:
    """Return the factors of every sample's gradient in each matrix layer that is used.

    Parameters of other layers (normalisations, embeddings, attention's own) have none.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose objective is differentiated.
        layers: From :func:`matrix_layers`.

    Raises:
        NotComputableError: There is no such layer.
    """
    plain = gradient_factors(module, state, samples)
    if plain is not None:
        return [
            Sequences(
                f.name,
                (
                    torch.cat([f.inputs, f.inputs.new_ones(len(f.inputs), 1)], 1)
                    if f.bias
                    else f.inputs
                )[:, None],
                f.deltas[:, None],
            )
            for f in plain
        ]

    def losses(module: nn.Module, batch: Samples) -> Tensor:
        with slow_paths():
            return batch.losses(call_with(module, state, batch.inputs))

    (seen,) = sweep(module, layers, [samples], empirical_fisher(losses))
    (deltas,) = seen.deltas
    if not deltas:
        raise NotComputableError("undefined", "the model has no linear layer and no convolution")
    return [Sequences(name, seen.inputs[name], d) for name, d in deltas.items()]
