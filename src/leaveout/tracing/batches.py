"""Training data as batches in a fixed order, and losses as one number a sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from leaveout.errors import LeaveoutError
from leaveout.gradients.parts import Losses, Shared
from leaveout.problem.objective import Objective
from leaveout.problem.randomness import preserved
from leaveout.problem.torch_losses import KNOWN, OF_SAMPLES, objective_of, one_at_a_time
from leaveout.problem.trees import tensors, tree_map

Batch = Sequence[Any]
"""Arguments of the model and, last, targets."""


RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
FEW = 8
"""Of so few samples two random orders may well be the same: more passes are compared."""


class Slices:
    """Batches of a ``TensorDataset``, which need no copying sample by sample."""

    def __init__(self, dataset: TensorDataset, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.dataset), self.batch_size):
            yield self.dataset[start : start + self.batch_size]


def as_batches(data: Any, batch_size: int, what: str) -> Iterable[Batch]:
    """Return data as batches in a fixed order.

    Args:
        data: A ``DataLoader``, whose batches are kept, or a ``Dataset``.
        batch_size: Samples of a batch of a ``Dataset``.
        what: Its name, for messages.

    Raises:
        LeaveoutError: The order is not fixed, so that indices would mean nothing.
    """
    if isinstance(data, DataLoader):
        if not _is_ordered(data):
            raise LeaveoutError(
                f"{what}: the DataLoader gives its samples in another order each time, so that "
                "indices of them would mean nothing; make it with shuffle=False, and without a "
                "sampler that draws"
            )
        return data
    if type(data) is TensorDataset:
        return Slices(data, batch_size)
    if not isinstance(data, Dataset):
        raise LeaveoutError(f"{what}: expected a Dataset or DataLoader, got {type(data).__name__}")
    return as_batches(DataLoader(data, batch_size=batch_size), batch_size, what)


def _is_ordered(loader: DataLoader[Any]) -> bool:
    """Return whether two passes give the same samples in the same order.

    Samplers are asked for their indices, streams for their first samples. Generators are given
    back as they were.
    """
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    draws = [s for s in (sampler, getattr(sampler, "sampler", None)) if s is not None]
    if any(isinstance(s, RANDOM) for s in (*draws, loader.sampler)):
        return False
    generators = {
        id(g): g
        for s in (loader, loader.sampler, *draws)
        if isinstance(g := getattr(s, "generator", None), torch.Generator)
    }
    states = [(g, g.get_state()) for g in generators.values()]
    with preserved():
        try:
            if isinstance(loader.dataset, IterableDataset):
                first, second = ([*islice(iter(loader.dataset), FEW)] for _ in range(2))
                return _same(first, second)
            if type(sampler) is BatchSampler:
                sampler = sampler.sampler  # it only cuts what that one gives
            if type(sampler) is SequentialSampler:
                return True
            first = [*sampler]
            passes = 1 if len(first) > FEW else FEW
            return all(_same(first, [*sampler]) for _ in range(passes))
        finally:
            for generator, state in states:
                generator.set_state(state)


def _same(left: Any, right: Any) -> bool:
    """Return whether two items are equal; arrays by their values."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and bool(((left == right) | (left != left)).all())
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.shape == right.shape and bool(((left == right) | (left != left)).all())
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    plain = isinstance(left, int | float | str | bytes | np.generic)
    return not plain or bool(left == right) or left != left  # of other types nothing is known


