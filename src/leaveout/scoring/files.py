"""Score files: read, checked, and put in the order of a ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.data.halves import Ids
from leaveout.errors import LeaveoutError
from leaveout.store.artefacts import Array, Artefact, CorruptArtefactError, Rows, read


@dataclass(frozen=True)
class Scores:
    """A score file's rows and columns in the order of a ground truth.

    Attributes:
        rows: The scores, on disk.
        train: Positions of the truth's training samples.
        test: Positions of the truth's test samples.
    """

    rows: Rows
    train: NDArray[np.intp]
    test: NDArray[np.intp]

    def blocks(self, tests: slice = slice(None)) -> Iterator[tuple[slice, Array]]:
        """Yield some training samples at a time: (which, their scores (train, test))."""
        for part, block in self.rows.blocks(self.train):
            yield part, block[:, self.test[tests]]


def arrays_of(artefact: Artefact, *names: str) -> list[NDArray[Any]]:
    """Return arrays of an artefact by name; it is damaged if one is not there."""
    for name in names:
        if name not in artefact.tensors:
            raise CorruptArtefactError(artefact.path, f"it has no array {name!r}")
    return [artefact.tensors[name] for name in names]


def sorted_ids(artefact: Artefact, name: str) -> tuple[Ids, NDArray[np.intp]]:
    """Return the ids of a dim in order, and the positions they come from."""
    (ids,) = arrays_of(artefact, name)
    unique, order = np.unique(ids, return_index=True)
    if len(unique) != len(ids) or not len(ids):
        raise CorruptArtefactError(artefact.path, f"{name} is empty or names an id twice")
    return unique, order


def listed(ids: Ids | Sequence[str]) -> str:
    """Return the first few as text."""
    shown = ", ".join(map(str, ids[:5]))
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"


def read_scores(
    paths: Sequence[Path], setting: str, method: str, kind: str = "score"
) -> dict[str, Artefact]:
    """Read the scores of one method by the label of their hyper-parameters.

    Args:
        paths: The files.
        setting: The setting they must be of.
        method: The method they must be of.
        kind: The kind of artefact they must be.

    Raises:
        LeaveoutError: There are none, or one is damaged, a repetition, or of something else.
    """
    scores: dict[str, Artefact] = {}
    for path in paths:
        artefact = read(path, kind, leave=["score"])
        for key, expected in (("setting", setting), ("method", method)):
            if artefact.meta.get(key) != expected:
                raise LeaveoutError(
                    f"{path}: its {key} is {artefact.meta.get(key)!r}, expected {expected!r}. "
                    "Evaluate each method on its own, against its own setting."
                )
        label = artefact.meta.get("label")
        if not isinstance(label, str):
            raise CorruptArtefactError(
                Path(path), "its header has no label of its hyper-parameters"
            )
        if label in scores:
            raise LeaveoutError(
                f"{path}: {label!r} is also the label of {scores[label].path}. Give each once."
            )
        scores[label] = artefact
    if not scores:
        raise LeaveoutError(f"{setting}, {method}: no score file given.")
    return scores


def not_computed(artefact: Artefact) -> str:
    """Return why a method could not score a setting, such as ``memory: ...``; nothing if it did.

    Args:
        artefact: Scores, or what is in their place.
    """
    why = artefact.meta.get("not_computed")
    return f"{why['reason']}: {why['detail']}" if why else ""
