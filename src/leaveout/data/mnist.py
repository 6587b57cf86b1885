"""The published MNIST slice, shipped with the package: first 5000 train and first 500 test samples.

The file is an xz stream of train images, train labels, test images, test labels, one byte each, as
they stand in the official IDX files. No header: the pinned digest below fixes the layout.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaveout.data.sources import RawDataset, check_size
from leaveout.errors import LeaveoutError

N_TRAIN, N_TEST, SIDE = 5000, 500, 28
PATH = Path(__file__).with_name("bundled") / f"mnist-{N_TRAIN}-{N_TEST}.xz"
# Of the uncompressed bytes: another liblzma may compress them otherwise.
SLICE_SHA256 = "97c7a938fcac02012b70bc334a17b8bd39d60c88bd292a48a2eaaac7f28ebead"
# The four official files, uncompressed.
IDX_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_REMEDY = (
    "Restore the file (reinstall leaveout, or git checkout it), or rebuild it from the official "
    "files with scripts/build_mnist_slice.py."
)


def read_slice() -> dict[str, NDArray[np.uint8]]:
    """Read and verify the whole bundled slice.

    Returns:
        Read-only arrays ``train_inputs`` (5000, 28, 28), ``train_labels`` (5000,),
        ``test_inputs`` (500, 28, 28) and ``test_labels`` (500,), uint8.

    Raises:
        LeaveoutError: The file is missing, damaged, or not the slice.
    """
    try:
        raw = lzma.decompress(PATH.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise LeaveoutError(f"{PATH}: cannot be read ({error}). {_REMEDY}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != SLICE_SHA256:
        raise LeaveoutError(
            f"{PATH}: its contents have sha256 {found}, expected {SLICE_SHA256}. {_REMEDY}"
        )
    shapes = {
        "train_inputs": (N_TRAIN, SIDE, SIDE),
        "train_labels": (N_TRAIN,),
        "test_inputs": (N_TEST, SIDE, SIDE),
        "test_labels": (N_TEST,),
    }
    arrays, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        arrays[name] = np.frombuffer(raw, np.uint8, size, start).reshape(shape)
        start += size
    return arrays


def load(n_train: int, n_test: int) -> RawDataset:
    """Load the first samples of the bundled slice.

    Args:
        n_train: 1 to 5000.
        n_test: 1 to 500.

    Raises:
        LeaveoutError: A number out of range, or the file is damaged.
    """
    for key, wanted, held in (("n_train", n_train, N_TRAIN), ("n_test", n_test, N_TEST)):
        check_size("the bundled MNIST slice", key, wanted, held, "for more, set source: hub or idx")
    arrays = read_slice()
    return RawDataset(
        train_inputs=arrays["train_inputs"][:n_train].copy(),
        train_labels=arrays["train_labels"][:n_train].astype(np.int64),
        test_inputs=arrays["test_inputs"][:n_test].copy(),
        test_labels=arrays["test_labels"][:n_test].astype(np.int64),
        train_id=np.arange(n_train, dtype=np.int64),
        test_id=np.arange(n_test, dtype=np.int64),
        provenance={
            "name": "mnist",
            "source": "bundled",
            "revision": "official IDX files",
            "sha256": {f"{PATH.stem} (uncompressed)": SLICE_SHA256, **IDX_SHA256},
        },
    )
