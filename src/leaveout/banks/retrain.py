"""Retraining with a user's own training function: leave-one-out and random subsets.

What a model becomes follows from the bank's root seed and from what the model is (which subset,
which run), and from nothing else: not from the order of training, the process, or how large the
bank is meant to be. So any part can be made anywhere, at any time.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from leaveout.banks.layout import (
    BankError,
    Metadata,
    indices_file,
    is_whole,
    lds_file,
    loo_file,
    open_bank,
    read_ids,
    write_ids,
    write_state,
)
from leaveout.banks.loaders import Loader, Samples, describe, find_samples, subset_loader
from leaveout.config.subset_file import subset_size
from leaveout.problem.randomness import argument_seed, seeded
from leaveout.retraining.subsets import draw_subset
from leaveout.seeds import generator, torch_seed

T = TypeVar("T")
TrainFunc = Callable[..., nn.Module]
WHEREVER = frozenset({"device"})
"""Arguments that say where training happens: they may differ between calls into one bank."""


@dataclass(frozen=True)
class _Job:
    """What all models of a call share."""

    train_func: TrainFunc
    loader: Loader
    samples: Samples
    root: int
    kwargs: dict[str, Any]

    def train(self, path: Path, kept: NDArray[np.bool_], *identity: str | int) -> None:
        """Train one model on the samples kept and write its state dict."""
        root, kwargs = self.root, self.kwargs
        if _takes_seed(self.train_func):
            kwargs = {**kwargs, "seed": argument_seed(root, *identity)}
        order = torch_seed(root, *identity, "loader")
        with seeded(root, *identity):
            subset = subset_loader(self.loader, self.samples.positions[kept], order)
            model = self.train_func(subset, **kwargs)
        if not isinstance(model, nn.Module):
            raise BankError(
                f"train_func returned a {type(model).__name__}; it must return the trained "
                "torch.nn.Module"
            )
        write_state(path, model.state_dict())


def _takes_seed(train_func: TrainFunc) -> bool:
    try:
        parameters = inspect.signature(train_func).parameters.values()
    except (TypeError, ValueError):  # some callables have no signature
        return False
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)


def _plain(value: Any) -> Any:
    """Return a value as the metadata can hold it: what is no number or text, by its description."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    for kind in (bool, int, float, str):  # of a subclass, the plain value
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    text = repr(value)
    if " at 0x" in text or len(text) > 200:  # an address, or too much of it
        text = f"<{type(value).__module__}.{type(value).__qualname__}>"
    return text


def describe_call(train_func: TrainFunc, kwargs: dict[str, Any]) -> Metadata:
    """Return the name of a training function and the arguments it gets, in plain values."""
    while isinstance(train_func, functools.partial):
        kwargs = {**train_func.keywords, **kwargs}
        train_func = train_func.func
    name = getattr(train_func, "__name__", type(train_func).__name__)
    arguments = {k: _plain(kwargs[k]) for k in sorted(kwargs) if k not in WHEREVER}
    return {"train_func": name, "kwargs": arguments}


