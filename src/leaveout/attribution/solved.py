"""Scores g_i' x_j of an inverse x_j = A^-1 g_j: test samples in blocks that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.gradients.per_sample import gradient_products, n_parameters, per_sample_gradients
from leaveout.problem.samples import Samples


def solved_scores(
    task: Task,
    solve: Callable[[Tensor], Tensor],
    matrices: int,
    products: Callable[[Samples, Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield g_i' x_j at the final state of full run 0, x_j what ``solve`` makes of g_j.

    Where all test gradients fit, training samples are gone through once. Otherwise once for each
    block of test samples, and the scores are held.

    Args:
        task: The task.
        solve: From rows v to rows A^-1 v, or near them, (vectors, parameters).
        matrices: How many numbers it holds for each of a vector's, v and its answer included.
        products: From training samples and x to their scores, where these are not g_i' x_j.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        NotComputableError: Not even one test sample's vectors fit.
    """
    model = task.module, task.full[0].final
    products = products or partial(gradient_products, *model)
    size = tests_at_once(task, matrices)
    if size >= len(task.test):
        solved = solve(per_sample_gradients(*model, task.test))
        for block in task.train_blocks():
            yield products(block, solved)
        return
    task.need(float(len(task.train) * len(task.test) * task.like.element_size()), "the scores")
    total = task.like.new_empty(len(task.train), len(task.test))
    for start in range(0, len(task.test), size):
        columns = slice(start, start + size)
        solved = solve(per_sample_gradients(*model, task.test[columns]))
        row = 0
        for block in task.train_blocks():
            total[row : row + len(block), columns] = products(block, solved)
            row += len(block)
        del solved  # or it would live on beside the next one
    sizes = [len(block) for block in task.train_blocks()]
    yield from torch.split(total, sizes)


def tests_at_once(task: Task, matrices: int) -> int:
    """Return for how many test samples some vectors of all parameters fit into ``task.room``.

    Args:
        task: The task.
        matrices: Vectors for each test sample.

    Raises:
        NotComputableError: Not even one test sample's fit into all memory that is allowed.
    """
    each = float(matrices * n_parameters(task.module) * task.like.element_size())
    task.need(each, f"one test sample's {matrices} vectors of all parameters")
    return max(1, int(task.room / each))
