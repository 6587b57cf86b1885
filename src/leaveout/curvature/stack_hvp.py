"""Hessian- and Gauss-Newton-vector products of stacks of linear layers, by hand.

Pearlmutter's R operator (Fast Exact Multiplication by the Hessian, Neural Computation 1994) written
out for Linear and ReLU layers under cross-entropy, for many vectors at once. The first layer's
products are two matrix products over all vectors together, which is what makes it several times
faster than mapping ``jvp`` of ``grad``. Without the terms in the gradient of the outputs it is the
product with the Gauss-Newton matrix.

The network is made smaller first, by what changes no product: features that are the same in all
samples (of MNIST's pixels, every sixth) act together, like a bias; and as softmax ignores what is
added to all outputs, the last output is taken as the zero of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leaveout.curvature.first_layer import on_samples, pull, push
from leaveout.training.stack import Layer

State = Mapping[str, Tensor]
Vectors = dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """A smaller network on some samples, forward and backward.

    Attributes:
        inputs: The first layer's, (samples, features).
        active: The samples each unit of the first layer is on for, where that is to be used.
        below: Inputs of every other layer, (features, samples); the first is None.
        probabilities: Of all classes but the last, (classes - 1, samples).
        deltas: Gradient of the loss in each layer's outputs, (outputs, samples), the last layer's
            without the last class.
    """

    inputs: Tensor
    active: list[Tensor] | None
    below: list[Tensor | None]
    probabilities: Tensor
    deltas: list[Tensor]


@dataclass(frozen=True)
class Prepared:
    """A stack of layers on all samples, with what serves the products of any vectors.

    Attributes:
        layers: The network.
        weights: Of each layer, the last one's less those of the last class.
        varying: Features that differ between samples.
        constant: Features that do not.
        values: What those are.
        passes: Over the samples, some at once.
        share: Weight of each sample's loss.
    """

    layers: Sequence[Layer]
    weights: list[Tensor]
    varying: Tensor
    constant: Tensor
    values: Tensor
    passes: list[Pass]
    share: float


def prepare(
    layers: Sequence[Layer], state: State, inputs: Tensor, labels: Tensor, samples: int
) -> Prepared:
    """Run the network once, forward and backward.

    Args:
        layers: From :func:`leaveout.training.stack.parse`; dropout is left out.
        state: Parameters.
        inputs: (samples, features).
        labels: (samples,).
        samples: How many to take at once.
    """
    weights = [state[f"{layer.name}.weight"] for layer in layers]
    biases = [state[f"{layer.name}.bias"] for layer in layers]
    same = (inputs == inputs[0]).all(0)
    varying, constant = (~same).nonzero()[:, 0], same.nonzero()[:, 0]
    passes = []
    for x, y in zip(inputs.split(samples), labels.split(samples), strict=True):
        values, below = x.T, [x.T]
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            values = weight @ values + bias[:, None]
            if layers[number].hidden:
                values = values.relu()
                below.append(values)
        probabilities = torch.softmax(values, dim=0)
        delta = probabilities.clone()
        delta[y, torch.arange(len(y), device=y.device)] -= 1
        deltas = [delta]
        for number in range(len(layers) - 1, 0, -1):
            deltas.insert(0, (weights[number].T @ deltas[0]) * (below[number] > 0))
        deltas[-1] = deltas[-1][:-1]
        passes.append(
            Pass(
                inputs=x.index_select(1, varying),
                active=on_samples(below[1]) if len(layers) > 1 else None,
                below=[None, *below[1:]],
                probabilities=probabilities[:-1],
                deltas=deltas,
            )
        )
    weights[-1] = weights[-1][:-1] - weights[-1][-1]
    values = inputs[0].index_select(0, constant)
    return Prepared(layers, weights, varying, constant, values, passes, 1 / len(inputs))


def stack_products(net: Prepared, vectors: State, gauss_newton: bool = False) -> Vectors:
    """Return H v for many vectors, H the Hessian of the mean loss.

    Args:
        net: From :func:`prepare`.
        vectors: For each parameter (vectors, *its shape).
        gauss_newton: Whether H is the Gauss-Newton matrix.

    Returns:
        Shaped as ``vectors``.
    """
    weights = [vectors[f"{layer.name}.weight"] for layer in net.layers]
    biases = [vectors[f"{layer.name}.bias"] for layer in net.layers]
    weights[-1] = weights[-1][:, :-1] - weights[-1][:, -1:]
    biases[-1] = biases[-1][:, :-1] - biases[-1][:, -1:]
    if len(net.constant):
        biases[0] = biases[0] + weights[0].index_select(2, net.constant) @ net.values
        weights[0] = weights[0].index_select(2, net.varying)
    totals: list[list[Tensor]] = []
    for known in net.passes:
        found = _products(net, known, weights, biases, gauss_newton)
        if not totals:
            totals = found
        else:
            for total, part in zip(totals, found, strict=True):
                for a, b in zip(total, part, strict=True):
                    a += b
    products = {}
    for number, (layer, (weight, bias)) in enumerate(zip(net.layers, totals, strict=True)):
        weight, bias = weight * net.share, bias * net.share
        if number == 0 and len(net.constant):
            whole = weight.new_empty(*weight.shape[:2], len(net.varying) + len(net.constant))
            whole[:, :, net.varying] = weight
            whole[:, :, net.constant] = bias[:, :, None] * net.values
            weight = whole
        if number == len(net.layers) - 1:
            weight, bias = (torch.cat([t, -t.sum(1, keepdim=True)], 1) for t in (weight, bias))
        products[f"{layer.name}.weight"], products[f"{layer.name}.bias"] = weight, bias
    return products


def _products(
    net: Prepared, known: Pass, weights: list[Tensor], biases: list[Tensor], gauss_newton: bool
) -> list[list[Tensor]]:
    """Return, for each layer of the smaller network, the products' weights and biases."""
    moved: list[Tensor] = []  # R of the inputs of every layer but the first
    values = push(known.inputs, known.active, weights[0], biases[0])
    for number in range(1, len(weights)):
        below = known.below[number]
        assert below is not None
        moved.append(values.mul_(below > 0))
        values = torch.matmul(weights[number], below)
        values += torch.matmul(net.weights[number], moved[-1])
        values += biases[number][:, :, None]
    # R of p - y, under softmax: p (z - <p, z>)
    p = known.probabilities
    change = values.sub_((p * values).sum(1, keepdim=True)).mul_(p)
    found = []
    for number in range(len(weights) - 1, 0, -1):
        below, delta = known.below[number], known.deltas[number]
        assert below is not None
        weight, bias = torch.matmul(change, below.T), change.sum(2)
        change = torch.matmul(net.weights[number].T, change)
        if not gauss_newton:
            weight += torch.matmul(delta, moved[number - 1].transpose(1, 2))
            change += torch.matmul(weights[number].transpose(1, 2), delta)
        change *= below > 0
        found.append([weight, bias])
    found.append([pull(known.inputs, known.active, change), change.sum(2)])
    return found[::-1]
