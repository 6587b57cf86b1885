"""Hessian-vector products of stacks of linear layers, by hand.

Pearlmutter's R operator (Fast Exact Multiplication by the Hessian, Neural Computation 1994) written
out for Linear and ReLU layers under cross-entropy, for many vectors at once. The first layer's
products are two matrix products over all vectors together, which is what makes it several times
faster than mapping ``jvp`` of ``grad``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leaveout.training.stack import Layer

State = Mapping[str, Tensor]
Pass = tuple[Tensor, list[Tensor], list[Tensor]]


def forward_backward(
    layers: Sequence[Layer], state: State, inputs: Tensor, labels: Tensor, share: float
) -> Pass:
    """Run the network once, forward and backward; its result serves all vectors.

    Args:
        layers: From :func:`leaveout.training.stack.parse`; dropout is left out.
        state: Parameters.
        inputs: (samples, features).
        labels: (samples,).
        share: Weight of each sample's loss, such as 1 / n.

    Returns:
        Probabilities (classes, samples), inputs of each layer (features, samples), and share times
        the gradient in each layer's outputs, (outputs, samples).
    """
    values, below = inputs.T, []
    for layer in layers:
        below.append(values)
        values = state[f"{layer.name}.weight"] @ values + state[f"{layer.name}.bias"][:, None]
        if layer.hidden:
            values = values.relu()
    probabilities = torch.softmax(values, dim=0)
    delta = probabilities.clone()
    delta[labels, torch.arange(len(labels), device=labels.device)] -= 1
    delta *= share
    deltas = [delta]
    for number in range(len(layers) - 1, 0, -1):
        delta = (state[f"{layers[number].name}.weight"].T @ delta) * (below[number] > 0)
        deltas.insert(0, delta)
    return probabilities, below, deltas


def stack_products(
    layers: Sequence[Layer], state: State, known: Pass, vectors: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return H v for many vectors, H the Hessian of ``share`` times the sum of losses.

    Args:
        layers: The network.
        state: Parameters.
        known: From :func:`forward_backward`.
        vectors: For each parameter (vectors, *its shape).
        share: As given to :func:`forward_backward`.

    Returns:
        Shaped as ``vectors``.
    """
    probabilities, below, deltas = known
    moved: list[Tensor | None] = [None]  # R of each layer's inputs, (vectors, features, samples)
    values = probabilities
    for number, layer in enumerate(layers):
        v = vectors[f"{layer.name}.weight"]
        values = (v.flatten(0, 1) @ below[number]).view(len(v), -1, below[number].shape[1])
        values += vectors[f"{layer.name}.bias"][:, :, None]
        last = moved[-1]
        if last is not None:
            values += state[f"{layer.name}.weight"] @ last
        if layer.hidden:
            values *= below[number + 1] > 0
            moved.append(values)
    # R of p - y, under softmax: p (z - <p, z>)
    change = probabilities * (values - (probabilities * values).sum(1, keepdim=True)) * share
    products = {}
    for number in range(len(layers) - 1, -1, -1):
        name = layers[number].name
        v = vectors[f"{name}.weight"]
        weight = (change.flatten(0, 1) @ below[number].T).view_as(v)
        last = moved[number]
        if last is not None:
            weight = weight + deltas[number] @ last.transpose(1, 2)
        products[f"{name}.weight"] = weight
        products[f"{name}.bias"] = change.sum(2)
        if number > 0:
            change = state[f"{name}.weight"].T @ change
            change += v.transpose(1, 2) @ deltas[number]
            change *= below[number] > 0
    return products
