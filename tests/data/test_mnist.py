from __future__ import annotations

import hashlib
import lzma

import numpy as np
import pytest

from leaveout.data import mnist
from leaveout.errors import LeaveoutError

# Counted in the official files by an independent reader.
TRAIN_COUNTS = [479, 563, 488, 493, 535, 434, 501, 550, 462, 495]
TEST_COUNTS = [42, 67, 55, 45, 55, 50, 43, 49, 40, 54]


def test_whole_slice():
    raw = mnist.load(5000, 500)
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
    assert mnist.IDX_SHA256.items() <= raw.provenance["sha256"].items()


def test_images_go_with_their_labels():
    # A nearest-neighbour classifier sees at once if images and labels are shifted or cut wrongly.
    raw = mnist.load(2000, 200)
    train = raw.train_inputs.reshape(2000, -1).astype(np.float64)
    test = raw.test_inputs.reshape(200, -1).astype(np.float64)
    distance = (train**2).sum(1) - 2 * test @ train.T
    assert (raw.train_labels[distance.argmin(1)] == raw.test_labels).mean() > 0.85


def test_part_of_the_slice_is_its_beginning_and_can_be_written_to():
    raw, whole = mnist.load(3, 2), mnist.load(5000, 500)
    np.testing.assert_array_equal(raw.train_inputs, whole.train_inputs[:3])
    np.testing.assert_array_equal(raw.test_inputs, whole.test_inputs[:2])
    raw.train_inputs[:] = 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-100],
        lambda packed: b"",
        lambda packed: packed[:9000] + bytes([packed[9000] ^ 1]) + packed[9001:],
        lambda packed: lzma.compress(lzma.decompress(packed)[::-1]),  # sound, but not the slice
    ],
    ids=["truncated", "empty", "flipped", "other contents"],
)
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, damage):
    path = tmp_path / "slice.xz"
    path.write_bytes(damage(mnist.PATH.read_bytes()))
    monkeypatch.setattr(mnist, "PATH", path)
    with pytest.raises(LeaveoutError, match=r"slice\.xz.*[Rr]estore") as caught:
        mnist.load(1, 1)
    assert "build_mnist_slice.py" in str(caught.value)


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "PATH", tmp_path / "gone.xz")
    with pytest.raises(LeaveoutError, match=r"gone\.xz"):
        mnist.load(1, 1)


def test_readme_states_the_digests_and_sizes():
    readme = mnist.PATH.with_name("README.md").read_text(encoding="utf-8")
    packed = mnist.PATH.read_bytes()
    digests = [hashlib.sha256(packed).hexdigest(), mnist.SLICE_SHA256, *mnist.IDX_SHA256.values()]
    assert all(digest in readme for digest in digests)
    assert f"{len(packed):,} bytes" in readme
