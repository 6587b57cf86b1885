"""The spectrum of a large symmetric matrix, from products with it alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PROBES, STEPS = 8, 40


def spectral_density(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Estimate a spectrum by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    The sum of ``weights * f(values)`` estimates tr f(A). Its error falls with the square root of
    the probes; for an f that is smooth on the scale of the spectrum, exponentially with the steps,
    and it has none beyond rounding left where the steps are as many as the distinct eigenvalues.
    New directions are made orthogonal to all before, twice, so that no eigenvalue comes twice.

    Args:
        product: Returns A v for rows v, (probes, size) -> (probes, size); A symmetric.
        start: Random signs, one probe a row, (probes, size).
        steps: Products at most.

    Returns:
        (values, weights), each (probes x steps,) in float64; the weights sum to the size.
    """
    probes, size = start.shape
    steps = min(steps, size)
    basis = start.new_empty(probes, steps, size)
    band = torch.zeros(probes, steps, steps, dtype=torch.float64)
    # an exhausted probe continues with zeros, which have no weight
    tiny = 100 * torch.finfo(start.dtype).eps
    vector = start / start.norm(dim=1, keepdim=True)
    scale = torch.zeros(probes, dtype=start.dtype, device=start.device)
    for k in range(steps):
        basis[:, k] = vector
        moved = product(vector)
        along = (vector * moved).sum(1)
        band[:, k, k] = along.double().cpu()
        scale = torch.maximum(scale, moved.norm(dim=1))
        for _ in range(2):
            known = basis[:, : k + 1]
            moved = moved - ((known @ moved[:, :, None]).mT @ known)[:, 0]
        beyond = moved.norm(dim=1)
        beyond = torch.where(beyond > tiny * scale, beyond, 0)
        if k + 1 < steps:
            band[:, k, k + 1] = band[:, k + 1, k] = beyond.double().cpu()
        vector = (
            torch.where(beyond > 0, 1 / beyond.clamp_min(torch.finfo(beyond.dtype).tiny), 0)[
                :, None
            ]
            * moved
        )
    values, vectors = torch.linalg.eigh(band)
    weights = vectors[:, 0].square() * size / probes
    return values.flatten(), weights.flatten()


def effective_dimension(values: Tensor, weights: Tensor, damping: float) -> float:
    """Return tr A (A + damping I)^-1 from a spectral density; negative values count as zero."""
    positive = values.clamp_min(0)
    return float((weights * positive / (positive + damping)).sum())
