"""A data set from the four official IDX files in a folder of the user's, verified by sha256.

The folder is named by the environment, not by the setting: where the files lie decides nothing, for
only the official ones are read.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaveout.data.official import Official, Part, first_of
from leaveout.data.raw import RawDataset
from leaveout.errors import LeaveoutError


def load(
    of: Official, n_train: int, n_test: int, classes: Sequence[int] | None = None
) -> RawDataset:
    """Load the first samples of a data set from the folder that its variable names.

    Args:
        of: The data set.
        n_train: 1 to 60000, less where only some classes are asked for.
        n_test: 1 to 10000, likewise.
        classes: Only samples of these; None for all.

    Raises:
        LeaveoutError: No folder is named, a number is out of range, or a file is missing, damaged
            or another one.
    """
    parts = read_parts(folder_of(of), of)
    where = (f"{of.title}'s training set", f"{of.title}'s test set")
    return first_of(
        of, "idx", parts, (n_train, n_test), where, "ask for fewer", classes, dict(of.sha256)
    )


def folder_of(of: Official) -> Path:
    """Return the folder with a data set's official files.

    Args:
        of: The data set.

    Raises:
        LeaveoutError: Its variable is not set, and the files are not where they are looked for
            otherwise.
    """
    named = os.environ.get(of.folder)
    if named:
        return Path(named)
    if of.default_folder is not None and of.default_folder.is_dir():
        return of.default_folder
    elsewhere = (
        "or set source: hub, which downloads the same samples"
        if of.default_folder is None
        else f"or install them in {of.default_folder} (Debian: dataset-{of.default_folder.name})"
    )
    raise LeaveoutError(
        f"source: idx: {of.folder} is not set. Set it to a folder with the four official "
        f"{of.title} files (train-images-idx3-ubyte and so on, gzipped or not), {elsewhere}."
    )


def read_parts(folder: Path, of: Official) -> tuple[Part, Part]:
    """Read and verify the four official files.

    Args:
        folder: Where they lie.
        of: The data set.

    Returns:
        Training and test samples, read-only; ids are positions.

    Raises:
        LeaveoutError: A file is missing, damaged, or another one.
    """
    arrays = [read_idx(folder, name, digest) for name, digest in of.sha256.items()]
    train, test = (
        Part(images, labels, np.arange(len(labels)))
        for images, labels in zip(arrays[::2], arrays[1::2], strict=True)
    )
    return train, test


def read_idx(folder: Path, name: str, sha256: str) -> NDArray[np.uint8]:
    """Read one official file, gzipped or not, and verify it.

    Args:
        folder: Where it lies.
        name: Its official name, without ``.gz``.
        sha256: Expected digest of the uncompressed file.

    Returns:
        Its array, read-only.

    Raises:
        LeaveoutError: It is missing, damaged, or another file.
    """
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        raw = path.read_bytes() if path == plain else gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise LeaveoutError(f"{folder}: neither {name} nor {name}.gz is there.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise LeaveoutError(f"{path}: cannot be read ({error}). Fetch it anew.") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise LeaveoutError(f"{path}: sha256 {found}, the official file has {sha256}.")
    # two zero bytes, 8 (unsigned bytes), the number of dims, then each dim in 4 bytes
    n_dims = raw[3]
    shape = np.frombuffer(raw, ">u4", n_dims, offset=4).tolist()
    return np.frombuffer(raw, np.uint8, math.prod(shape), offset=4 + 4 * n_dims).reshape(shape)
