from __future__ import annotations

import dataclasses
import hashlib
import lzma

import numpy as np
import pytest

from leaveout.data import slices
from leaveout.data.fashion_mnist import FASHION_MNIST
from leaveout.data.mnist import MNIST
from leaveout.errors import LeaveoutError

BOTH = pytest.mark.parametrize("of", [MNIST, FASHION_MNIST], ids=lambda of: of.name)
# Counted in the official files by an independent reader.
TRAIN_COUNTS = [479, 563, 488, 493, 535, 434, 501, 550, 462, 495]
TEST_COUNTS = [42, 67, 55, 45, 55, 50, 43, 49, 40, 54]


def test_whole_mnist():
    raw = slices.load(MNIST, 5000, 500)
    assert raw.train_inputs.shape == (5000, 28, 28)
    assert raw.test_inputs.shape == (500, 28, 28)
    assert raw.train_inputs.dtype == raw.test_inputs.dtype == np.uint8
    assert raw.train_labels.dtype == raw.train_id.dtype == np.int64
    assert raw.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert raw.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(raw.train_labels).tolist() == TRAIN_COUNTS
    assert np.bincount(raw.test_labels).tolist() == TEST_COUNTS
    assert raw.train_id.tolist() == list(range(5000))
    assert raw.test_id.tolist() == list(range(500))
    assert raw.provenance["source"] == "bundled"
    assert MNIST.sha256.items() <= raw.provenance["sha256"].items()


def test_whole_fashion_mnist():
    raw = slices.load(FASHION_MNIST, 5000, 500, (2, 4))
    assert raw.train_inputs.shape == (5000, 28, 28)
    assert raw.test_inputs.shape == (500, 28, 28)
    assert raw.train_inputs.dtype == raw.test_inputs.dtype == np.uint8
    assert raw.train_labels.dtype == raw.train_id.dtype == raw.test_id.dtype == np.int64
    # counted in the official files, as above
    assert np.bincount(raw.train_labels).tolist() == [2506, 2494]
    assert np.bincount(raw.test_labels).tolist() == [249, 251]
    assert raw.train_id[[0, 1, 2, -1]].tolist() == [5, 7, 19, 25111]
    assert raw.test_id[[0, 1, 2, -1]].tolist() == [1, 6, 10, 2323]
    assert FASHION_MNIST.sha256.items() <= raw.provenance["sha256"].items()


@pytest.mark.parametrize(
    ("of", "classes", "least"), [(MNIST, None, 0.85), (FASHION_MNIST, (2, 4), 0.7)]
)
def test_images_go_with_their_labels(of, classes, least):
    # A nearest-neighbour classifier sees at once if images and labels are shifted or cut wrongly.
    raw = slices.load(of, 2000, 200, classes)
    train = raw.train_inputs.reshape(2000, -1).astype(np.float64)
    test = raw.test_inputs.reshape(200, -1).astype(np.float64)
    distance = (train**2).sum(1) - 2 * test @ train.T
    assert (raw.train_labels[distance.argmin(1)] == raw.test_labels).mean() > least


@BOTH
def test_part_of_a_slice_is_its_beginning_and_can_be_written_to(of):
    raw, (train, test) = slices.load(of, 3, 2, of.slice_classes), slices.read_slice(of)
    np.testing.assert_array_equal(raw.train_inputs, train.images[:3])
    np.testing.assert_array_equal(raw.test_inputs, test.images[:2])
    raw.train_inputs[:] = 0


@pytest.mark.parametrize("classes", [(3, 8), (8, 3), (0, 9, 1), (4, 5)])
def test_some_classes_against_a_naive_loop(classes):
    (train, test), raw = slices.read_slice(MNIST), slices.load(MNIST, 400, 40, classes)
    for part, n, images, labels, ids in (
        (train, 400, raw.train_inputs, raw.train_labels, raw.train_id),
        (test, 40, raw.test_inputs, raw.test_labels, raw.test_id),
    ):
        expected = []
        for i, label in enumerate(part.labels.tolist()):
            if label in classes and len(expected) < n:
                expected.append((i, classes.index(label)))
        assert [*zip(ids.tolist(), labels.tolist(), strict=True)] == expected
        np.testing.assert_array_equal(images, part.images[[i for i, _ in expected]])


def test_turned_round_classes_turn_labels_round():
    there, back = (slices.load(FASHION_MNIST, 50, 20, c) for c in ((2, 4), (4, 2)))
    np.testing.assert_array_equal(there.train_labels, 1 - back.train_labels)
    np.testing.assert_array_equal(there.train_inputs, back.train_inputs)


@pytest.mark.parametrize(
    ("of", "classes", "message"),
    [
        (FASHION_MNIST, None, r"classes: all: the bundled Fashion-MNIST slice holds classes 2, 4"),
        (FASHION_MNIST, (2, 3), r"classes: 2, 3: .* Set classes: \[2, 4\], or source: idx\."),
        (MNIST, (1, 7), r"n_train: 5000 is more than the 1113 of the bundled MNIST slice in clas"),
    ],
)
def test_classes_that_a_slice_has_not_or_too_few_of(of, classes, message):
    with pytest.raises(LeaveoutError, match=message):
        slices.load(of, 5000, 10, classes)


@BOTH
@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-100],
        lambda packed: b"",
        lambda packed: packed[:9000] + bytes([packed[9000] ^ 1]) + packed[9001:],
        lambda packed: lzma.compress(lzma.decompress(packed)[::-1], preset=0),  # not the slice
    ],
    ids=["truncated", "empty", "flipped", "other contents"],
)
def test_a_damaged_file_is_refused(tmp_path, of, damage):
    path = tmp_path / "slice.xz"
    path.write_bytes(damage(of.slice_path.read_bytes()))
    with pytest.raises(LeaveoutError, match=r"slice\.xz.*[Rr]estore") as caught:
        slices.load(dataclasses.replace(of, slice_path=path), 1, 1, of.slice_classes)
    assert "build_slice.py" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LeaveoutError, match=r"gone\.xz"):
        slices.load(dataclasses.replace(MNIST, slice_path=tmp_path / "gone.xz"), 1, 1)


@BOTH
def test_readme_states_the_digests_and_sizes(of):
    readme = of.slice_path.with_name("README.md").read_text(encoding="utf-8")
    packed = of.slice_path.read_bytes()
    digests = [hashlib.sha256(packed).hexdigest(), of.slice_sha256, *of.sha256.values()]
    assert all(digest in readme for digest in digests)
    assert f"{len(packed):,} bytes" in readme
    assert len(packed) < 3_000_000
