"""Gauss-Newton-vector products of the mean loss, many vectors at once.

The Gauss-Newton matrix is G = mean_i J_i' Phi'' J_i, with J_i the Jacobian of sample i's outputs
and Phi'' the Hessian of its loss in the outputs, diag p - p p' under cross-entropy. It is what is
left of the Hessian when the network is linearised, is never indefinite, and equals the Hessian
where the outputs are linear in the parameters (Schraudolph, Fast Curvature Matrix-Vector Products,
Neural Computation 2002; Martens, arXiv:1412.1193).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from leaveout.curvature.bregman import CROSS_ENTROPY
from leaveout.curvature.hvp import at_once, products_of_rows
from leaveout.curvature.linearise import Linearised, linearise_module
from leaveout.curvature.stack_hvp import prepare, stack_products
from leaveout.training.stack import parse

State = Mapping[str, Tensor]


def gauss_newton_products(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    vectors: Tensor,
    by_hand: bool = True,
) -> Tensor:
    """Return G v for many vectors, G the Gauss-Newton matrix of the mean loss over the samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,); G does not depend on them, and the argument is there so that this and
            :func:`leaveout.curvature.hvp.hessian_products` are called alike.
        vectors: (vectors, parameters).
        by_hand: Whether stacks of linear layers take the hand-written way; any other module takes
            ``torch.func``.

    Returns:
        (vectors, parameters).
    """
    samples, count = at_once(inputs, vectors)
    layers = parse(module) if by_hand else None
    if layers is not None:
        params = {name: state[name].detach() for name, _ in module.named_parameters()}
        net = prepare(layers, params, inputs.flatten(1), labels, samples)
        return products_of_rows(module, lambda v: stack_products(net, v, True), vectors, count)
    names = {name for name, _ in module.named_parameters()}
    # one model, as linearise wants it: stacked
    one = {name: t.detach()[None] if name in names else t for name, t in state.items()}
    out = torch.zeros_like(vectors)
    for x in inputs.split(samples):
        there = linearise_module(module, one, x)

        def product(v: State, there: Linearised = there) -> State:
            curved = CROSS_ENTROPY.curve(there.outputs, there.push(v))
            return there.pull(curved.div_(len(inputs)))

        out += products_of_rows(module, product, vectors, count)
    return out
