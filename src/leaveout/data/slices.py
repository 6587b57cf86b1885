"""The slices of official files that ship with the package.

Each is an xz stream of train images, train labels, train ids, test images, test labels, test ids as
they stand in the official files: a byte a pixel or label, two bytes an id (little-endian). Where a
slice holds all classes its ids are positions and are left out. No header: the pinned digest fixes
the layout.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.data.official import Official, Part, first_of
from leaveout.data.raw import RawDataset
from leaveout.errors import LeaveoutError

_REMEDY = (
    "Restore the file (reinstall leaveout, or git checkout it), or rebuild it from the official "
    "files with scripts/build_slice.py."
)


def read_slice(of: Official) -> tuple[Part, Part]:
    """Read and verify a whole slice.

    Args:
        of: The data set.

    Returns:
        Its training and test samples, read-only, with their official labels.

    Raises:
        LeaveoutError: The file is missing, damaged, or not the slice.
    """
    path = of.slice_path
    try:
        raw = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise LeaveoutError(f"{path}: cannot be read ({error}). {_REMEDY}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != of.slice_sha256:
        raise LeaveoutError(
            f"{path}: its contents have sha256 {found}, expected {of.slice_sha256}. {_REMEDY}"
        )
    start = 0

    def take(n: int, dtype: str) -> NDArray[Any]:
        nonlocal start
        array: NDArray[Any] = np.frombuffer(raw, dtype, n, start)
        start += array.nbytes
        return array

    parts = []
    for n in (of.slice_train, of.slice_test):
        images = take(n * of.side**2, "u1").reshape(n, of.side, of.side)
        labels = take(n, "u1")
        ids = np.arange(n) if of.slice_classes is None else take(n, "<u2")
        parts.append(Part(images, labels, ids))
    return parts[0], parts[1]


def load(
    of: Official, n_train: int, n_test: int, classes: Sequence[int] | None = None
) -> RawDataset:
    """Load the first samples of a slice.

    Args:
        of: The data set.
        n_train: 1 to 5000, less where ``classes`` are some of the slice's.
        n_test: 1 to 500, likewise.
        classes: Only samples of these; None for all that the data set has.

    Raises:
        LeaveoutError: A number out of range, classes the slice does not hold, or the file is
            damaged.
    """
    where = f"the bundled {of.title} slice"
    held = of.slice_classes
    if held is not None and (classes is None or set(classes) - set(held)):
        wanted = "all" if classes is None else ", ".join(map(str, classes))
        raise LeaveoutError(
            f"classes: {wanted}: {where} holds classes {', '.join(map(str, held))} only. Set "
            f"classes: {list(held)}, or {of.others}."
        )
    return first_of(
        of,
        "bundled",
        read_slice(of),
        (n_train, n_test),
        (where, where),
        f"for more, set {of.others}",
        classes,
        {f"{of.slice_path.stem} (uncompressed)": of.slice_sha256, **of.sha256},
    )
