"""The curvature matrices a method can be asked for, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from leaveout.config import nearest
from leaveout.curvature.ggn import gauss_newton_map
from leaveout.curvature.hvp import hessian_map
from leaveout.errors import LeaveoutError

State = Mapping[str, Tensor]

KINDS = {"hessian": hessian_map, "gauss_newton": gauss_newton_map}


def check_kind(kind: str) -> None:
    """Check the name of a curvature.

    Raises:
        LeaveoutError: There is none of that name.
    """
    if kind not in KINDS:
        raise LeaveoutError(f"curvature: {kind!r} is unknown{nearest(kind, list(KINDS), 0)}")


def curvature_products(
    kind: str, module: nn.Module, state: State, inputs: Tensor, labels: Tensor, uses: int = 0
) -> Callable[[Tensor], Tensor]:
    """Return the function from rows v to rows A v, A the curvature of the mean loss.

    Args:
        kind: ``hessian`` or ``gauss_newton``.
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...); the mean is over all of them.
        labels: (samples,).
        uses: How many vectors are going to be multiplied; decides the speed only.

    Raises:
        LeaveoutError: There is no such curvature.
    """
    check_kind(kind)
    return KINDS[kind](module, state, inputs, labels, uses=uses)
