"""Gauss-Newton-vector products of the mean loss, many vectors at once.

The Gauss-Newton matrix is G = mean_i J_i' Phi'' J_i, with J_i the Jacobian of sample i's outputs
and Phi'' the Hessian of its loss in the outputs: diag p - p p' under cross-entropy, p (1 - p) of a
logit, 1 under half the squared error. It is the
Hessian of the linearised network, it is never indefinite, and it equals the Hessian where the
outputs are linear in the parameters (Schraudolph, Fast Curvature Matrix-Vector Products, Neural
Computation 2002; Martens, arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from leaveout.curvature.bregman import Loss, loss_of
from leaveout.curvature.hvp import Products, at_once, products_of_rows
from leaveout.curvature.linearise import Linearised, linearise_module, output_shape
from leaveout.problem.call import parts_of
from leaveout.problem.samples import Samples

State = Mapping[str, Tensor]


def gauss_newton_map(module: nn.Module, state: State, samples: Samples) -> Products:
    """Return the products with the Gauss-Newton matrix of the mean loss, by ``torch.func``.

    The arguments are those of :func:`leaveout.curvature.hvp.hessian_map`.

    Raises:
        NotComputableError: The objective states no curvature.
    """
    params, fixed = parts_of(module, state)
    # one model, as linearise wants it: stacked
    one = {**{name: value[None] for name, value in params.items()}, **fixed}
    shape = output_shape(module, state, samples)
    size, count = at_once(module, state, samples)

    def products(vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)
        for part in samples.split(size):
            there, loss = linearise_module(module, one, part), loss_of(part, shape)
            product = partial(_product, there, loss, len(samples))
            out += products_of_rows(module, product, vectors, count)
        return out

    return products


def _product(there: Linearised, loss: Loss, total: int, vectors: State) -> State:
    """Return the product with some samples' part of the matrix of ``total`` samples."""
    return there.pull(loss.curve(there.outputs, there.push(vectors)).div_(total))
