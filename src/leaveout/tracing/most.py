"""The largest scores of each row, kept while columns stream by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from leaveout.errors import LeaveoutError


class KMostInfluentialResults(NamedTuple):
    """The training samples with the highest (or lowest) scores.

    Attributes:
        indices: Positions in the training data, (test, k), int64; the most influential first.
        influence_scores: Their scores, (test, k).
    """

    indices: Tensor
    influence_scores: Tensor


def most_influential(
    blocks: Iterable[Tensor], k: int, proponents: bool = True
) -> KMostInfluentialResults:
    """Find the k highest (or lowest) scores of each row; of equal ones, the first in the data.

    Args:
        blocks: Scores of consecutive training samples, (test, some of them).
        k: How many; all, if there are fewer.
        proponents: Whether to find the highest; else the lowest.

    Raises:
        LeaveoutError: A score is NaN, ``k`` is not positive, or there are no blocks.
    """
    if k < 1:
        raise LeaveoutError(f"k: {k} was asked for, at least 1 is needed")
    best: Tensor | None = None
    where, seen = torch.empty(0), 0
    for block in blocks:
        missing = int(block.isnan().sum())
        if missing:
            raise LeaveoutError(
                f"{missing} scores of training samples {seen} to {seen + block.shape[1] - 1} are "
                "NaN, so none is the most influential; look at their losses and gradients"
            )
        ids = torch.arange(seen, seen + block.shape[1], device=block.device).expand_as(block)
        seen += block.shape[1]
        values = block if proponents else -block
        if best is not None:
            values, ids = torch.cat([best, values], 1), torch.cat([where, ids], 1)
        best, where = _first_largest(values, ids, k)
    if best is None:
        raise LeaveoutError("train_dataset: it is empty")
    best, order = best.sort(dim=1, descending=True, stable=True)
    return KMostInfluentialResults(where.gather(1, order), best if proponents else -best)


def _first_largest(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k largest of each row, in their order; of equal ones the first."""
    if values.shape[1] <= k:
        return values, ids
    # topk alone would choose among equal ones as it likes
    least = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > least, values == least
    wanted = k - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= wanted))
    return values[chosen].view(-1, k), ids[chosen].view(-1, k)