def placed(
    batch: Any, device: torch.device, what: str, shared: Collection[int] = ()
) -> tuple[Batch, int]:
    """Move a batch to the model's device.

    Args:
        batch: Arguments of the model and, last, targets.
        device: Where it goes.
        what: Its name, for messages.
        shared: Positions of the arguments that all samples share.

    Returns:
        The batch and its number of samples.

    Raises:
        LeaveoutError: It is no tuple or list, holds no tensor, or an item has other rows than the
            targets, or is a list of texts.
    """
    wrong = LeaveoutError(
        f"{what}: expected a batch (arguments of the model ..., targets), tensors with a row "
        f"a sample, got {type(batch).__name__}"
    )
    if not isinstance(batch, tuple | list):
        raise wrong
    last = len(batch) - 1
    odd = [k for k in shared if not 0 <= k < last]
    if odd:
        raise LeaveoutError(f"shared: {odd} are no positions of the model's {last} arguments")
    moved = [tree_map(lambda value: value.to(device), item) for item in batch]
    items = [Shared(item) if k in shared else item for k, item in enumerate(moved)]
    if not tensors(items):
        raise wrong
    reference = tensors(items[last]) or tensors(items)
    n = len(reference[0])
    for k, item in enumerate(items):
        where = f"{what}: item {k} of a batch, {'the targets' if k == last else 'an argument'},"
        how = "" if k == last else f"; if all samples share it, name it in shared=[{k}]"
        for value in tensors(item):
            if len(value) != n:
                raise LeaveoutError(
                    f"{where} has shape {tuple(value.shape)}, {len(value)} rows; other items have "
                    f"{n}. The first dimension must be the samples{how}"
                )
        if _texts(item):
            raise LeaveoutError(
                f"{where} is a list of texts, which have no gradient of their own; turn them into "
                f"tensors where the data are loaded{how}"
            )
    return items, n


def _texts(item: Any) -> bool:
    if isinstance(item, dict):
        return any(_texts(value) for value in item.values())
    if isinstance(item, list | tuple):
        return any(isinstance(value, str | bytes) or _texts(value) for value in item)
    return False


def per_sample(loss_fn: Callable[..., Tensor] | Objective | str | None, name: str) -> Losses:
    """Return a loss function as one that gives the loss of each sample, however it reduces.

    torch's own losses are asked for what every number of a sample gives, with the weights of
    classes or elements; a mean is divided by the numbers of a sample, which are as many for all, so
    that it is proportional to the sum. Any other function is called on each sample alone, unless
    its ``reduction`` is ``"none"``: a mean or a sum over one sample is that sample's loss.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``; None if the model itself returns losses.
        name: Its name, for messages.
    """
    if loss_fn is None:
        return lambda outputs, targets: _own_rows(outputs, targets)
    if isinstance(loss_fn, Objective | str):
        return objective_of(loss_fn).losses
    kind, reduction = type(loss_fn), getattr(loss_fn, "reduction", None)
    if kind in KNOWN and (reduction != "none" or kind in (nn.CrossEntropyLoss, nn.NLLLoss)):
        asked = objective_of(loss_fn).losses
        return _Mean(asked, loss_fn, name) if reduction == "mean" else asked
    if reduction == "none":
        return lambda o, t: _rows(loss_fn(o, t), len(tensors(o)[0]), name)
    return one_at_a_time(loss_fn, name)


class _Mean:
    """A sum over a sample's numbers, divided by how many these are, the same for all samples."""

    def __init__(self, asked: Losses, loss: Any, name: str) -> None:
        self.asked, self.kind, self.name = asked, type(loss), name
        self.numbers: int | None = None

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        found = self.asked(outputs, targets)
        numbers = self._count(outputs, targets)
        if self.numbers not in (None, numbers):
            raise LeaveoutError(
                f"{self.name}: some samples have {self.numbers} numbers, some {numbers}, so that "
                "means over them can't be compared; use reduction='sum'"
            )
        self.numbers = numbers
        return found / numbers

    def _count(self, outputs: Any, targets: Tensor) -> int:
        numbers = targets[0].numel()
        if self.kind is nn.CrossEntropyLoss and targets.is_floating_point():
            return numbers // targets.shape[1]  # of probabilities: positions
        return 1 if self.kind in OF_SAMPLES else numbers


def _own_rows(outputs: Any, targets: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise LeaveoutError(
            f"the model returned {type(outputs).__name__}; without loss_fn it must return one "
            "number a sample, a tensor"
        )
    found = tensors(targets)
    n = len(found[0]) if found else outputs.numel()
    if outputs.numel() != n:
        raise LeaveoutError(
            f"the model gave {tuple(outputs.shape)} for {n} samples; without loss_fn it must "
            "return one number a sample, such as by reduction='none', no mean over a batch"
        )
    return outputs.reshape(n)


def _rows(losses: Tensor, count: int, name: str) -> Tensor:
    if losses.numel() != count:
        raise LeaveoutError(
            f"{name}: gave {tuple(losses.shape)} for {count} samples; it must return one number a "
            "sample, or their mean or sum"
        )
    return losses.reshape(count)
