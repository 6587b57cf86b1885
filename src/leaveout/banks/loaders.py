"""A user's data loader: which samples it draws, and the same loader without some of them."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
)

from leaveout.banks.layout import BankError
from leaveout.problem.randomness import preserved

Loader = DataLoader[Any]
_UNSEEDED = 0
"""Seed for passes whose order does not matter."""


@dataclass(frozen=True)
class Samples:
    """The samples that a loader draws.

    Attributes:
        ids: Their ids, ascending, (samples,).
        positions: Where each is in ``loader.dataset``, (samples,). The two differ where the
            dataset is a ``Subset``: there an id is the position in the dataset underneath.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]


def _forwarded(sampler: Any, name: str) -> Any:
    """Return what a training function asks of the user's own sampler, such as ``set_epoch``."""
    if name.startswith("__"):  # of copies and pickles, which ask before there is anything
        raise AttributeError(name)
    return getattr(sampler, name)


class _Kept(Sampler[int]):
    """A sampler's own order without the samples left out, as positions in what is kept."""

    def __init__(self, sampler: Iterable[int], place: Mapping[int, int]) -> None:
        self.sampler, self.place = sampler, place

    def __getattr__(self, name: str) -> Any:
        """Forward what it does not have itself to the user's sampler."""
        return _forwarded(self.__dict__.get("sampler"), name)

    def __iter__(self) -> Iterator[int]:
        """Draw the kept samples in the sampler's order."""
        return (self.place[int(i)] for i in self.sampler if int(i) in self.place)

    def __len__(self) -> int:
        """Count the kept samples."""
        return len(self.place)


class _KeptBatches(Sampler[list[int]]):
    """A batch sampler's own batches without the samples left out; empty ones are passed over."""

    def __init__(
        self, batches: Iterable[Sequence[int]], place: Mapping[int, int], count: int
    ) -> None:
        self.batches, self.place, self.count = batches, place, count

    def __getattr__(self, name: str) -> Any:
        """Forward what it does not have itself to the user's batch sampler."""
        return _forwarded(self.__dict__.get("batches"), name)

    def __iter__(self) -> Iterator[list[int]]:
        """Draw the batches."""
        for batch in self.batches:
            kept = [self.place[int(i)] for i in batch if int(i) in self.place]
            if kept:
                yield kept

    def __len__(self) -> int:
        """Count the batches of the first pass."""
        return self.count


