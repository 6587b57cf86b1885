"""Products of a layer that sees the samples themselves, which wait for all checkpoints.

Such a layer's inputs a are the same at every checkpoint, so sum_c lr_c <a_i, a_j><d_i(c), d_j(c)>
is <a_i, a_j><D_i, D_j> with the d of all checkpoints side by side: two products instead of two a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from leaveout.gradients.factors import Factor, factored_dots
from leaveout.gradients.rules import Part
from leaveout.problem.trees import tensors

Place = tuple[int, int]
"""First row and first column of some scores."""


@dataclass(frozen=True)
class _Pair:
    """One layer's gradients of two sets of samples at a checkpoint, and its learning rate."""

    rate: float
    left: Factor
    right: Factor

    def where(self) -> tuple[Any, ...]:
        """Return the layer, and where its inputs lie."""
        places = [
            (a.data_ptr(), a.shape, a.stride()) for a in (self.left.inputs, self.right.inputs)
        ]
        return self.left.name, *places


@dataclass
class Waiting:
    """Pairs whose products are still to be taken.

    Attributes:
        pairs: By place, in the order of checkpoints.
        taken: Bytes of their output gradients; those in several pairs count several times.
    """

    pairs: dict[Place, list[_Pair]] = field(default_factory=dict)
    taken: int = 0

    def add(self, place: Place, rate: float, left: Factor, right: Factor) -> None:
        """Let a pair wait."""
        self.pairs.setdefault(place, []).append(_Pair(rate, left, right))
        self.taken += left.deltas.nbytes + right.deltas.nbytes

    def add_to(self, scores: Tensor) -> None:
        """Add all products to the scores; nothing waits any more."""
        for (row, column), pairs in self.pairs.items():
            pairs.sort(key=lambda pair: pair.left.name)
            for _, alike in groupby(pairs, _Pair.where):
                found = _merged_dots(list(alike))
                scores[row : row + len(found), column : column + found.shape[1]] += found
        self.pairs.clear()
        self.taken = 0


def sees_samples(part: Part, batch: Any) -> bool:
    """Return whether a layer's inputs are the batch's own memory, whatever the checkpoint."""
    if not isinstance(part, Factor):
        return False
    own = part.inputs.untyped_storage().data_ptr()
    return any(value.untyped_storage().data_ptr() == own for value in tensors(batch))


def _merged_dots(pairs: Sequence[_Pair]) -> Tensor:
    left = torch.cat([pair.left.deltas * pair.rate for pair in pairs], dim=1)
    right = torch.cat([pair.right.deltas for pair in pairs], dim=1)
    first = pairs[0]
    return factored_dots([replace(first.left, deltas=left)], [replace(first.right, deltas=right)])
