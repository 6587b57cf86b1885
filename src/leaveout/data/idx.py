"""MNIST from the four official IDX files in a folder of the user's, verified by sha256.

The folder is named by the environment, not by the setting: where the files lie decides nothing, for
only the official ones are read.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaveout.data import mnist
from leaveout.data.sources import RawDataset, check_size
from leaveout.errors import LeaveoutError

FOLDER = "LEAVEOUT_MNIST_IDX_DIR"


def load(n_train: int, n_test: int) -> RawDataset:
    """Load the first samples of MNIST from the folder that ``LEAVEOUT_MNIST_IDX_DIR`` names.

    Args:
        n_train: 1 to 60000.
        n_test: 1 to 10000.

    Raises:
        LeaveoutError: The variable is not set, a number is out of range, or a file is missing,
            damaged or another one.
    """
    if not os.environ.get(FOLDER):
        raise LeaveoutError(
            f"source: idx: {FOLDER} is not set. Set it to a folder with the four official MNIST "
            "files (train-images-idx3-ubyte and so on, gzipped or not), or set source: hub, which "
            "downloads the same samples."
        )
    folder = Path(os.environ[FOLDER])
    files = {name: read_idx(folder, name, sha256) for name, sha256 in mnist.IDX_SHA256.items()}
    train_inputs, train_labels, test_inputs, test_labels = files.values()
    remedy = "ask for fewer"
    check_size("MNIST's training set", "n_train", n_train, len(train_labels), remedy)
    check_size("MNIST's test set", "n_test", n_test, len(test_labels), remedy)
    return RawDataset(
        train_inputs=train_inputs[:n_train].copy(),
        train_labels=train_labels[:n_train].astype(np.int64),
        test_inputs=test_inputs[:n_test].copy(),
        test_labels=test_labels[:n_test].astype(np.int64),
        train_id=np.arange(n_train, dtype=np.int64),
        test_id=np.arange(n_test, dtype=np.int64),
        provenance={
            "name": "mnist",
            "source": "idx",
            "revision": "official IDX files",
            "sha256": dict(mnist.IDX_SHA256),
        },
    )


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
