from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from leaveout.data import fashion_mnist, mnist, slices
from leaveout.errors import LeaveoutError

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_slice.py"
NAMES = [*mnist.MNIST.sha256]
DEBIAN = fashion_mnist.FASHION_MNIST.default_folder


@pytest.fixture
def script(official):
    """The script, on the stand-ins."""
    spec = importlib.util.spec_from_file_location("build_slice", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SLICED[official.of.name] is official.of
    return module


def test_the_slice_is_the_beginning_of_its_classes(official, script):
    of, expected = official.of, []
    for images, labels, n in (
        (*official.arrays[:2], of.slice_train),
        (*official.arrays[2:], of.slice_test),
    ):
        held = of.slice_classes or range(10)
        kept = [i for i in range(len(labels)) if labels[i] in held][:n]
        expected += [b"".join(images[i].tobytes() for i in kept), bytes(labels[i] for i in kept)]
        if of.slice_classes:
            expected.append(b"".join(i.to_bytes(2, "little") for i in kept))
    assert script.build_slice(official.folder, of) == b"".join(expected)


def test_what_it_writes_is_what_the_package_reads(official, script):
    of = official.of
    assert script.main([of.name, str(official.folder)]) == 0
    digest = hashlib.sha256(lzma.decompress(of.slice_path.read_bytes())).hexdigest()
    for part, images, labels, n in zip(
        slices.read_slice(dataclasses.replace(of, slice_sha256=digest)),
        official.arrays[::2],
        official.arrays[1::2],
        (5, 3),
        strict=True,
    ):
        assert len(part.ids) == n
        np.testing.assert_array_equal(part.images, images[part.ids])
        np.testing.assert_array_equal(part.labels, labels[part.ids])
        assert set(part.labels) <= set(of.slice_classes or range(10))


def test_building_twice_and_from_gzip_gives_the_same_bytes(official, script):
    of, folder = official.of, official.folder
    assert script.main([of.name, str(folder)]) == 0
    first = of.slice_path.read_bytes()
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert script.main([of.name, str(folder)]) == 0
    assert of.slice_path.read_bytes() == first


def test_check(official, script, capsys):
    of, arguments = official.of, [official.of.name, str(official.folder)]
    assert script.main([*arguments, "--check"]) == 1
    assert not of.slice_path.exists()
    script.main(arguments)
    assert script.main([*arguments, "--check"]) == 0
    assert "bit-identical" in capsys.readouterr().out
    raw = lzma.decompress(of.slice_path.read_bytes())
    of.slice_path.write_bytes(lzma.compress(raw, preset=0))
    assert script.main([*arguments, "--check"]) == 0
    assert "another liblzma" in capsys.readouterr().out
    of.slice_path.write_bytes(lzma.compress(raw[::-1]))
    assert script.main([*arguments, "--check"]) == 1
    assert "not what the official files give" in capsys.readouterr().err
    of.slice_path.write_bytes(b"nothing of the kind")
    assert script.main([*arguments, "--check"]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_an_altered_official_file_is_refused_and_nothing_written(official, script, capsys, name):
    contents = bytearray((official.folder / name).read_bytes())
    contents[-1] ^= 1  # beyond the slice: only the digest can tell
    (official.folder / name).write_bytes(contents)
    assert script.main([official.of.name, str(official.folder)]) == 1
    assert name in capsys.readouterr().err
    assert not official.of.slice_path.exists()


def test_missing_and_damaged_official_files(official, script, capsys):
    labels = official.folder / "t10k-labels-idx1-ubyte"
    packed = gzip.compress(labels.read_bytes())
    labels.unlink()
    assert script.main([official.of.name, str(official.folder)]) == 1
    assert "neither t10k-labels-idx1-ubyte nor" in capsys.readouterr().err
    (official.folder / "t10k-labels-idx1-ubyte.gz").write_bytes(packed[:-4])
    with pytest.raises(LeaveoutError, match=r"t10k-labels-idx1-ubyte\.gz: cannot be read"):
        script.build_slice(official.folder, official.of)


def shipped_is_built_from(of, folder: str, capsys) -> None:
    spec = importlib.util.spec_from_file_location("build_slice", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([of.name, folder, "--check"]) == 0
    assert of.slice_sha256 in capsys.readouterr().out


@pytest.mark.skipif(
    "LEAVEOUT_MNIST_IDX_DIR" not in os.environ,
    reason="set LEAVEOUT_MNIST_IDX_DIR to a folder with the four official IDX files",
)
def test_shipped_mnist_is_what_the_official_files_give(capsys):
    shipped_is_built_from(mnist.MNIST, os.environ["LEAVEOUT_MNIST_IDX_DIR"], capsys)


@pytest.mark.skipif(
    "LEAVEOUT_FASHION_MNIST_IDX_DIR" not in os.environ and not DEBIAN.is_dir(),
    reason="set LEAVEOUT_FASHION_MNIST_IDX_DIR to a folder with the four official IDX files, or "
    "install Debian's dataset-fashion-mnist",
)
def test_shipped_fashion_mnist_is_what_the_official_files_give(capsys):
    folder = os.environ.get("LEAVEOUT_FASHION_MNIST_IDX_DIR", str(DEBIAN))
    shipped_is_built_from(fashion_mnist.FASHION_MNIST, folder, capsys)