def _whole_number(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise BankError(f"{name} is {value!r}; a whole number is needed") from error
    if number < least:
        raise BankError(f"{name} is {number}; it must be at least {least}")
    return number


def _seed(seed: int | None) -> int | None:
    return None if seed is None else _whole_number("seed", seed, 0)


def wanted_ids(indices: Iterable[int] | None, samples: Samples) -> list[int]:
    """Return the ids to leave out, checked, each once, in the order given.

    Raises:
        BankError: One is not among the loader's ids.
    """
    own: list[int] = samples.ids.tolist()
    if indices is None:
        return own
    asked = list(dict.fromkeys(operator.index(i) for i in indices))
    outside = sorted(set(asked) - set(own))
    if outside:
        raise BankError(
            f"indices: {len(outside)} are no ids of the loader's samples, e.g. {outside[0]}; its "
            f"{len(own)} ids go from {own[0]} to {own[-1]}. An id is the position in the dataset, "
            "not in the loader"
        )
    return asked


def grow_indices(asked: list[int]) -> Callable[[Metadata, Metadata | None], Metadata]:
    """Return what adds ids to the plan of a bank of one checkpoint an id, see ``open_bank``."""

    def grow(call: Metadata, there: Metadata | None) -> Metadata:
        indices = sorted({*asked, *(there["indices"] if there else [])})
        where = {index: f"./index_{index}" for index in indices}
        return {**call, "indices": indices, "map_index_dir": where}

    return grow


def progress(items: list[T], what: str) -> Iterable[T]:
    """Show, on standard error, how many of the items are done."""
    return tqdm(items, desc=what, unit="model", mininterval=5, file=sys.stderr, ascii=True)


def retrain_loo(
    train_func: TrainFunc,
    dataloader: Loader,
    path: str | PathLike[str],
    indices: Iterable[int] | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> None:
    """Retrain a model with one sample left out at a time (Koh and Liang, arXiv 1703.04730).

    Every model uses the same random streams, those of the bank: same initial weights, same order of
    the samples that stay. What differs between two models is then the sample, not chance. For an
    independent repetition give another seed and folder.

    What is already there and whole is not trained again. Calls for different ``indices`` may run
    one after another or at once, in any order, in any number of processes.

    Args:
        train_func: Called as ``train_func(dataloader, **kwargs)``, also with ``seed=``, a number
            below 2**32, where it takes such an argument; returns the trained ``torch.nn.Module``.
            torch's, NumPy's and Python's global generators are seeded before, and set back after.
        dataloader: The user's loader of all training samples; the one handed to ``train_func`` is
            like it but for the sample left out (:func:`leaveout.banks.loaders.subset_loader`).
        path: The folder of the bank: ``metadata.yml``, ``ids.txt``, and for each sample
            ``index_ID/model_weights.pt``, a state dict on the CPU.
        indices: Ids of the samples to leave out, by default all of the loader's. An id is the
            position in the dataset, also under a sampler or a ``Subset``.
        seed: Root seed. By default that of the bank; a new bank draws one and records it.
        **kwargs: Passed to ``train_func``.

    Raises:
        BankError: An index is no id of the loader's, ``train_func`` returned no module, or the
            folder holds a bank made by a different call; the message says what differs.
    """
    samples = find_samples(dataloader)
    asked = wanted_ids(indices, samples)
    call = {
        "mode": "loo",
        "data_length": len(samples.ids),
        **describe_call(train_func, kwargs),
        "loader": describe(dataloader),
        "seed": _seed(seed),
    }
    folder = Path(path)
    metadata = open_bank(folder, call, samples.ids, grow_indices(asked))
    job = _Job(train_func, dataloader, samples, metadata["seed"], kwargs)
    for index in progress(asked, "LOO models"):
        if not is_whole(loo_file(folder, index)):
            job.train(loo_file(folder, index), samples.ids != index, "loo")


def subset_mask(root: int, subset: int, n: int, ratio: float) -> NDArray[np.bool_]:
    """Return which samples a subset keeps, by ascending id, (samples,).

    Args:
        root: The bank's root seed.
        subset: The subset's number.
        n: Number of samples.
        ratio: Fraction of them that is kept.
    """
    return draw_subset(n, ratio, generator(root, "lds", subset, "subset"))


def _record_subset(folder: Path, subset: int, ids: NDArray[np.int64]) -> None:
    path = indices_file(folder, subset)
    if not path.exists():
        write_ids(path, ids)
    elif not np.array_equal(np.sort(read_ids(path)), ids):
        raise BankError(
            f"{path}: it lists other ids than the bank's seed gives for this subset, so what is "
            f"in {path.parent} was made otherwise or altered. Choose another folder to make it anew"
        )


def retrain_lds(
    train_func: TrainFunc,
    dataloader: Loader,
    path: str | PathLike[str],
    num_subsets: int = 100,
    subset_ratio: float = 0.5,
    num_runs_per_subset: int = 1,
    start_id: int = 0,
    total_num_subsets: int = 0,
    seed: int | None = None,
    **kwargs: Any,
) -> None:
    """Retrain a model on random subsets, for the linear datamodeling score (arXiv 2303.14186).

    What is already there and whole is not trained again; a later call for more subsets or more runs
    trains the new ones. The partitions of a bank, each ``num_subsets`` subsets from ``start_id`` of
    the ``total_num_subsets``, may run one after another or at once, in any order, in any number of
    processes. Every run of a subset has random streams of its own.

    Args:
        train_func: Called as ``train_func(dataloader, **kwargs)``, also with ``seed=``, a number
            below 2**32, where it takes such an argument; returns the trained ``torch.nn.Module``.
            torch's, NumPy's and Python's global generators are seeded before, and set back after.
        dataloader: The user's loader of all training samples; the one handed to ``train_func`` is
            like it but for the samples left out (:func:`leaveout.banks.loaders.subset_loader`).
        path: The folder of the bank: ``metadata.yml``, ``ids.txt``, and for each subset
            ``NUMBER/indices.txt``, the ids that are kept, one a line, and
            ``NUMBER/model_weights_RUN.pt``, a state dict on the CPU.
        num_subsets: Subsets to be trained by this call.
        subset_ratio: Fraction of the samples a subset keeps, rounded down to whole samples.
        num_runs_per_subset: Trainings of each subset.
        start_id: Number of this call's first subset.
        total_num_subsets: Subsets of the whole bank; 0 means ``num_subsets``. It need not be a
            multiple of ``num_subsets``.
        seed: Root seed. By default that of the bank; a new bank draws one and records it.
        **kwargs: Passed to ``train_func``.

    Raises:
        BankError: A number is out of range, ``train_func`` returned no module, or the folder holds
            a bank made by a different call; the message says what differs.
    """
    samples = find_samples(dataloader)
    n = len(samples.ids)
    num_subsets = _whole_number("num_subsets", num_subsets, 1)
    runs = _whole_number("num_runs_per_subset", num_runs_per_subset, 1)
    start = _whole_number("start_id", start_id, 0)
    total = _whole_number("total_num_subsets", total_num_subsets, 0) or num_subsets
    if start + num_subsets > total:
        raise BankError(
            f"subsets {start} to {start + num_subsets - 1} are asked for, but the bank is to hold "
            f"{total}; say how many in all by total_num_subsets"
        )
    if not 0 < subset_ratio <= 1 or subset_size(n, subset_ratio) < 1:
        raise BankError(
            f"subset_ratio is {subset_ratio}; of {n} samples it must leave at least one, and at "
            "most all"
        )
    call = {
        "mode": "lds",
        "data_length": n,
        **describe_call(train_func, kwargs),
        "loader": describe(dataloader),
        "subset_ratio": float(subset_ratio),
        "seed": _seed(seed),
    }

    def grow(call: Metadata, there: Metadata | None) -> Metadata:
        if there and runs < there["num_runs_per_subset"]:
            raise BankError(
                f"{path}: the bank has num_runs_per_subset {there['num_runs_per_subset']}, this "
                f"call {runs}; a bank has as many runs of every subset. Give as many or more, or "
                "another folder"
            )
        subsets = max(total, there["num_subsets"]) if there else total
        where = {subset: f"./{subset}" for subset in range(subsets)}
        return {
            **call,
            "num_subsets": subsets,
            "num_runs_per_subset": runs,
            "subset_dir_map": where,
        }

    folder = Path(path)
    root = open_bank(folder, call, samples.ids, grow)["seed"]
    job = _Job(train_func, dataloader, samples, root, kwargs)
    pairs = [(s, r) for s in range(start, start + num_subsets) for r in range(runs)]
    for subset, run in progress(pairs, "LDS models"):
        mask = subset_mask(root, subset, n, subset_ratio)
        if run == 0:
            _record_subset(folder, subset, samples.ids[mask])
        if not is_whole(lds_file(folder, subset, run)):
            job.train(lds_file(folder, subset, run), mask, "lds", subset, run)
