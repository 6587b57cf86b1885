"""The explicit Hessian, or Gauss-Newton matrix, of the mean loss, for small models."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leaveout.curvature.kinds import check_kind, curvature_products
from leaveout.gradients.per_sample import n_parameters
from leaveout.problem.call import numbers, trained
from leaveout.problem.samples import Samples
from leaveout.training.stack import stack_of

State = Mapping[str, Tensor]


def hessian(module: nn.Module, state: State, samples: Samples, kind: str = "hessian") -> Tensor:
    """Return the Hessian of the mean loss, or its Gauss-Newton part, in float64.

    For one linear layer under cross-entropy both are the closed form mean_i (diag p_i - p_i p_i')
    kron x_i x_i', in blocks of classes; otherwise it is assembled from products with unit vectors.
    No second array of its size is held.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Whose losses the mean is of.
        kind: ``hessian`` or ``gauss_newton``.

    Returns:
        (parameters, parameters), symmetric.

    Raises:
        LeaveoutError: The curvature is unknown.
    """
    state = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    module, samples = copy.deepcopy(module).double(), samples.double()
    check_kind(kind)
    layers = stack_of(module, samples)
    if layers is not None and len(layers) == 1 and len(trained(module)) == 2:
        name = layers[0].name
        flat = samples.inputs.flatten(1)
        return _softmax_hessian(state[f"{name}.weight"], state[f"{name}.bias"], flat)
    product = curvature_products(kind, module, state, samples)
    size = n_parameters(module)
    like = numbers(module, state)
    out = like.new_empty(size, size)
    step = 64
    for start in range(0, size, step):
        unit = like.new_zeros(min(step, size - start), size)
        unit[torch.arange(len(unit)), start + torch.arange(len(unit))] = 1
        out[start : start + step] = product(unit)
    # symmetric to the last digit, block by block: a sum with the transpose takes its size twice
    for start in range(0, size, step):
        rows = slice(start, start + step)
        mean = (out[rows, start:] + out[start:, rows].T) / 2
        out[rows, start:] = mean
        out[start:, rows] = mean.T
    return out


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
