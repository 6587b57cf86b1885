"""Hessian-vector products of softmax regression from its matrices, for very many vectors.

With a sample's inputs x (a one appended for the bias) and probabilities p, the Hessian's block of
two classes a and b is -M_ab, M_ab = mean p_a p_b x x', and as probabilities add up to one, so do
the blocks of a row to zero. So it acts like the Laplacian of a graph with matrices for weights,

    (H v)_a = sum_b M_ab (v_a - v_b),

and one product, of M_ab with v_a - v_b, serves both a and b. A vector then costs features^2 for
each pair of classes, however many the samples are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from leaveout.curvature.constant_features import Features, split_features
from leaveout.training.stack import Layer

State = Mapping[str, Tensor]

MATRIX_BYTES = 256 << 20
"""The matrices of all pairs, at most."""
STRIPES = 4
"""A symmetric matrix is summed below its diagonal only, in so many parts: 5/8 of it."""


@dataclass(frozen=True)
class Matrices:
    """The Hessian of softmax regression.

    Attributes:
        name: The layer's.
        features: Of its inputs.
        pairs: M_ab, a < b in order, (pairs, features + 1, features + 1); the last one is the bias.
    """

    name: str
    features: Features
    pairs: Tensor


def worthwhile(inputs: Tensor, classes: int, uses: int) -> bool:
    """Return whether matrices, and products with them, cost less than products sample by sample.

    Args:
        inputs: (samples, features).
        classes: How many there are.
        uses: Vectors that will be multiplied.
    """
    samples, width = len(inputs), inputs.shape[1] + 1
    pairs = classes * (classes - 1) / 2
    forming = (1 + 1 / STRIPES) / 2 * 2 * pairs * samples * width**2
    mine, other = 2 * pairs * width**2, 4 * samples * width * (classes - 1)
    return forming + uses * mine < uses * other and (
        pairs * width**2 * inputs.element_size() <= MATRIX_BYTES
    )


def prepare_matrices(layer: Layer, state: State, inputs: Tensor, samples: int) -> Matrices:
    """Sum the matrices over all samples.

    Args:
        layer: The only one.
        state: Parameters.
        inputs: (samples, features).
        samples: How many to take at once.
    """
    features = split_features(inputs)
    weight, bias = state[f"{layer.name}.weight"], state[f"{layer.name}.bias"]
    width = len(features.varying) + 1
    pairs = [*combinations(range(len(bias)), 2)]
    sums = inputs.new_zeros(len(pairs), width, width)
    edges = [width * k // STRIPES for k in range(STRIPES + 1)]
    for x in inputs.split(samples):
        p = torch.softmax(x @ weight.T + bias, dim=1).div_(len(inputs) ** 0.5)
        extended = x.new_ones(len(x), width)
        extended[:, :-1] = x.index_select(1, features.varying)
        for total, (a, b) in zip(sums, pairs, strict=True):
            share = p[:, a] * p[:, b]
            # a third of all samples are so far from both classes that they add rounding only
            kept = (share > torch.finfo(share.dtype).eps * share.mean()).nonzero()[:, 0]
            near = extended.index_select(0, kept)
            weighted = near * share[kept][:, None]
            for start, end in pairwise(edges):
                total[start:, start:end].addmm_(near[:, start:].T, weighted[:, start:end])
    for start, end in pairwise(edges):
        sums[:, start:end, end:] = sums[:, end:, start:end].transpose(1, 2)
    return Matrices(layer.name, features, sums)


def matrix_products(net: Matrices, vectors: State) -> dict[str, Tensor]:
    """Return H v for many vectors, H the Hessian of the mean loss.

    Args:
        net: From :func:`prepare_matrices`.
        vectors: For each parameter (vectors, *its shape).

    Returns:
        Shaped as ``vectors``.
    """
    names = f"{net.name}.weight", f"{net.name}.bias"
    # class by class, (classes, vectors, features + 1)
    weight, bias = (vectors[name].transpose(0, 1) for name in names)
    weight, bias = net.features.fold(weight, bias)
    given = torch.cat([weight, bias[..., None]], dim=2)
    found = torch.zeros_like(given)
    for matrix, (a, b) in zip(net.pairs, combinations(range(len(given)), 2), strict=True):
        product = (given[a] - given[b]) @ matrix
        found[a] += product
        found[b] -= product
    weight, bias = found[..., :-1].transpose(0, 1), found[..., -1].T
    return dict(zip(names, (net.features.unfold(weight, bias), bias), strict=True))
