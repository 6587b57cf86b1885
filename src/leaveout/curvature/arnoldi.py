"""A symmetric matrix in a Krylov space: Arnoldi's iteration, orthogonalised in full.

Paper: Arnoldi 1951; for influence functions Schioppa et al. 2021, Scaling Up Influence Functions,
arXiv:2112.03052. For a symmetric matrix it is Lanczos' iteration; every new vector is made
orthogonal to all earlier ones, twice, or rounding would bring converged eigenvectors back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ritz_pairs(
    product: Callable[[Tensor], Tensor], start: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the Ritz values and vectors of a symmetric matrix A, largest magnitude first.

    Args:
        product: Returns A v for rows v, (vectors, size) -> (vectors, size).
        start: (size,), not zero.
        iterations: Dimension of the Krylov space {start, A start, A^2 start, ...}. It is smaller
            where that space is invariant, as it is when it is the whole one.

    Returns:
        Values in float64, (found,), and orthonormal vectors as rows, (found, size).
    """
    epsilon = torch.finfo(start.dtype).eps
    count = min(iterations, len(start))
    basis = start.new_zeros(count, len(start))
    inner = torch.zeros(count, count, dtype=torch.float64, device=start.device)
    fresh, scale = start / start.norm(), 0.0
    for k in range(count):
        basis[k] = fresh
        moved = product(basis[k : k + 1])[0]
        scale = max(scale, float(moved.norm()))
        known = basis[: k + 1]
        for _ in range(2):  # twice is enough (Kahan; Parlett, The Symmetric Eigenvalue Problem)
            parts = known @ moved
            inner[: k + 1, k] += parts.double()
            moved = moved - parts @ known
        length = moved.norm()
        if k + 1 == count:
            break
        if length <= 10 * epsilon * len(start) ** 0.5 * scale:
            # nothing is left but rounding: the space is invariant
            basis, inner = basis[: k + 1], inner[: k + 1, : k + 1]
            break
        fresh = moved / length
    values, vectors = torch.linalg.eigh(inner, UPLO="U")
    order = values.abs().argsort(descending=True)
    return values[order], vectors[:, order].T.to(basis.dtype) @ basis
