from __future__ import annotations

import dataclasses
import gzip
import os

import numpy as np
import pytest

from leaveout.data import fashion_mnist, idx, mnist, sources
from leaveout.errors import LeaveoutError

NAMES = [*mnist.MNIST.sha256]


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_samples_of_the_official_files(official, packed):
    folder, of = official.folder, official.of
    for path in list(folder.iterdir()) if packed else []:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    raw = sources.load(of.name, "idx", 7, 4)
    found = [raw.train_inputs, raw.train_labels, raw.test_inputs, raw.test_labels]
    for ours, array, n in zip(found, official.arrays, (7, 7, 4, 4), strict=True):
        np.testing.assert_array_equal(ours, array[:n])
    assert [array.dtype for array in found] == [np.uint8, np.int64, np.uint8, np.int64]
    assert (raw.train_id.tolist(), raw.test_id.tolist()) == (list(range(7)), list(range(4)))
    assert raw.provenance["sha256"] == of.sha256
    assert (raw.provenance["name"], raw.provenance["source"]) == (of.name, "idx")
    raw.train_inputs[:] = 0  # the caller's own


@pytest.mark.parametrize("classes", [(2, 4), (4, 2), (9, 0, 5)])
def test_some_classes_against_a_naive_loop(official, classes):
    raw = sources.load(official.of.name, "idx", 4, 3, classes=classes)
    parts = (
        (raw.train_inputs, raw.train_labels, raw.train_id, *official.arrays[:2]),
        (raw.test_inputs, raw.test_labels, raw.test_id, *official.arrays[2:]),
    )
    for images, labels, ids, all_images, all_labels in parts:
        expected = []
        for i, label in enumerate(all_labels.tolist()):
            if label in classes and len(expected) < len(ids):
                expected.append((i, classes.index(label)))
        assert [*zip(ids.tolist(), labels.tolist(), strict=True)] == expected
        np.testing.assert_array_equal(images, all_images[[i for i, _ in expected]])
        assert ids.dtype == labels.dtype == np.int64


@pytest.mark.parametrize(
    ("sizes", "classes", "message"),
    [
        ((31, 1), None, "n_train: 31 is more than the 30"),
        ((1, 21), None, "n_test: 21 is more"),
        ((0, 1), None, "n_train: 0"),
        ((7, 1), (2, 4), "n_train: 7 is more than the 6 of .*MNIST's training set in classes 2, 4"),
        ((1, 5), (2, 4), "n_test: 5 is more than the 4 of .*MNIST's test set in classes 2, 4"),
    ],
)
def test_sizes_out_of_range(official, sizes, classes, message):
    with pytest.raises(LeaveoutError, match=message):
        sources.load(official.of.name, "idx", *sizes, classes=classes)


def test_a_folder_that_is_not_named_or_lacks_a_file(official, monkeypatch, tmp_path):
    of = dataclasses.replace(official.of, default_folder=tmp_path / "debian" / "fashion")
    (official.folder / NAMES[3]).unlink()
    with pytest.raises(LeaveoutError, match=f"neither {NAMES[3]} nor"):
        idx.load(of, 7, 4)
    monkeypatch.delenv(of.folder)
    with pytest.raises(LeaveoutError, match=rf"{of.folder} is not set.*\(Debian: dataset-fashion"):
        idx.load(of, 7, 4)
    of = dataclasses.replace(of, default_folder=None)
    with pytest.raises(LeaveoutError, match=rf"{of.folder} is not set.*source: hub"):
        idx.load(of, 7, 4)


def test_the_usual_folder_is_looked_into_unless_another_is_named(official, monkeypatch, tmp_path):
    of = dataclasses.replace(official.of, default_folder=official.folder)
    monkeypatch.setenv(of.folder, str(tmp_path / "elsewhere"))
    with pytest.raises(LeaveoutError, match="elsewhere"):
        idx.load(of, 7, 4)
    monkeypatch.delenv(of.folder)
    np.testing.assert_array_equal(idx.load(of, 7, 4).train_inputs, official.arrays[0][:7])


@pytest.mark.parametrize("name", NAMES)
def test_other_files_are_refused(official, name):
    contents = bytearray((official.folder / name).read_bytes())
    contents[-1] ^= 1
    (official.folder / name).write_bytes(contents)
    with pytest.raises(LeaveoutError, match=f"{name}: sha256 .*, the official file has"):
        sources.load(official.of.name, "idx", 1, 1)


def assert_slice_is_the_beginning(name: str, classes: tuple[int, ...] | None) -> None:
    whole = sources.load(name, "idx", 5000, 500, classes=classes)
    ours = sources.load(name, "bundled", 5000, 500, classes=classes)
    for part in ("train", "test"):
        for what in ("inputs", "labels", "id"):
            key = f"{part}_{what}"
            np.testing.assert_array_equal(getattr(whole, key), getattr(ours, key))


@pytest.mark.skipif(
    "LEAVEOUT_MNIST_IDX_DIR" not in os.environ,
    reason="set LEAVEOUT_MNIST_IDX_DIR to a folder with the four official IDX files",
)
def test_the_bundled_mnist_slice_is_its_beginning():
    assert_slice_is_the_beginning("mnist", None)


@pytest.mark.skipif(
    "LEAVEOUT_FASHION_MNIST_IDX_DIR" not in os.environ
    and not fashion_mnist.FASHION_MNIST.default_folder.is_dir(),
    reason="set LEAVEOUT_FASHION_MNIST_IDX_DIR to a folder with the four official IDX files, or "
    "install Debian's dataset-fashion-mnist",
)
def test_the_bundled_fashion_mnist_slice_is_its_beginning():
    assert_slice_is_the_beginning("fashion_mnist", (2, 4))
