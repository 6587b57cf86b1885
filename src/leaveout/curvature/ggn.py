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
from leaveout.curvature.hvp import at_once, split
from leaveout.curvature.linearise import Linearised, linearise_module, linearise_stack
from leaveout.training.memory import in_blocks
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
    names = [name for name, _ in module.named_parameters()]
    # one model, as linearise wants it: stacked
    one = {name: value.detach() for name, value in state.items()}
    one.update({name: one[name][None] for name in names})
    layers = parse(module) if by_hand else None
    samples, count = at_once(inputs, vectors)
    out = torch.zeros_like(vectors)
    for start in range(0, len(inputs), samples):
        x = inputs[start : start + samples]
        if layers is None:
            there = linearise_module(module, one, x)
        else:
            there = linearise_stack(layers, one, x.flatten(1).T)

        def work(rows: slice, there: Linearised = there) -> Tensor:
            pushed = there.push(split(module, vectors[rows]))
            found = there.pull(CROSS_ENTROPY.curve(there.outputs, pushed).div_(len(inputs)))
            return torch.cat([found[name].flatten(1) for name in names], dim=1)

        for rows, found in in_blocks(work, len(vectors), count, "vectors multiplied at once"):
            out[rows] += found
    return out
