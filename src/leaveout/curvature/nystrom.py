"""A preconditioner from a random sketch of a matrix that is known by its products.

Paper: Frangella, Tropp and Udell 2021, Randomized Nyström Preconditioning, arXiv:2110.02820.
Formula: with Y = A Omega for a random Omega, A is near Y (Omega' Y)^-1 Y', which takes its largest
eigenvalues along; by Woodbury, (that + shift I)^-1 = (I - Y (shift Omega' Y + Y' Y)^-1 Y') / shift.
Cost: ``rank`` products once, and 4 x size x rank operations a use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def nystrom(
    product: Callable[[Tensor], Tensor], like: Tensor, rank: int, shift: float, at_once: int
) -> Callable[[Tensor], Tensor]:
    """Return a function near (A + shift I)^-1, A symmetric and positive semi-definite.

    Args:
        product: Returns A v for rows v, (vectors, size) -> (vectors, size).
        like: (size,), on the device and of the dtype of the vectors.
        rank: Columns of the sketch.
        shift: Positive.
        at_once: Vectors multiplied at once.

    Returns:
        From rows (vectors, size) to rows of the same shape.
    """
    generator = torch.Generator().manual_seed(0)  # any sketch: it decides the speed only
    sketch = torch.randn(rank, len(like), generator=generator, dtype=like.dtype).to(like.device)
    if rank >= len(like):
        sketch = torch.eye(len(like), dtype=like.dtype, device=like.device)
    rows = torch.cat([product(part) for part in sketch.split(at_once)])
    core = _gram(sketch, rows)
    core = shift * (core + core.T) / 2 + _gram(rows, rows)
    # what rounding may have made of the smallest eigenvalues, which are almost 0
    core.diagonal().add_(core.diagonal().max() * 16 * torch.finfo(like.dtype).eps)
    lower = torch.linalg.cholesky(core)

    def solve(vectors: Tensor) -> Tensor:
        inner = torch.cholesky_solve((rows @ vectors.T).double(), lower).to(vectors.dtype)
        return (vectors - inner.T @ rows) / shift

    return solve


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """Return left right', summed in float64 over blocks of columns."""
    size = 1 << 14
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for a, b in zip(left.split(size, dim=1), right.split(size, dim=1), strict=True):
        total += a.double() @ b.double().T
    return total
