"""Random projection of a linear layer's factored gradients, each factor by its own matrix.

<R a_i, R a_j> <Q d_i, Q d_j> has the expectation <a_i, a_j><d_i, d_j> for independent R and Q, so
the gradient d a' need not be formed at its full size (Pruthi et al. 2020, arXiv:2002.08484, in its
appendix).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leaveout.gradients.factors import Factor, form
from leaveout.seeds import generator


def project(factor: Factor, size: int, root: int, *identity: str | int) -> Tensor:
    """Project the gradients of one layer, and write out the products.

    Args:
        factor: The layer's gradients.
        size: Numbers to keep of a sample, at most; see :func:`projected_factor`.
        root: Root seed.
        *identity: Whose projection it is.

    Returns:
        (samples, numbers).
    """
    return form([projected_factor(factor, size, root, *identity)])


def projected_factor(factor: Factor, size: int, root: int, *identity: str | int) -> Factor:
    """Project the gradients of one layer, each factor by its own matrix.

    Args:
        factor: The layer's gradients.
        size: Numbers to keep of a sample, at most. Each factor keeps the square root of it, rounded
            down; one that has no more numbers is not projected.
        root: Root seed.
        *identity: Whose projection it is.

    Returns:
        The layer's gradients; the bias becomes one more input.
    """
    side = max(1, math.isqrt(size))
    a, d = factor.inputs, factor.deltas
    if factor.bias:
        a = torch.cat([a, a.new_ones(len(a), 1)], dim=1)
    kept = []
    for name, values in (("outputs", d), ("inputs", a)):
        if values.shape[1] > side:
            rng = generator(root, *identity, factor.name, name)
            matrix = rng.standard_normal((values.shape[1], side)) / math.sqrt(side)
            values = values @ torch.from_numpy(matrix).to(values)
        kept.append(values)
    return Factor(factor.name, kept[1], kept[0], bias=False)
