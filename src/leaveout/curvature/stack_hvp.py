"""Hessian- and Gauss-Newton-vector products of stacks of linear layers, by hand.

Pearlmutter's R operator (Fast Exact Multiplication by the Hessian, Neural Computation 1994) written
out for Linear and ReLU layers under cross-entropy, for many vectors at once. The first layer's
products are two matrix products over all vectors together, which is what makes it several times
faster than mapping ``jvp`` of ``grad``. Without the terms in the gradient of the outputs it is the
product with the Gauss-Newton matrix.

The network is made smaller first, without changing any product. Features that are the same in all
samples (every sixth of MNIST's pixels) act together, like a bias. Softmax does not change when a
number is added to all outputs, so the last output is subtracted from all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leaveout.curvature.constant_features import Features, split_features
from leaveout.curvature.first_layer import on_samples, pull, push
from leaveout.training.stack import Layer

State = Mapping[str, Tensor]
Vectors = dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """A smaller network on some samples, forward and backward.

    Attributes:
        inputs: The first layer's, (samples, features).
        active: The samples each unit of the first layer is on for; None where all are used.
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
        weights: Of each layer; in the last one the last class's are subtracted.
        features: Of the inputs.
        passes: Over the samples, some at once.
        share: Weight of each sample's loss.
    """

    layers: Sequence[Layer]
    weights: list[Tensor]
    features: Features
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
    features = split_features(inputs)
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
                inputs=x.index_select(1, features.varying),
                active=on_samples(below[1]) if len(layers) > 1 else None,
                below=[None, *below[1:]],
                probabilities=probabilities[:-1],
                deltas=deltas,
            )
        )
    weights[-1] = weights[-1][:-1] - weights[-1][-1]
    return Prepared(layers, weights, features, passes, 1 / len(inputs))


def stack_products(net: Prepared, vectors: State, gauss_newton: bool = False) -> Vectors:
    """Return H v for many vectors, H the Hessian of the mean loss.

    Args:
        net: From :func:`prepare`.
        vectors: For each parameter (vectors, *its shape).
        gauss_newton: Whether H is the Gauss-Newton matrix.

    Returns:
        Shaped as ``vectors``.
    """
    # unit by unit, (outputs, vectors, inputs): all products are then of two plain matrices
    weights = [vectors[f"{layer.name}.weight"].transpose(0, 1) for layer in net.layers]
    biases = [vectors[f"{layer.name}.bias"].T for layer in net.layers]
    weights[-1] = weights[-1][:-1] - weights[-1][-1]
    biases[-1] = biases[-1][:-1] - biases[-1][-1]
    weights[0], biases[0] = net.features.fold(weights[0], biases[0])
    weights = [weight.contiguous() for weight in weights]
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
        weight, bias = (t.mul_(net.share).transpose(0, 1) for t in (weight, bias))
        if number == 0:
            weight = net.features.unfold(weight, bias)
        if number == len(net.layers) - 1:
            weight, bias = (torch.cat([t, -t.sum(1, keepdim=True)], 1) for t in (weight, bias))
        products[f"{layer.name}.weight"], products[f"{layer.name}.bias"] = weight, bias
    return products


def _products(
    net: Prepared, known: Pass, weights: list[Tensor], biases: list[Tensor], gauss_newton: bool
) -> list[list[Tensor]]:
    """Return, for each layer of the smaller network, the products' weights and biases.

    Weights are (outputs, vectors, inputs), biases (outputs, vectors), and what happens to a layer's
    outputs (outputs, vectors, samples).
    """
    count, samples = weights[0].shape[1], len(known.inputs)
    moved: list[Tensor] = []  # R of the inputs of every layer but the first
    values = push(known.inputs, known.active, weights[0], biases[0])
    for number in range(1, len(weights)):
        below = known.below[number]
        assert below is not None
        moved.append(values.mul_((below > 0)[:, None]))
        values = torch.mm(weights[number].flatten(0, 1), below).view(-1, count * samples)
        values.addmm_(net.weights[number], moved[-1].flatten(1))
        values = values.view(-1, count, samples).add_(biases[number][:, :, None])
    # R of p - y, under softmax: p (z - <p, z>)
    p = known.probabilities[:, None]
    change = values.sub_((p * values).sum(0)).mul_(p)
    found = []
    for number in range(len(weights) - 1, 0, -1):
        below, delta = known.below[number], known.deltas[number]
        assert below is not None
        weight, bias = torch.mm(change.flatten(0, 1), below.T), change.sum(2)
        weight = weight.view(-1, count, len(below))
        change = torch.mm(net.weights[number].T, change.flatten(1)).view(-1, samples)
        if not gauss_newton:
            twisted = torch.mm(moved[number - 1].flatten(0, 1), delta.T)
            weight += twisted.view(-1, count, len(delta)).transpose(0, 2)
            change.addmm_(weights[number].transpose(0, 2).flatten(0, 1), delta)
        change = change.view(-1, count, samples).mul_((below > 0)[:, None])
        found.append([weight, bias])
    found.append([pull(known.inputs, known.active, change), change.sum(2)])
    return found[::-1]
