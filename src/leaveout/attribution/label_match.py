"""Label match: 1 where the labels are equal, else 0. A baseline that looks at no model.

Formula: score[i, j] = [label_i = label_j].
Cost: none.
Approximated: everything. A better method's lead over it is what that method knows beyond labels.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from leaveout.attribution.task import Task

NEEDS = ()
"""It looks at no model."""


def attribute(task: Task) -> Iterator[Tensor]:
    """Yield [label_i = label_j], (train, test), in blocks of rows.

    Raises:
        NotComputableError: Samples have no classes.
    """
    classes = task.objective.need("classes", "samples have no classes that could match")
    test = classes(task.test.targets)
    for block in task.train_blocks():
        yield (classes(block.targets)[:, None] == test).to(task.like.dtype)


def self_influence(task: Task) -> Tensor:
    """Return 1 for every training sample, (train,): each has its own label."""
    task.objective.need("classes", "samples have no classes that could match")
    return task.like.new_ones(len(task.train))
