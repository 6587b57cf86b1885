"""The curvature matrices a method can be asked for, by name, and products with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leaveout.config import nearest
from leaveout.curvature.ggn import gauss_newton_map
from leaveout.curvature.hvp import Products, hessian_map, stack_map
from leaveout.errors import LeaveoutError

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
    kind: str, module: nn.Module, state: State, inputs: Tensor, labels: Tensor, uses: int = 0
) -> Products:
    """Return the function from rows v to rows A v, A the curvature of the mean loss.

    Stacks of linear layers take a hand-written way, any other module takes ``torch.func``.

    Args:
        kind: ``hessian`` or ``gauss_newton``.
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...); the mean is over all of them.
        labels: (samples,).
        uses: How many vectors will be multiplied; this changes the speed only.

    Returns:
        From (vectors, parameters) to the same shape.

    Raises:
        LeaveoutError: The curvature is unknown.
    """
    check_kind(kind)
    samples = (module, state, inputs, labels)
    return stack_map(*samples, kind == "gauss_newton", uses) or KINDS[kind](*samples)


def minibatch_products(
    kind: str,
    module: nn.Module,
    state: State,
    samples: tuple[Tensor, Tensor, NDArray[np.int64]],
    size: int,
    stream: np.random.Generator,
) -> Iterator[Products]:
    """Yield, without end, the products with the curvature of one random mini-batch after another.

    Args:
        kind: ``hessian`` or ``gauss_newton``.
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Inputs, labels and ids. Batches are drawn by id, so that the order of the samples
            does not matter.
        size: Samples of a mini-batch, drawn without replacement.
        stream: What draws them.

    Yields:
        See :func:`curvature_products`.
    """
    inputs, labels, ids = samples
    by_id = np.argsort(ids)
    while True:
        drawn = by_id[stream.choice(len(ids), size, replace=False)]
        chosen = torch.from_numpy(drawn).to(labels.device)
        yield curvature_products(kind, module, state, inputs[chosen], labels[chosen])
