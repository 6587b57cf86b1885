"""Random scores: the floor every method must beat.

Formula: score[i, j] ~ N(0, 1), independent. Cost: none. Its LDS and LOO correlation are 0 up to
noise, and show how wide that noise is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.seeds import generator

NEEDS = ()
"""It looks at no model."""


def attribute(task: Task) -> Iterator[Tensor]:
    """Draw scores from a stream of their own.

    Args:
        task: Gives the shape and the seed.

    Yields:
        (train, test), in blocks of rows.
    """
    rng = generator(task.seed, task.setting, "random scores")
    for block in task.train_blocks():
        shape = (len(block), len(task.test))
        yield torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
