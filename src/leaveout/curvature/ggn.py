"""Gauss-Newton-vector products of the mean loss, many vectors at once.

The Gauss-Newton matrix is G = mean_i J_i' Phi'' J_i, with J_i the Jacobian of sample i's outputs
and Phi'' the Hessian of its loss in the outputs, diag p - p p' under cross-entropy. It is the
Hessian of the linearised network, it is never indefinite, and it equals the Hessian where the
outputs are linear in the parameters (Schraudolph, Fast Curvature Matrix-Vector Products, Neural
Computation 2002; Martens, arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from leaveout.curvature.bregman import CROSS_ENTROPY
from leaveout.curvature.hvp import Products, at_once, products_of_rows
from leaveout.curvature.linearise import Linearised, linearise_module

State = Mapping[str, Tensor]


def gauss_newton_map(module: nn.Module, state: State, inputs: Tensor, _: Tensor) -> Products:
    """Return the products with the Gauss-Newton matrix of the mean loss, by ``torch.func``.

    The arguments are those of :func:`leaveout.curvature.hvp.hessian_map`; G does not depend on the
    labels.
    """
    names = {name for name, _ in module.named_parameters()}
    # one model, as linearise wants it: stacked
    one = {name: t.detach()[None] if name in names else t for name, t in state.items()}
    samples, count = at_once(inputs)

    def products(vectors: Tensor) -> Tensor:
        out = torch.zeros_like(vectors)
        for x in inputs.split(samples):
            product = partial(_product, linearise_module(module, one, x), len(inputs))
            out += products_of_rows(module, product, vectors, count)
        return out

    return products


def _product(there: Linearised, total: int, vectors: State) -> State:
    """Return the product with some samples' part of the matrix of ``total`` samples."""
    return there.pull(CROSS_ENTROPY.curve(there.outputs, there.push(vectors)).div_(total))
