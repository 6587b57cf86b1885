"""Samples from what a training loop has: tensors, a Dataset, a DataLoader."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from leaveout.errors import LeaveoutError
from leaveout.problem.call import call, slow_paths
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.randomness import preserved
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, join, tree_map
from leaveout.tracing.batches import as_batches

Given = Any
"""``(inputs, targets)``, a ``Dataset``, a ``DataLoader`` of a fixed order, or ``Samples``."""


def samples_of(given: Given, objective: Objective, what: str) -> Samples:
    """Return samples with an objective.

    Args:
        given: ``(inputs, targets)``, trees of tensors or arrays with a row a sample; a ``Dataset``
            of such pairs, or a ``DataLoader`` that keeps their order, whose batches are pairs or
            several inputs and, last, targets; or ``Samples``, whose ids are kept.
        objective: What is asked of them.
        what: Its name, for errors.

    Raises:
        LeaveoutError: It is something else, or its order is not fixed.
    """
    if isinstance(given, Samples):
        return given.asked(objective)
    if isinstance(given, DataLoader):
        pairs = [_pair(batch, what) for batch in as_batches(given, 0, what)]
        if not pairs:
            raise LeaveoutError(f"{what}: the loader is empty")
        inputs, targets = join(pairs)
        return Samples(inputs, targets, objective)
    if isinstance(given, Dataset):
        if not hasattr(given, "__len__") or not len(given):
            raise LeaveoutError(f"{what}: a Dataset with a length, and some samples, is needed")
        items = [given[k] for k in range(len(given))]
        try:
            given = default_collate(items)
        except (RuntimeError, TypeError) as error:
            raise LeaveoutError(
                f"{what}: its samples can't be put together ({error}); bring them to one length"
            ) from error
    inputs, targets = _pair(given, what)
    return Samples(_tensors(inputs), _tensors(targets), objective)


def tried(model: nn.Module, samples: Samples, what: str) -> None:
    """Run a model, and take its loss, on a few samples.

    Args:
        model: In evaluation mode.
        samples: With the objective that is asked of them.
        what: Their name, for errors.

    Raises:
        LeaveoutError: Something does not fit together; says what torch says of it.
    """
    places = sorted({*np.linspace(0, len(samples) - 1, 16).astype(int).tolist()})
    some = samples[torch.tensor(places, device=samples.device)]
    try:
        with preserved(), torch.no_grad(), slow_paths():
            some.losses(call(model, some.inputs))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        raise LeaveoutError(
            f"{what}: the model and the loss can't be taken of these samples "
            f"({type(error).__name__}: {error})"
        ) from error


def plainly(samples: Samples, loss: Any) -> Samples:
    """Take torch's cross-entropy without options for what it is: there are faster ways for it.

    Args:
        samples: Their targets tell whether each sample has one class.
        loss: What was given for their objective.
    """
    targets = samples.targets
    if (
        type(loss) is nn.CrossEntropyLoss
        and loss.weight is None
        and not loss.label_smoothing
        and isinstance(targets, torch.Tensor)
        and targets.dim() == 1
        and not targets.is_floating_point()
        and bool((targets >= 0).all())
        and loss.ignore_index < 0
    ):
        return samples.asked(CROSS_ENTROPY)
    return samples


def _pair(batch: Any, what: str) -> tuple[Tree, Tree]:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise LeaveoutError(
            f"{what}: expected (inputs, targets), a Dataset or a DataLoader of such pairs, or "
            f"Samples; got {type(batch).__name__}. Inputs may be a dictionary: ({{...}}, targets)"
        )
    *inputs, targets = batch
    return inputs[0] if len(inputs) == 1 else tuple(inputs), targets


def _tensors(tree: Tree) -> Tree:
    """Turn NumPy arrays into tensors."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree)
    if isinstance(tree, dict):
        return {key: _tensors(item) for key, item in tree.items()}
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return type(tree)(_tensors(item) for item in tree)
    return tree_map(lambda value: value, tree)
