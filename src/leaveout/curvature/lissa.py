"""LiSSA: a linear system with a mean of matrices, by a stochastic Neumann series.

Paper: Agarwal, Bullins and Hazan 2017, Second-Order Stochastic Optimization for Machine Learning in
Linear Time, arXiv:1602.03943; for influence functions Koh and Liang 2017, arXiv:1703.04730.
Formula: e <- v + e - (H_b e + damping e) / scaling from e = v, H_b the curvature of one mini-batch;
the answer is e / scaling. The fixed point of the mean recursion is e / scaling = (H + damping
I)^-1 v for any scaling, because the damping is divided by it, too. Other libraries do not divide
it, and tend to (H + scaling damping I)^-1 v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from leaveout.errors import NotComputableError

GROWTH = 10.0
"""How many times longer than a contraction can make it an answer may be before it counts as
diverged; a few slightly negative eigenvalues stay far below."""


def lissa(
    products: Iterable[Callable[[Tensor], Tensor]], vectors: Tensor, damping: float, scaling: float
) -> Tensor:
    """Return nearly (H + damping I)^-1 v for rows v.

    Args:
        products: For each step the function from rows v to rows H_b v. It converges in the mean
            where the eigenvalues of H + damping I lie between 0 and 2 x scaling.
        vectors: (vectors, size).
        damping: Added to the diagonal of H.
        scaling: Larger than half the largest eigenvalue.

    Returns:
        (vectors, size).

    Raises:
        NotComputableError: The recursion diverges.
    """
    estimate, steps = vectors.clone(), 0
    for product in products:
        change = product(estimate).add_(estimate, alpha=damping)
        estimate.add_(change, alpha=-1 / scaling).add_(vectors)
        steps += 1
    # if no step stretches, the answer is a sum of steps + 1 terms no longer than v
    most = GROWTH * (steps + 1) * vectors.norm(dim=1)
    lost = int((~(estimate.norm(dim=1) <= most)).sum())  # NaN counts
    if lost:
        raise NotComputableError(
            "undefined",
            f"LiSSA diverges for {lost} of {len(vectors)} vectors: scaling = {scaling:g} is less "
            "than half an eigenvalue of the curvature of its mini-batches, or the curvature has "
            "negative ones",
        )
    return estimate.div_(scaling)
