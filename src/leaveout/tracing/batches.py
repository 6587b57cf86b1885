"""Training data as batches, and losses as one number a sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

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
from leaveout.gradients.parts import Losses
from leaveout.problem.randomness import preserved
from leaveout.problem.torch_losses import one_at_a_time
from leaveout.problem.trees import tensors, tree_map

Batch = Sequence[Any]
"""Arguments of the model and, last, targets."""


DRAWING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def _in_fixed_order(loader: DataLoader[Any]) -> bool:
    """Return whether a loader gives its samples in one order, whenever it is gone through.

    Samplers that draw are known; others, and datasets without indices, are gone through twice.
    """
    if isinstance(loader.sampler, DRAWING):
        return False
    if type(loader.sampler) is SequentialSampler and type(loader.batch_sampler) in (
        BatchSampler,
        type(None),
    ):
        return True
    with preserved():
        if isinstance(loader.dataset, IterableDataset):
            first, second = (next(iter(loader.dataset), None) for _ in range(2))
            pairs = zip(tensors(first), tensors(second), strict=True)
            return all(torch.equal(a, b) for a, b in pairs)
        of = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        return [*of] == [*of]


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
        LeaveoutError: The loader shuffles, so that indices would mean nothing.
    """
    if isinstance(data, DataLoader):
        if not _in_fixed_order(data):
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
    return DataLoader(data, batch_size=batch_size)


def placed(batch: Any, device: torch.device, what: str) -> tuple[Batch, int]:
    """Move a batch to the model's device.

    Returns:
        The batch and its number of samples.

    Raises:
        LeaveoutError: It is no tuple or list, or holds no tensor.
    """
    if not isinstance(batch, tuple | list) or not tensors(batch):
        raise LeaveoutError(
            f"{what}: expected a batch (arguments of the model ..., targets), tensors with a row "
            f"a sample, got {type(batch).__name__}"
        )
    return tree_map(lambda value: value.to(device), batch), len(tensors(batch)[0])


def per_sample(loss_fn: Callable[..., Tensor] | None, name: str) -> Losses:
    """Return a loss function as one that gives the loss of each sample, however it reduces.

    A reduction over one sample alone is that sample's loss, be it a mean or a sum. So a function
    whose ``reduction`` is not ``"none"`` is called on each sample alone, so that a division by the
    size of a batch does not enter the scores. Of torch's cross-entropy a sample's part of the sum
    is taken, weighted as the batch is, and divided by its number of positions for a mean.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``; None if the model itself returns losses.
        name: Its name, for messages.
    """
    if loss_fn is None:
        return lambda outputs, _: _rows(outputs, len(tensors(outputs)[0]), "the model")
    if type(loss_fn) in (nn.CrossEntropyLoss, nn.NLLLoss):  # a subclass may do something else
        # the mean over one sample would divide by its own weight, or by its own positions
        each, mean = copy.copy(loss_fn), getattr(loss_fn, "reduction", None) == "mean"
        setattr(each, "reduction", "none")  # noqa: B010

        def known(outputs: Any, targets: Any) -> Tensor:
            samples = len(tensors(outputs)[0])
            found = each(outputs, targets).reshape(samples, -1)
            return found.sum(1) / (found.shape[1] if mean else 1)

        return known
    return one_at_a_time(loss_fn, name)


def _rows(losses: Tensor, count: int, name: str) -> Tensor:
    if losses.numel() != count:
        raise LeaveoutError(
            f"{name}: gave {tuple(losses.shape)} for {count} samples; it must return one number a "
            "sample, or their mean or sum"
        )
    return losses.reshape(count)
