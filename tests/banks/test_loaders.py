from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from leaveout.banks.layout import BankError
from leaveout.banks.loaders import (
    count,
    draws_in_one_order,
    find_samples,
    subset_loader,
)
from leaveout.problem.randomness import preserved

DATASET: list[int] = [10 * i for i in range(12)]


def drawn(loader: DataLoader[Any]) -> list[list[int]]:
    with preserved():
        torch.manual_seed(0)
        return [batch.tolist() for batch in loader]


class Reversed(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([9, 6, 3, 0])

    def __len__(self) -> int:
        return 4


class Weighty(Reversed):
    """It keeps hold of all of the data."""

    def __init__(self, data: list[int]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[int]:
        return iter([2, 0, 1])


class Buckets(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0, 1], [2], [3, 4, 5])

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("loader", "ids", "positions"),
    [
        (DataLoader(DATASET), range(12), range(12)),
        (DataLoader(DATASET, shuffle=True, drop_last=True, batch_size=5), range(12), range(12)),
        (DataLoader(DATASET, sampler=Reversed()), [0, 3, 6, 9], [0, 3, 6, 9]),
        (DataLoader(DATASET, sampler=SubsetRandomSampler([7, 2, 5])), [2, 5, 7], [2, 5, 7]),
        (DataLoader(DATASET, batch_sampler=Buckets()), range(6), range(6)),
        (
            DataLoader(
                DATASET, batch_sampler=BatchSampler(SubsetRandomSampler([8, 4, 11]), 2, False)
            ),
            [4, 8, 11],
            [4, 8, 11],
        ),
        (DataLoader(Subset(DATASET, [5, 3, 8]), shuffle=True), [3, 5, 8], [1, 0, 2]),
        (DataLoader(Subset(Subset(DATASET, [5, 3, 8]), [2, 0])), [5, 8], [1, 0]),
        (DataLoader(Subset(DATASET, [5, 3, 8]), sampler=[2, 1]), [3, 8], [1, 2]),
        (DataLoader(DATASET, batch_size=None, sampler=[4, 1]), [1, 4], [1, 4]),
    ],
)
def test_ids_are_the_datasets(loader: Any, ids: Any, positions: Any) -> None:
    samples = find_samples(loader)
    assert samples.ids.tolist() == list(ids)
    assert samples.positions.tolist() == list(positions)
    assert count(loader) == len(ids)


def test_looking_at_a_loader_moves_none_of_its_generators() -> None:
    own = torch.Generator().manual_seed(4)
    loader = DataLoader(DATASET, sampler=SubsetRandomSampler([1, 2, 3, 4, 5], generator=own))
    before = own.get_state().clone()
    find_samples(loader)
    subset_loader(loader, np.array([1, 2]), 0)
    assert torch.equal(own.get_state(), before)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(DATASET, sampler=RandomSampler(DATASET, replacement=True)), "more than once"),
        (DataLoader(DATASET, sampler=WeightedRandomSampler([1.0] * 12, 40)), "more than once"),
        (DataLoader(DATASET, sampler=RandomSampler(DATASET, num_samples=6)), "other samples"),
        (DataLoader(Subset(DATASET, [3, 3])), "e.g. id 3"),
        (DataLoader(DATASET, sampler=[]), "no samples"),
        (DataLoader(DATASET, sampler=(i for i in range(3))), "cannot be copied"),
        (DATASET, "a list; a torch DataLoader"),
    ],
)
def test_what_has_no_definite_samples_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(BankError, match=message):
        find_samples(loader)


def test_a_stream_without_ids_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    loader = DataLoader(Stream())
    with pytest.raises(BankError, match="IterableDataset"):
        find_samples(loader)
    assert count(loader) is None
    assert draws_in_one_order(loader)


def test_the_order_is_the_users_without_those_left_out() -> None:
    loader = DataLoader(DATASET, batch_size=4, shuffle=True)
    kept = np.delete(np.arange(12), 5)
    full = [value for batch in drawn(loader) for value in batch]
    without = [value for batch in drawn(subset_loader(loader, kept, 0)) for value in batch]
    assert full != sorted(full)
    assert without == [value for value in full if value != 50]


def test_all_settings_are_the_users() -> None:
    class Doubling(DataLoader[Any]):
        """A loader of the user's own kind."""

        def __iter__(self) -> Any:
            return (2 * batch for batch in super().__iter__())

    def collate(items: list[int]) -> torch.Tensor:
        return torch.tensor(items) + 1

    loader = Doubling(
        DATASET, batch_size=3, drop_last=True, collate_fn=collate, timeout=0, pin_memory=False
    )
    with pytest.warns(UserWarning, match="drops 2 of 8 kept samples .* and 0 of all 12"):
        part = subset_loader(loader, np.arange(8), 0)
    assert drawn(part) == [[2, 22, 42], [62, 82, 102]]
    assert (len(part), part.batch_size, part.drop_last) == (2, 3, True)
    assert len(part.dataset) == len(part.sampler) == 8  # type: ignore[arg-type]
    assert [v for batch in drawn(loader) for v in batch][-1] == 2 * 111
    ours = {"dataset", "sampler", "batch_sampler"}
    assert {k: v for k, v in vars(part).items() if k not in ours} == {
        k: v for k, v in vars(loader).items() if k not in ours
    }


