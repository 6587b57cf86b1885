"""What is shown of samples: pictures, texts, or their ids, and their labels where they have any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.store.artefacts import Artefact, CorruptArtefactError, Rows, read

Array = NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """A setting's data.

    Attributes:
        images: Of the training samples, left on disk; or texts, where there are no images.
        train_id: (train,).
        labels: (train,), as trained on; None where samples have no class.
        original: The label before it was flipped, of those that were, by id.
        test: Images of the test samples, left on disk, or texts.
        test_id: (test,).
        test_labels: (test,) or None.
        full_scale: The value of a pixel that is drawn black; None for pictures that are drawn as
            they are, see :class:`leaveout.reporting.sheet.Sheet`.
    """

    images: Rows | list[str]
    train_id: Array
    labels: Array | None
    original: dict[int, int]
    test: Rows | list[str]
    test_id: Array
    test_labels: Array | None
    full_scale: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a picture."""
        return (1, 1) if isinstance(self.images, list) else self.images.shape[1:]

    def picture(self, sample: int) -> Array | str:
        """Return the image, or the text, of a training sample."""
        return _row(self.images, self.train_id, sample)

    def tested(self, sample: int) -> Array | str:
        """Return the image, or the text, of a test sample."""
        return _row(self.test, self.test_id, sample)

    def label(self, sample: int) -> int | None:
        """Return the label a training sample was trained with, if it has one."""
        return None if self.labels is None else int(self.labels[self.train_id == sample][0])

    def wanted(self, sample: int) -> int | None:
        """Return the label of a test sample, if it has one."""
        if self.test_labels is None:
            return None
        return int(self.test_labels[self.test_id == sample][0])


def _row(rows: Rows | list[str], ids: Array, sample: int) -> Array | str:
    place = np.flatnonzero(ids == sample)
    if isinstance(rows, list):
        return rows[int(place[0])]
    found: Array = rows.take(place)[0]
    return found


def read_samples(path: Path) -> Samples:
    """Read what is shown of the samples of a ``data`` artefact.

    Raises:
        LeaveoutError: The file is missing or damaged.
    """
    names = ("train_inputs", "test_inputs", "train_show", "test_show")
    data = read(path, "data", leave=names)
    found = data.tensors
    flipped = found.get("flipped_id", np.zeros(0, np.int64))
    was = found.get("original_labels", flipped)
    pixels = data.meta.get("pixels")
    train, test = (_shown(data, part) for part in ("train", "test"))
    return Samples(
        images=train,
        train_id=found["train_id"],
        labels=found.get("train_labels"),
        original={int(i): int(label) for i, label in zip(flipped, was, strict=True)},
        test=test,
        test_id=found["test_id"],
        test_labels=found.get("test_labels"),
        full_scale=float(pixels["full_scale"]) if pixels else None,
    )


def _shown(data: Artefact, part: str) -> Rows | list[str]:
    """Return what is shown of training or test samples: images, else texts, else their ids."""
    name = f"{part}_{'inputs' if 'pixels' in data.meta else 'show'}"
    if name in data.rows:
        if len(data.rows[name].shape) not in (3, 4):
            raise CorruptArtefactError(data.path, f"its {name} are no images")
        return data.rows[name]
    texts = data.meta.get("show", {}).get(part)
    return list(texts or (f"id {sample}" for sample in data.tensors[f"{part}_id"]))
