from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from leaveout.data import mnist, sources
from leaveout.errors import LeaveoutError


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_samples_of_the_official_files(official, monkeypatch, packed):
    folder, arrays = official
    for path in list(folder.iterdir()) if packed else []:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    monkeypatch.setenv("LEAVEOUT_MNIST_IDX_DIR", str(folder))
    raw = sources.load("mnist", "idx", 7, 4)
    found = [raw.train_inputs, raw.train_labels, raw.test_inputs, raw.test_labels]
    for ours, array, n in zip(found, arrays, (7, 7, 4, 4), strict=True):
        np.testing.assert_array_equal(ours, array[:n])
    assert [array.dtype for array in found] == [np.uint8, np.int64, np.uint8, np.int64]
    assert (raw.train_id.tolist(), raw.test_id.tolist()) == (list(range(7)), list(range(4)))
    assert raw.provenance["sha256"] == mnist.IDX_SHA256
    raw.train_inputs[:] = 0  # the caller's own


@pytest.mark.parametrize(
    ("n_train", "n_test", "message"),
    [(10, 1, "n_train: 10 is more than the 9"), (1, 7, "n_test: 7 is more"), (0, 1, "n_train: 0")],
)
def test_sizes_out_of_range(official, monkeypatch, n_train, n_test, message):
    monkeypatch.setenv("LEAVEOUT_MNIST_IDX_DIR", str(official[0]))
    with pytest.raises(LeaveoutError, match=message):
        sources.load("mnist", "idx", n_train, n_test)


def test_a_folder_that_is_not_named_or_lacks_a_file(official, monkeypatch):
    monkeypatch.delenv("LEAVEOUT_MNIST_IDX_DIR", raising=False)
    with pytest.raises(LeaveoutError, match=r"LEAVEOUT_MNIST_IDX_DIR is not set.*source: hub"):
        sources.load("mnist", "idx", 7, 4)
    folder, _ = official
    monkeypatch.setenv("LEAVEOUT_MNIST_IDX_DIR", str(folder))
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(LeaveoutError, match="neither t10k-labels-idx1-ubyte nor"):
        sources.load("mnist", "idx", 7, 4)


@pytest.mark.parametrize("name", list(mnist.IDX_SHA256))
def test_other_files_are_refused(official, monkeypatch, name):
    folder, _ = official
    contents = bytearray((folder / name).read_bytes())
    contents[-1] ^= 1
    (folder / name).write_bytes(contents)
    monkeypatch.setenv("LEAVEOUT_MNIST_IDX_DIR", str(folder))
    with pytest.raises(LeaveoutError, match=f"{name}: sha256 .*, the official file has"):
        sources.load("mnist", "idx", 1, 1)


@pytest.mark.skipif(
    "LEAVEOUT_MNIST_IDX_DIR" not in os.environ,
    reason="set LEAVEOUT_MNIST_IDX_DIR to a folder with the four official IDX files",
)
def test_the_bundled_slice_is_its_beginning():
    whole, ours = sources.load("mnist", "idx", 60000, 10000), mnist.load(5000, 500)
    for name in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        part = getattr(ours, name)
        np.testing.assert_array_equal(getattr(whole, name)[: len(part)], part)
