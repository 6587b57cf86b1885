"""Influence in compressed gradients: the Fisher matrix of each part is small enough to invert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from leaveout.errors import LeaveoutError

Some = TypeVar("Some")
"""Samples, as ``compress`` takes them."""


def compressed_scores(
    compress: Callable[[Some], Sequence[Tensor]],
    blocks: Callable[[], Iterable[Some]],
    right: Some,
    damping: float,
) -> Iterator[Tensor]:
    """Yield the sum over parts of g_i' (F + damping I)^-1 g_j, with F from the left samples.

    Args:
        compress: From samples to their gradients by part, (samples, numbers).
        blocks: Starts anew over the left samples, in blocks; they are gone through twice.
        right: Right samples.
        damping: Added to the diagonal of each part's Fisher matrix.

    Yields:
        (left samples of the block, right samples).

    Raises:
        LeaveoutError: F + damping I is not positive definite.
    """
    solved = solve_fisher(map(compress, blocks()), compress(right), damping)
    for samples in blocks():
        parts = compress(samples)
        total = parts[0].new_zeros(len(parts[0]), len(solved[0]))
        for g, x in zip(parts, solved, strict=True):
            total.addmm_(g, x.T)
        yield total


def solve_fisher(
    train: Iterable[Sequence[Tensor]], right: Sequence[Tensor], damping: float
) -> list[Tensor]:
    """Solve (F + damping I) x = b in each part of the parameters, in double precision.

    F is the empirical Fisher matrix: the mean of g g' over all training samples.

    Args:
        train: Blocks of training samples; of each, their gradients by part, (samples, numbers).
        right: b by part, (vectors, numbers).
        damping: Added to the diagonal.

    Returns:
        x by part, (vectors, numbers), in the dtype of ``right``.

    Raises:
        LeaveoutError: F + damping I is not positive definite.
    """
    fisher = [b.new_zeros(b.shape[1], b.shape[1], dtype=torch.float64) for b in right]
    count = 0
    for block in train:
        count += len(block[0])
        for matrix, g in zip(fisher, block, strict=True):
            double = g.double()
            matrix.addmm_(double.T, double)
    solved = []
    for matrix, b in zip(fisher, right, strict=True):
        matrix /= count
        matrix.diagonal().add_(damping)
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if failed and matrix.isfinite().all():
            raise LeaveoutError(
                f"the Fisher matrix plus damping = {damping:g} is singular; raise the damping"
            )
        solved.append(torch.cholesky_solve(b.double().T, lower).T.to(b.dtype))
    return solved
