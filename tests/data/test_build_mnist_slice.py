from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from leaveout.data import mnist
from leaveout.errors import LeaveoutError

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_mnist_slice.py"
spec = importlib.util.spec_from_file_location("build_mnist_slice", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_slice_is_the_beginning_of_each_file(official):
    folder, arrays = official
    raw = script.build_slice(folder, mnist.IDX_SHA256, 5, 3)
    kept = [array[:n] for array, n in zip(arrays, (5, 5, 3, 3), strict=True)]
    assert raw == b"".join(array.tobytes() for array in kept)


def test_what_it_writes_is_what_the_package_reads(official, monkeypatch):
    folder, arrays = official
    assert script.main([str(folder)]) == 0
    raw = lzma.decompress(mnist.PATH.read_bytes())
    monkeypatch.setattr(mnist, "SLICE_SHA256", hashlib.sha256(raw).hexdigest())
    for ours, array in zip(mnist.read_slice().values(), arrays, strict=True):
        np.testing.assert_array_equal(ours, array[: len(ours)])


def test_building_twice_and_from_gzip_gives_the_same_bytes(official):
    folder, _ = official
    assert script.main([str(folder)]) == 0
    first = mnist.PATH.read_bytes()
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert script.main([str(folder)]) == 0
    assert mnist.PATH.read_bytes() == first


def test_check(official, capsys):
    folder, _ = official
    assert script.main([str(folder), "--check"]) == 1
    assert not mnist.PATH.exists()
    script.main([str(folder)])
    assert script.main([str(folder), "--check"]) == 0
    assert "bit-identical" in capsys.readouterr().out
    raw = lzma.decompress(mnist.PATH.read_bytes())
    mnist.PATH.write_bytes(lzma.compress(raw, preset=0))
    assert script.main([str(folder), "--check"]) == 0
    assert "another liblzma" in capsys.readouterr().out
    mnist.PATH.write_bytes(lzma.compress(raw[::-1]))
    assert script.main([str(folder), "--check"]) == 1
    assert "not what the official files give" in capsys.readouterr().err
    mnist.PATH.write_bytes(b"nothing of the kind")
    assert script.main([str(folder), "--check"]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(mnist.IDX_SHA256))
def test_an_altered_official_file_is_refused_and_nothing_written(official, capsys, name):
    folder, _ = official
    contents = bytearray((folder / name).read_bytes())
    contents[-1] ^= 1  # beyond the slice: only the digest can tell
    (folder / name).write_bytes(contents)
    assert script.main([str(folder)]) == 1
    assert name in capsys.readouterr().err
    assert not mnist.PATH.exists()


def test_missing_and_damaged_official_files(official, capsys):
    folder, _ = official
    labels = folder / "t10k-labels-idx1-ubyte"
    packed = gzip.compress(labels.read_bytes())
    labels.unlink()
    assert script.main([str(folder)]) == 1
    assert "neither t10k-labels-idx1-ubyte nor" in capsys.readouterr().err
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(packed[:-4])
    with pytest.raises(LeaveoutError, match=r"t10k-labels-idx1-ubyte\.gz: cannot be read"):
        script.build_slice(folder, mnist.IDX_SHA256, 5, 3)


@pytest.mark.skipif(
    "LEAVEOUT_MNIST_IDX_DIR" not in os.environ,
    reason="set LEAVEOUT_MNIST_IDX_DIR to a folder with the four official IDX files",
)
def test_shipped_file_is_what_the_official_files_give(capsys):
    assert script.main([os.environ["LEAVEOUT_MNIST_IDX_DIR"], "--check"]) == 0
    assert mnist.SLICE_SHA256 in capsys.readouterr().out
