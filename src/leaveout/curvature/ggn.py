"""Gauss-Newton-vector products of the mean loss, many vectors at once.

The Gauss-Newton matrix is G = mean_i J_i' Phi'' J_i, with J_i the Jacobian of sample i's outputs
and Phi'' the Hessian of its loss in the outputs, diag p - p p' under cross-entropy. It is what is
left of the Hessian when the network is linearised, is never indefinite, and equals the Hessian
where the outputs are linear in the parameters (Schraudolph, Fast Curvature Matrix-Vector Products,
Neural Computation 2002; Martens, arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from leaveout.curvature.bregman import CROSS_ENTROPY
from leaveout.curvature.hvp import Products, at_once, products_of_rows, stack_map
from leaveout.curvature.linearise import Linearised, linearise_module

State = Mapping[str, Tensor]


def gauss_newton_map(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    by_hand: bool = True,
    uses: int = 0,
) -> Products:
    """Return the function from rows v to rows G v, G the mean loss's Gauss-Newton matrix.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,); G does not depend on them, and the argument is there so that this and
            :func:`leaveout.curvature.hvp.hessian_map` are called alike.
        by_hand: Whether stacks of linear layers take the hand-written way; any other module takes
            ``torch.func``.
        uses: How many vectors are going to be multiplied; decides the speed only.

    Returns:
        From (vectors, parameters) to the same shape.
    """
    found = stack_map(module, state, inputs, labels, True, uses) if by_hand else None
    if found is not None:
        return found
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


def gauss_newton_products(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    vectors: Tensor,
    by_hand: bool = True,
) -> Tensor:
    """Return G v for many vectors, (vectors, parameters); see :func:`gauss_newton_map`."""
    return gauss_newton_map(module, state, inputs, labels, by_hand, len(vectors))(vectors)