def test_drop_last_that_leaves_nothing_is_refused() -> None:
    for batch_size, kept in ((12, 11), (5, 4)):
        loader = DataLoader(DATASET, batch_size=batch_size, drop_last=True)
        with pytest.raises(BankError, match=f"nothing to train on: {kept} samples are kept"):
            subset_loader(loader, np.arange(kept), 0)
    # as many are dropped as of all, or fewer: nothing to say
    subset_loader(DataLoader(DATASET, batch_size=5, drop_last=True), np.arange(11), 0)


def test_what_is_asked_of_the_users_sampler_reaches_it() -> None:
    sampler: Any = DistributedSampler(DATASET, num_replicas=1, rank=0, seed=3)  # type: ignore[var-annotated]
    part: Any = subset_loader(DataLoader(DATASET, sampler=sampler), np.arange(11), 0)
    orders = []
    for epoch in (0, 1, 0):
        assert hasattr(part.sampler, "set_epoch")
        part.sampler.set_epoch(epoch)
        orders.append([*part.sampler])
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert sampler.epoch == 0  # the user's own is left as it was
    with pytest.raises(AttributeError):
        part.sampler.no_such_thing  # noqa: B018


def test_workers_are_the_users() -> None:
    part = subset_loader(DataLoader(DATASET, batch_size=4, num_workers=1), np.arange(1, 7), 0)
    assert part.num_workers == 1
    assert drawn(part) == [[10, 20, 30, 40], [50, 60]]


def test_samples_without_batches() -> None:
    loader = DataLoader(DATASET, batch_size=None, sampler=[4, 1, 2])
    part = subset_loader(loader, np.array([2, 4]), 0)
    with preserved():
        assert list(part) == [40, 20]
    assert len(part) == 2


def test_no_sampler_copies_the_data() -> None:
    class Data(list[int]):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a copy of the data")

    data = Data(DATASET)
    over = Subset(data, [5, 3, 8])
    for loader in (DataLoader(data, shuffle=True), DataLoader(over, sampler=RandomSampler(over))):
        subset_loader(loader, np.array([0, 2]), 0)
    loader = DataLoader(over, batch_sampler=BatchSampler(Weighty(data), 2, False))
    assert len(subset_loader(loader, np.array([0, 2]), 0)) == 1


def test_nothing_left_out_can_be_reached() -> None:
    part = subset_loader(DataLoader(DATASET, shuffle=True), np.array([2, 4]), 0)
    again = DataLoader(part.dataset, batch_size=12)  # as some training functions do
    assert drawn(again) == [[20, 40]]


def test_batches_of_the_users_own_stay_as_they_are() -> None:
    part = subset_loader(DataLoader(DATASET, batch_sampler=Buckets()), np.array([0, 3, 5]), 0)
    assert drawn(part) == [[0], [30, 50]]
    assert len(part) == 2


@pytest.mark.parametrize("where", ["loader", "sampler", "batch_sampler"])
def test_a_generator_of_the_users_is_replaced_by_one_for_the_model(where: str) -> None:
    own = torch.Generator().manual_seed(4)
    if where == "loader":
        loader: DataLoader[Any] = DataLoader(DATASET, batch_size=12, shuffle=True, generator=own)
    elif where == "sampler":
        loader = DataLoader(DATASET, batch_size=12, sampler=RandomSampler(DATASET, generator=own))
    else:
        batches = BatchSampler(RandomSampler(DATASET, generator=own), 12, False)
        loader = DataLoader(DATASET, batch_sampler=batches)
    before = own.get_state().clone()
    every = np.arange(12)
    first, same, other = (drawn(subset_loader(loader, every, seed)) for seed in (1, 1, 2))
    assert first == same
    assert first != other
    assert torch.equal(own.get_state(), before)


def test_other_state_of_a_sampler_is_copied() -> None:
    class Shuffled(Sampler[int]):
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def __iter__(self) -> Iterator[int]:
            return iter(self.rng.permutation(12).tolist())

    loader = DataLoader(DATASET, batch_size=12, sampler=Shuffled())
    parts = [subset_loader(loader, np.arange(12), seed) for seed in (1, 2)]
    first, second = (drawn(part) for part in parts)
    assert first == second  # each model's from the same start, whatever was trained before
    assert drawn(parts[0]) != first  # and the next epoch's is another


def test_a_loader_that_shuffles_is_told_from_one_that_does_not() -> None:
    assert draws_in_one_order(DataLoader(DATASET))
    assert draws_in_one_order(DataLoader(DATASET, sampler=Reversed()))
    assert draws_in_one_order(DataLoader(DATASET, sampler=SequentialSampler(DATASET)))
    assert not draws_in_one_order(DataLoader(DATASET, shuffle=True))
    assert not draws_in_one_order(
        DataLoader(DATASET, shuffle=True, generator=torch.Generator().manual_seed(0))
    )
