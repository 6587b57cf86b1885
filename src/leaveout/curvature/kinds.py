"""The curvature matrices a method can be asked for, by name, and products with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from leaveout.config import nearest
from leaveout.curvature.ggn import gauss_newton_map
from leaveout.curvature.hvp import Products, hessian_map, stack_map
from leaveout.errors import LeaveoutError
from leaveout.problem.samples import Samples

State = Mapping[str, Tensor]

KINDS = {"hessian": hessian_map, "gauss_newton": gauss_newton_map}


def check_kind(kind: str) -> None:
    """Check the name of a curvature.

    Raises:
        LeaveoutError: It is unknown.
    """
    if kind not in KINDS:
        raise LeaveoutError(f"curvature: {kind!r} is unknown{nearest(kind, list(KINDS), 0)}")


def curvature_products(
    kind: str, module: nn.Module, state: State, samples: Samples, uses: int = 0
) -> Products:
    """Return the function from rows v to rows A v, A the curvature of the mean loss.

    Stacks of linear layers under cross-entropy take a hand-written way, anything else takes
    ``torch.func``.

    Args:
        kind: ``hessian`` or ``gauss_newton``.
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: The mean is over all of them.
        uses: How many vectors will be multiplied; this changes the speed only.

    Returns:
        From (vectors, parameters) to the same shape.

    Raises:
        LeaveoutError: The curvature is unknown.
    """
    check_kind(kind)
    by_hand = stack_map(module, state, samples, kind == "gauss_newton", uses)
    return by_hand or KINDS[kind](module, state, samples)


def minibatch_products(
    kind: str,
    module: nn.Module,
    state: State,
    samples: Samples,
    size: int,
    stream: np.random.Generator,
) -> Iterator[Products]:
    """Yield, without end, the products with the curvature of one random mini-batch after another.

    Args:
        kind: ``hessian`` or ``gauss_newton``.
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Batches are drawn by id, so that their order does not matter.
        size: Samples of a mini-batch, drawn without replacement.
        stream: What draws them.

    Yields:
        See :func:`curvature_products`.
    """
    by_id = np.argsort(samples.ids)
    while True:
        drawn = by_id[stream.choice(len(samples), size, replace=False)]
        chosen = torch.from_numpy(drawn).to(samples.device)
        yield curvature_products(kind, module, state, samples[chosen])
