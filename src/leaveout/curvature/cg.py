"""Conjugate gradients for many right-hand sides at once (Hestenes and Stiefel 1952)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    iterations: int,
    tolerance: float | Tensor = 1e-7,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Solve A x = b for many b with the same symmetric matrix A, from x = 0.

    A column stops where its residual has fallen below ``tolerance`` times its right-hand side, or
    where its direction has no positive curvature (A is then not positive definite along it): going
    on would divide by zero and turn it into NaN.

    Args:
        product: Returns A v for rows v, (columns, size) -> (columns, size).
        right: Right-hand sides, (columns, size).
        iterations: Products at most.
        tolerance: Relative residual at which a column has converged, one or (columns,).
        precondition: Returns M^-1 r for rows r, M symmetric, positive definite and near A.

    Returns:
        x, (columns, size).
    """
    x = torch.zeros_like(right)
    residual = right.clone()
    squares = _dots(residual, residual)
    target = squares * tolerance**2
    going = squares > target
    near = residual if precondition is None else precondition(residual)
    norms = squares if precondition is None else _dots(residual, near)
    direction = near.clone()
    for k in range(iterations):
        if not going.any():
            break
        moved = product(direction)
        curvature = _dots(direction, moved)
        going &= curvature > 0
        step = torch.where(going, norms / torch.where(going, curvature, 1), 0)[:, None]
        x.addcmul_(step, direction)
        if k + 1 == iterations:
            break
        residual.addcmul_(step, moved, value=-1)
        squares = _dots(residual, residual)
        going &= squares > target
        near = residual if precondition is None else precondition(residual)
        fresh = squares if precondition is None else _dots(residual, near)
        ratio = torch.where(going, fresh / torch.where(norms > 0, norms, 1), 0)
        direction.mul_(ratio[:, None]).add_(near)
        norms = fresh
    return x


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner products of rows, without a matrix of their products."""
    found: Tensor = torch.linalg.vecdot(left, right)
    return found
