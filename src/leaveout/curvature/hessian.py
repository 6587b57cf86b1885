"""The explicit Hessian of the mean loss, for small models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leaveout.curvature.hvp import hessian_products
from leaveout.gradients.per_sample import n_parameters
from leaveout.training.stack import parse

State = Mapping[str, Tensor]


def hessian(module: nn.Module, state: State, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the Hessian of the mean loss, in float64.

    For one linear layer it is the closed form mean_i (diag p_i - p_i p_i') kron x_i x_i', in blocks
    of classes; otherwise it is assembled from Hessian-vector products with unit vectors.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).

    Returns:
        (parameters, parameters), symmetric.
    """
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    inputs = inputs.double()
    layers = parse(module)
    if layers is not None and len(layers) == 1:
        name = layers[0].name
        return _softmax_hessian(state[f"{name}.weight"], state[f"{name}.bias"], inputs.flatten(1))
    size = n_parameters(module)
    out = inputs.new_empty(size, size)
    step = 64
    for start in range(0, size, step):
        unit = inputs.new_zeros(min(step, size - start), size)
        unit[torch.arange(len(unit)), start + torch.arange(len(unit))] = 1
        out[start : start + step] = hessian_products(module, state, inputs, labels, unit)
    return (out + out.T) / 2


def _softmax_hessian(weight: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
    """Return the Hessian of softmax regression; parameters: weight (class by class), then bias.

    Args:
        weight: (classes, features).
        bias: (classes,).
        inputs: (samples, features).
    """
    classes, features = weight.shape
    probabilities = torch.softmax(inputs @ weight.T + bias, dim=1)
    extended = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    size = classes * (features + 1)
    out = inputs.new_empty(size, size)
    # where the weights of a class and its bias stand
    place = [
        torch.cat(
            [
                torch.arange(c * features, (c + 1) * features, device=inputs.device),
                torch.tensor([classes * features + c], device=inputs.device),
            ]
        )
        for c in range(classes)
    ]
    for a in range(classes):
        for b in range(a + 1):
            p, q = probabilities[:, a], probabilities[:, b]
            share = p - p * q if a == b else -p * q
            block = extended.T @ (extended * (share / len(inputs))[:, None])
            out[place[a][:, None], place[b]] = block
            out[place[b][:, None], place[a]] = block.T
    return out
