"""What a data set of official IDX files is: their digests, and the slice of them that ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.data.raw import RawDataset, pick, relabel

BUNDLED = Path(__file__).with_name("bundled")


@dataclass(frozen=True)
class Official:
    """A data set as its authors publish it: train and test images and labels, one IDX file each.

    Attributes:
        name: As settings call it.
        title: As people call it.
        sha256: Of the four uncompressed files, by their names: train images, train labels, test
            images, test labels.
        folder: Environment variable that names the folder with the files.
        default_folder: Where they are looked for if it is not set, if anywhere.
        others: Sources that hold more than the slice, as a user sets them.
        slice_path: The slice that ships with the package.
        slice_sha256: Of its uncompressed bytes: another liblzma may compress them otherwise.
        slice_train: Training samples in it, the first of their classes.
        slice_test: Test samples in it.
        slice_classes: Classes it holds samples of, with their ids; None for all, where ids are
            positions.
        side: Height and width of an image.
    """

    name: str
    title: str
    sha256: dict[str, str]
    folder: str
    default_folder: Path | None
    others: str
    slice_path: Path
    slice_sha256: str
    slice_train: int
    slice_test: int
    slice_classes: tuple[int, ...] | None = None
    side: int = 28


@dataclass(frozen=True)
class Part:
    """Training or test samples: images (n, side, side), labels (n,) and official ids (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    ids: NDArray[Any]


def first_of(
    of: Official,
    source: str,
    parts: tuple[Part, Part],
    sizes: tuple[int, int],
    where: tuple[str, str],
    remedy: str,
    classes: Sequence[int] | None,
    sha256: dict[str, str],
    revision: str = "official IDX files",
) -> RawDataset:
    """Take the first samples of the training and the test part.

    Args:
        of: The data set.
        source: Where the parts come from.
        parts: Training and test samples, in file order.
        sizes: How many of each.
        where: What each is called in an error.
        remedy: What to do about asking for too many.
        classes: Only these; None for all.
        sha256: Digest by file.
        revision: Of the source.

    Raises:
        LeaveoutError: A size out of range.
    """
    train, test = (
        Part(part.images[kept], relabel(part.labels[kept], classes), part.ids[kept])
        for part, kept in (
            (part, pick(part.labels, classes, n, place, key, remedy))
            for part, n, place, key in zip(parts, sizes, where, ("n_train", "n_test"), strict=True)
        )
    )
    return RawDataset(
        train_inputs=train.images,
        train_labels=train.labels,
        test_inputs=test.images,
        test_labels=test.labels,
        train_id=train.ids.astype(np.int64),
        test_id=test.ids.astype(np.int64),
        provenance={
            "name": of.name,
            "source": source,
            "revision": revision,
            "sha256": sha256,
        },
    )
