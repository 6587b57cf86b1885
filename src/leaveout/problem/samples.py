"""Samples: inputs and targets in rows, their ids, and the objective that is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaveout.errors import LeaveoutError
from leaveout.problem.objective import Objective
from leaveout.problem.trees import Tree, floating, rows, tensors, tree_map


@dataclass(frozen=True)
class Samples:
    """Rows of inputs and targets.

    What is asked of a sample, one number a sample, goes with it: of training samples their loss, of
    test samples what is attributed. So no function that differentiates them can take the wrong one.

    Attributes:
        inputs: What the model takes, see :mod:`leaveout.problem.call`.
        targets: What the objective takes beside the outputs.
        objective: What is asked.
        ids: (samples,), int64; by default their numbers.

    Raises:
        LeaveoutError: A tensor has another number of rows than the first; names it.

    Example:
        >>> Samples(torch.randn(8, 3), torch.arange(8) % 2, CROSS_ENTROPY)[2:4].ids
        array([2, 3])
    """

    inputs: Tree
    targets: Tree
    objective: Objective
    ids: NDArray[np.int64] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        """Number the samples, and see that all tensors have as many rows."""
        found = tensors((self.inputs, self.targets))
        if not found:
            raise LeaveoutError("samples: neither inputs nor targets hold a tensor with rows")
        n = len(found[0])
        if self.ids is None:
            object.__setattr__(self, "ids", np.arange(n, dtype=np.int64))
        for number, value in enumerate(found):
            if len(value) != n:
                raise LeaveoutError(
                    f"samples: tensor {number} of inputs and targets has {len(value)} rows, shape "
                    f"{tuple(value.shape)}; the first has {n}. Each needs a row a sample; what all "
                    "samples share belongs into the model, or has no dimension"
                )
        if len(self.ids) != n:
            raise LeaveoutError(f"samples: {len(self.ids)} ids for {n} samples")

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.ids)

    def __getitem__(self, part: slice | Sequence[int] | Tensor) -> Samples:
        """Take some, in the order given."""
        places = part.cpu().numpy() if isinstance(part, Tensor) else part
        inputs, targets = rows(self.inputs, part), rows(self.targets, part)
        return Samples(inputs, targets, self.objective, self.ids[places])

    def split(self, size: int) -> Iterator[Samples]:
        """Yield consecutive parts of at most so many."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device | str) -> Samples:
        """Move them to a device."""
        inputs, targets = tree_map(lambda v: v.to(device), (self.inputs, self.targets))
        return Samples(inputs, targets, self.objective, self.ids)

    def double(self) -> Samples:
        """Return them with floating-point numbers in float64."""
        inputs, targets = floating((self.inputs, self.targets), torch.float64)
        return Samples(inputs, targets, self.objective, self.ids)

    def asked(self, objective: Objective) -> Samples:
        """Return the same samples with another objective."""
        return replace(self, objective=objective)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return tensors((self.inputs, self.targets))[0].device

    def losses(self, outputs: Any) -> Tensor:
        """Return what the objective says of each sample, (samples,), from the model's outputs."""
        return self.objective.losses(outputs, self.targets)
