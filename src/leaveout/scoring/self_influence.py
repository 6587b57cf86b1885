"""Self-influence: the score of every training sample on itself, large for mislabelled ones.

A method may define ``self_influence(task, **hyper_parameters)`` beside ``attribute``; any other
scores blocks of training samples as if they were test samples, and score[i, i] is kept. The whole
matrix is never in memory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from leaveout.attribution.task import Task
from leaveout.config import Method, Scalar, Setting
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import n_parameters
from leaveout.scoring.limits import stopwatch
from leaveout.scoring.run import run_job, score_blocks
from leaveout.store.contents import Contents

BLOCK_BYTES = 256 << 20
"""The gradients of a block of samples, or their scores, take so much at most."""


def block_size(n_train: int, parameters: int) -> int:
    """Return how many training samples are scored at once as if they were test samples.

    As many as can be: each block costs a method its preparations, such as a Hessian.

    Args:
        n_train: Training samples.
        parameters: Numbers in a gradient.
    """
    return max(1, min(n_train, BLOCK_BYTES // (4 * max(n_train, parameters))))


def self_influence(
    module: ModuleType, task: Task, params: dict[str, Scalar], spent: list[float]
) -> NDArray[np.float32]:
    """Return score[i, i] by one method, each training sample being its own test sample.

    Args:
        module: The method's.
        task: The task; its test samples are not looked at.
        params: The hyper-parameters.
        spent: The seconds that the method took are added to it.

    Returns:
        (train,): positive where a sample helps itself. A large one is a sample the model would get
        wrong but for having seen it.

    Raises:
        LeaveoutError: The method returned something of another shape.
        NotComputableError: After the first block it is plain that all would take too long.
    """
    n_train = len(task.train)
    if own := getattr(module, "self_influence", None):
        start = time.perf_counter()
        found = own(task, **params)
        if not isinstance(found, torch.Tensor) or found.shape != (n_train,):
            what = tuple(found.shape) if hasattr(found, "shape") else type(found).__name__
            raise LeaveoutError(
                f"{module.__name__}.self_influence returned {what}, expected ({n_train},)"
            )
        values = found.to("cpu", torch.float32).numpy()
        spent.append(time.perf_counter() - start)
        return values
    parameters = n_parameters(task.module)
    size = block_size(n_train, parameters)
    parts = [slice(k, min(k + size, n_train)) for k in range(0, n_train, size)]
    first, *rest = parts
    # each block has its share of the time, so that a method that foresees how long it takes says so
    # in the first one, not hours later
    share = dataclasses.replace(task, seconds=task.seconds / len(parts))
    counted = stopwatch(task.train.device)
    try:
        found = [_diagonal(module, share, params, first, spent)]
    except NotComputableError as error:
        foreseen = error.reason == "time" and counted() < task.seconds
        if rest and foreseen:
            detail = f"for each of {len(parts)} blocks of samples, {error.detail}"
            raise NotComputableError("time", detail) from error
        raise
    expected = len(parts) * counted()
    if rest and expected > task.seconds:
        raise NotComputableError(
            "time",
            f"{len(parts)} blocks of samples would take {expected / 3600:.2g} hours, of "
            f"{task.seconds / 3600:.2g} allowed (attribution.hours)",
        )
    return np.concatenate([*found, *(_diagonal(module, share, params, k, spent) for k in rest)])


def _diagonal(
    module: ModuleType, task: Task, params: dict[str, Scalar], part: slice, spent: list[float]
) -> NDArray[np.float32]:
    """Return score[i, i] for the training samples of one block."""
    train = task.train
    block = train[part]
    shape = (len(train), len(block))
    seen = dataclasses.replace(task, test=block)
    rows: Iterator[NDArray[np.float32]] = score_blocks(
        lambda: module.attribute(seen, **params), shape, module.__name__, spent
    )
    found, first = np.empty(shape[1], dtype=np.float32), 0
    for scores in rows:
        own = np.arange(max(first, part.start), min(first + len(scores), part.stop))
        found[own - part.start] = scores[own - first, own - part.start]
        first += len(scores)
        if first >= part.stop:  # what the later samples do to these is not asked for
            break
    return found


def run_self_influence(
    setting: Setting,
    method: Method,
    params: dict[str, Scalar],
    data_path: Path,
    full_paths: Sequence[Path],
    half_paths: Sequence[Path],
    device: str,
) -> dict[str, Contents]:
    """Score training samples on themselves, by one grid point; see :func:`run.run_job`.

    Args:
        setting: The setting.
        method: The method.
        params: One point of its grid.
        data_path: The setting's ``data`` artefact.
        full_paths: Its full models.
        half_paths: Its half models, if the method needs them.
        device: ``cpu`` or ``cuda``.

    Returns:
        ``score``: a ``self_influence`` artefact, (train,); ``cost``: what it took, JSON. Writing
        the scores raises LeaveoutError if the method gives something of another shape.
    """

    def diagonal(
        module: ModuleType, task: Task, spent: list[float]
    ) -> Iterator[NDArray[np.float32]]:
        yield self_influence(module, task, params, spent)

    files = data_path, full_paths, half_paths
    return run_job("self_influence", ("train",), diagonal, setting, method, params, files, device)
