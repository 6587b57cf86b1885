"""Training data as batches, and losses as one number a sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from leaveout.errors import LeaveoutError
from leaveout.gradients.parts import Losses
from leaveout.problem.trees import one_by_one, tensors, tree_map

Batch = Sequence[Any]
"""Arguments of the model and, last, targets."""


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
        if isinstance(data.sampler, RandomSampler):
            raise LeaveoutError(
                f"{what}: the DataLoader shuffles, so that indices of its samples would mean "
                "nothing; make it with shuffle=False"
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
    size or the weights of a batch does not enter the scores.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``; None if the model itself returns losses.
        name: Its name, for messages.
    """
    if loss_fn is None:
        return lambda outputs, _: _rows(outputs, len(tensors(outputs)[0]), "the model")
    plain = type(loss_fn) in (nn.CrossEntropyLoss, nn.NLLLoss)  # a subclass may do something else
    if plain and getattr(loss_fn, "reduction", None) == "sum":
        # known to be the sum of what each sample gives, at all its positions
        each = copy.copy(loss_fn)
        setattr(each, "reduction", "none")  # noqa: B010
        return lambda o, t: _summed(each(o, t), len(tensors(o)[0]), name)
    if getattr(loss_fn, "reduction", None) == "none":
        return lambda o, t: _rows(loss_fn(o, t), len(tensors(o)[0]), name)

    def one(outputs: Any, targets: Any) -> tuple[Tensor, ...]:
        return (_rows(loss_fn(outputs, targets), 1, name)[0],)

    def losses(outputs: Any, targets: Any) -> Tensor:
        if len(tensors(outputs)[0]) == 1:
            return _rows(loss_fn(outputs, targets), 1, name)
        return one_by_one(one, outputs, targets)[0]

    return losses


def _summed(losses: Tensor, count: int, name: str) -> Tensor:
    found = losses.flatten(1).sum(1) if losses.dim() > 1 else losses
    return _rows(found, count, name)


def _rows(losses: Tensor, count: int, name: str) -> Tensor:
    if losses.numel() != count:
        raise LeaveoutError(
            f"{name}: gave {tuple(losses.shape)} for {count} samples; it must return one number a "
            "sample, or their mean or sum"
        )
    return losses.reshape(count)