def _generators(loader: Loader) -> list[torch.Generator]:
    """Return the generators that the loader and its samplers draw their order from."""
    batches = loader.batch_sampler
    holders = (loader, loader.sampler, batches, getattr(batches, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    return [g for g in found if isinstance(g, torch.Generator)]


def _copied(loader: Loader, order: Any, seed: int) -> tuple[Any, torch.Generator | None]:
    """Copy a sampler, with generators of its own in place of the loader's, and that generator."""
    # what is in the memo is not copied: the dataset, and generators, which get a substitute
    memo: dict[int, Any] = {}
    dataset: Any = loader.dataset
    while dataset is not None:
        memo[id(dataset)] = dataset
        dataset = dataset.dataset if isinstance(dataset, Subset) else None
    fresh = None
    for generator in _generators(loader):
        fresh = fresh or torch.Generator(generator.device).manual_seed(seed)
        memo[id(generator)] = fresh
    try:
        return copy.deepcopy(order, memo), fresh
    except (TypeError, RuntimeError, copy.Error) as error:
        raise BankError(
            f"the loader's sampler, a {type(order).__name__}, cannot be copied ({error}); each "
            "model needs a pass of its own over it: give a sampler that can start anew"
        ) from error


def _order(loader: Loader) -> tuple[Any, bool]:
    """Return what gives the loader's order, and whether it gives batches."""
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler, False
    if type(batches) is BatchSampler:  # plain batches of a sampler's order
        return batches.sampler, False
    return batches, True


def _pass(loader: Loader, again: bool = False) -> list[int]:
    """Return the positions drawn in a pass over the loader's order, from a copy of the sampler."""
    order, batched = _order(loader)
    with preserved():
        copied, _ = _copied(loader, order, _UNSEEDED)
        for _ in range(1 + again):  # the second pass of a sampler that shuffles is another one
            drawn = [int(i) for batch in copied for i in (batch if batched else [batch])]
    return drawn


def draws_in_one_order(loader: Loader) -> bool:
    """Return whether every pass over a loader draws the same samples in the same order."""
    return isinstance(loader.dataset, IterableDataset) or _pass(loader) == _pass(loader, again=True)


def count(loader: Loader) -> int | None:
    """Return how many samples a pass draws, None where only a pass itself can tell."""
    return None if isinstance(loader.dataset, IterableDataset) else len(_pass(loader))


def find_samples(loader: Loader) -> Samples:
    """Return which samples a loader draws, by their ids in the dataset.

    A sample's id is its position in the dataset: in the one underneath where the loader is over a
    ``torch.utils.data.Subset``; what the sampler or batch sampler names, where there is one.

    Args:
        loader: The user's loader; neither its sampler's state nor any generator is touched.

    Raises:
        BankError: It is no ``DataLoader``, its dataset has no positions, or a pass does not draw
            the same samples, once each, every time: what leaving one out means is then not defined.
    """
    if not isinstance(loader, DataLoader):
        raise BankError(f"dataloader is a {type(loader).__name__}; a torch DataLoader is needed")
    if isinstance(loader.dataset, IterableDataset):
        raise BankError(
            "the loader's dataset is an IterableDataset: its samples have no ids, so none can be "
            "left out; give a dataset with __getitem__ and __len__"
        )
    drawn = _pass(loader)
    positions = np.array(drawn, dtype=np.int64)
    ids = positions
    dataset: Any = loader.dataset
    while isinstance(dataset, Subset):
        ids = np.asarray(dataset.indices, dtype=np.int64)[ids]
        dataset = dataset.dataset
    twice = [i for i, times in Counter(ids.tolist()).items() if times > 1]
    if twice:
        raise BankError(
            f"the loader draws some samples more than once in a pass, e.g. id {twice[0]}; what "
            "leaving one out means is then not defined: draw each sample once"
        )
    if set(_pass(loader, again=True)) != set(drawn):
        raise BankError(
            "the loader draws other samples in every pass; what leaving one out means is then not "
            "defined: draw the same samples in every pass"
        )
    if not len(ids):
        raise BankError("the loader draws no samples")
    ascending = np.argsort(ids)
    return Samples(ids[ascending], positions[ascending])


def subset_loader(loader: Loader, positions: NDArray[np.int64], seed: int) -> Loader:
    """Return the user's loader, over some of its samples only.

    It is a copy of the loader with all its settings. Its dataset is a ``Subset`` of the user's, so
    nothing that was left out can be reached. Its order is the user's sampler's own, from which
    those left out are dropped before batches are cut; batches of a batch sampler of the user's own
    stay as they are but for the samples left out. A generator named ``generator`` of the loader or
    its samplers is replaced by one seeded for this model; whatever other state a sampler has is
    copied as it stands.

    Args:
        loader: The user's loader, which is left as it is.
        positions: Positions in ``loader.dataset`` of the samples to keep.
        seed: Of the generator, where the user's loader has one.
    """
    place = {int(position): number for number, position in enumerate(positions)}
    dataset = Subset(loader.dataset, [int(position) for position in positions])
    order, batched = _order(loader)
    own, generator = _copied(loader, order, seed)
    batches: Any = None
    if batched:
        sampler: Any = SequentialSampler(dataset)
        trial = _KeptBatches(_copied(loader, order, seed)[0], place, 0)
        with preserved():
            batches = _KeptBatches(own, place, sum(1 for _ in trial))
    else:
        sampler = _Kept(own, place)
        if loader.batch_sampler is not None:
            plain = loader.batch_sampler
            assert isinstance(plain, BatchSampler)
            if plain.drop_last:
                _check_dropped(len(_pass(loader)), len(positions), plain.batch_size)
            batches = BatchSampler(sampler, plain.batch_size, plain.drop_last)
    twin = copy.copy(loader)
    # DataLoader forbids setting these from outside; a copy keeps what a subclass adds
    for name, value in (("dataset", dataset), ("sampler", sampler), ("batch_sampler", batches)):
        object.__setattr__(twin, name, value)
    twin._iterator = None
    if loader.generator is not None:
        twin.generator = generator
    return twin


def _check_dropped(whole: int, kept: int, batch_size: int) -> None:
    """See that ``drop_last`` drops no more of the samples kept than it does of all.

    Raises:
        BankError: It leaves nothing to train on.
    """
    if kept < batch_size:
        raise BankError(
            f"the loader's drop_last leaves nothing to train on: {kept} samples are kept, fewer "
            f"than a batch of {batch_size}. Make it with drop_last=False, or a smaller batch_size"
        )
    more = kept % batch_size - whole % batch_size
    if more > 0:
        warnings.warn(
            f"the loader's drop_last drops {kept % batch_size} of {kept} kept samples in every "
            f"pass, and {whole % batch_size} of all {whole}: more than what is left out is missing "
            "from each pass. Make it with drop_last=False",
            stacklevel=4,
        )


def describe(loader: Loader) -> dict[str, str | int | bool | None]:
    """Return what of a loader's settings makes a difference to training, in plain values."""
    batches = loader.batch_sampler
    return {
        "sampler": type(_order(loader)[0]).__name__,
        "batch_size": getattr(batches, "batch_size", None),
        "drop_last": bool(getattr(batches, "drop_last", False)),
    }
