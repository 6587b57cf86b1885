"""Any samples: a split of the user's, the file that it is prepared to, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from leaveout.data.form import build, flatten
from leaveout.data.normalise import normalise
from leaveout.errors import LeaveoutError
from leaveout.problem.objective import Objective
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree
from leaveout.store.artefacts import Array, Artefact, CorruptArtefactError
from leaveout.store.contents import Arrays


@dataclass(frozen=True)
class Split:
    """Samples to train on and to test on, in a fixed order.

    Attributes:
        train: ``(inputs, targets)``: tensors or NumPy arrays with a row a sample, alone or in
            dictionaries, tuples and lists; or a ``torch.utils.data.Dataset`` of such pairs, one
            sample each.
        test: The same.
        show: What is shown of the samples to people, of train and of test: pictures, (samples,
            height, width) or (samples, height, width, 3), or a list of texts; by default nothing.

    Example:
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> Split((x[:16], y[:16]), (x[16:], y[16:]))  # doctest: +SKIP
    """

    train: Any
    test: Any
    show: tuple[Any, Any] | None = None


def columns(part: Any, what: str) -> tuple[Tree, Tree]:
    """Return inputs and targets of a part of a split.

    Args:
        part: As :class:`Split` has it.
        what: Which part, for errors.

    Raises:
        LeaveoutError: It is something else.
    """
    if isinstance(part, Dataset):
        if not hasattr(part, "__len__") or not len(part):
            raise LeaveoutError(f"data: {what} is a Dataset without a length, or without samples")
        items = [part[k] for k in range(len(part))]
        try:
            part = default_collate(items)
        except (RuntimeError, TypeError) as error:
            raise LeaveoutError(
                f"data: the samples of {what} can't be put together ({error}). Bring them to one "
                "length (padding), and return (inputs, targets)"
            ) from error
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise LeaveoutError(
            f"data: {what} is {_described(part)}; expected (inputs, targets), or a Dataset of such "
            "pairs"
        )
    return part[0], part[1]


def _described(value: Any) -> str:
    count = f" of {len(value)}" if isinstance(value, tuple | list | Mapping) else ""
    return type(value).__name__ + count


def prepared(split: Any, sizes: Mapping[str, int], where: str) -> Arrays:
    """Return the ``data`` artefact of a split.

    Args:
        split: What the user's function returned.
        sizes: How many samples of ``train`` and ``test``, from the first on.
        where: Whose it is, for errors.

    Raises:
        LeaveoutError: It is no split, holds fewer samples, or what is of another kind.
    """
    if not isinstance(split, Split):
        raise LeaveoutError(
            f"{where} returned {_described(split)}; expected leaveout.Split(train, test)"
        )
    arrays: dict[str, Array] = {}
    dims: dict[str, tuple[str, ...]] = {}
    forms: dict[str, Any] = {}
    for part, wanted in sizes.items():
        found: dict[str, Array] = {}
        inputs, targets = columns(getattr(split, part), part)
        form = {"inputs": flatten(inputs, "inputs", found)}
        form["targets"] = flatten(targets, "targets", found)
        _check_rows(found, part, wanted, where)
        found = {name: array[:wanted] for name, array in found.items()}
        for name in [name for name in found if name.startswith("targets")]:
            if found[name].dtype.kind in "iu":
                found[name] = found[name].astype(np.int64)
        if form["targets"] == {"array": "targets"} and is_label(found["targets"]):
            found["labels"] = found.pop("targets")  # as data sets of classes have always called it
            form["targets"] = {"array": "labels"}
        if forms and form != forms:
            raise LeaveoutError(f"{where}: test has another form than train: {form}, not {forms}")
        forms = form
        found["id"] = np.arange(wanted, dtype=np.int64)
        for name, array in found.items():
            whole = f"{part}_{name}"
            arrays[whole] = array
            dims[whole] = (part, *(f"{whole}_{k}" for k in range(1, array.ndim)))
    facts: dict[str, Any] = {"form": forms, "n_classes": _count_classes(arrays)}
    _show(split, sizes, where, arrays, dims, facts)
    return Arrays("data", arrays, dims, facts)


def _check_rows(arrays: Mapping[str, Array], part: str, wanted: int, where: str) -> None:
    counts = {name: len(array) for name, array in arrays.items()}
    if not counts:
        raise LeaveoutError(f"{where}: {part} holds no array with a row a sample")
    first, *_ = counts.values()
    for name, count in counts.items():
        if count != first:
            raise LeaveoutError(
                f"{where}: {part}'s {name} has {count} rows, {next(iter(counts))} has {first}; "
                "each needs a row a sample. What all samples share belongs into the model"
            )
    if first < wanted:
        raise LeaveoutError(
            f"dataset.n_{part}: {wanted} samples are asked for, {where} gives {first}"
        )


def is_label(array: Array) -> bool:
    """Return whether targets are one class a sample."""
    return array.ndim == 1 and array.dtype.kind in "iu"


def _count_classes(arrays: Mapping[str, Array]) -> int | None:
    if "train_labels" not in arrays:
        return None
    return 1 + int(max(arrays[f"{part}_labels"].max(initial=0) for part in ("train", "test")))


def _show(
    split: Split,
    sizes: Mapping[str, int],
    where: str,
    arrays: dict[str, Array],
    dims: dict[str, tuple[str, ...]],
    facts: dict[str, Any],
) -> None:
    """Add what is shown of the samples: pictures as arrays, texts in the header."""
    if split.show is None:
        return
    for (part, wanted), shown in zip(sizes.items(), split.show, strict=True):
        if len(shown) < wanted:
            raise LeaveoutError(f"{where}: show has {len(shown)} of {wanted} {part} samples")
        if isinstance(shown, Sequence) and all(isinstance(text, str) for text in shown):
            facts.setdefault("show", {})[part] = list(shown[:wanted])
            continue
        pictures = np.asarray(shown[:wanted])
        if pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] != 3):
            raise LeaveoutError(
                f"{where}: show has the shape {pictures.shape}; expected (samples, height, width), "
                "(samples, height, width, 3), or texts"
            )
        arrays[f"{part}_show"] = pictures if pictures.dtype == np.uint8 else _float(pictures)
        axes = ("height", "width", "colour")[: pictures.ndim - 1]
        dims[f"{part}_show"] = (part, *(f"{part}_show_{axis}" for axis in axes))


def _float(pictures: Array) -> Array:
    return pictures.astype(np.float32)


def samples_of(artefact: Artefact, objective: Objective) -> tuple[Samples, Samples]:
    """Return a data artefact's training and test samples, on the CPU.

    Args:
        artefact: The artefact.
        objective: What training minimises: training samples carry it, test samples what it
            measures.

    Raises:
        LeaveoutError: The targets do not fit the objective.
    """
    train, test = (_inputs_and_targets(artefact, part) for part in ("train", "test"))
    arrays, found = artefact.tensors, []
    for part, (inputs, targets) in (("train", train), ("test", test)):
        if objective.check is not None:
            objective.check(targets)
        asked = objective if part == "train" else objective.measured()
        found.append(Samples(inputs, targets, asked, arrays[f"{part}_id"]))
    return found[0], found[1]


def _inputs_and_targets(artefact: Artefact, part: str) -> tuple[Tree, Tree]:
    arrays, form = artefact.tensors, artefact.meta.get("form")
    if form is not None:
        return build(form["inputs"], part, arrays), build(form["targets"], part, arrays)
    pixels = artefact.meta.get("pixels")
    if pixels is None:
        raise CorruptArtefactError(artefact.path, "an older version of leaveout wrote it")
    inputs = torch.from_numpy(normalise(arrays[f"{part}_inputs"], **pixels))
    return inputs, torch.from_numpy(arrays[f"{part}_labels"])
