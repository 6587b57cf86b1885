"""Rebuild the bundled MNIST slice from the official files, or check that it is what they give.

    python scripts/build_mnist_slice.py FOLDER [--check]

FOLDER holds the four official IDX files (train-images-idx3-ubyte and so on), gzipped or not. They
are verified against the digests in ``leaveout.data.mnist`` before anything is read from them. MNIST
is by Yann LeCun, Corinna Cortes and Christopher J. C. Burges; the same samples, in the same order,
are the Hugging Face data set ylecun/mnist, revision 77f3279092a1c1579b2250db8eafed0ad422088c.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from leaveout.artefacts import atomic_path
from leaveout.data import mnist
from leaveout.data.idx import read_idx
from leaveout.errors import LeaveoutError


def build_slice(folder: Path, sha256: Mapping[str, str], n_train: int, n_test: int) -> bytes:
    """Cut the slice out of the official files.

    Args:
        folder: Where the four files lie.
        sha256: Their digests by official name: train images and labels, test images and labels.
        n_train: How many training samples to keep.
        n_test: How many test samples to keep.

    Returns:
        Train images, train labels, test images, test labels, one byte each.

    Raises:
        LeaveoutError: A file is missing, damaged, or another one.
    """
    parts = []
    for (name, digest), n in zip(sha256.items(), (n_train, n_train, n_test, n_test), strict=True):
        parts.append(read_idx(folder, name, digest)[:n].tobytes())
    return b"".join(parts)


def compress(raw: bytes) -> bytes:
    """Compress, with every setting spelt out so that the bytes do not depend on a default."""
    preset = 9 | lzma.PRESET_EXTREME
    settings = {"id": lzma.FILTER_LZMA2, "preset": preset, "lc": 4, "lp": 0, "pb": 0}
    return lzma.compress(raw, lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=[settings])


def compare(path: Path, raw: bytes, packed: bytes) -> str:
    """Compare the shipped file with a fresh build.

    Args:
        path: The shipped file.
        raw: The slice.
        packed: The slice, compressed here.

    Returns:
        What the comparison showed. A release of liblzma may compress the same bytes otherwise (its
        authors promise no more), so other bytes with the same contents are said, not refused.

    Raises:
        LeaveoutError: The file is missing, damaged, or holds something else.
    """
    remedy = "Run without --check to rebuild it."
    try:
        shipped = path.read_bytes()
        same = lzma.decompress(shipped) == raw
    except (OSError, lzma.LZMAError) as error:
        raise LeaveoutError(f"{path}: cannot be read ({error}). {remedy}") from error
    if not same:
        raise LeaveoutError(f"{path}: not what the official files give. {remedy}")
    return "bit-identical" if shipped == packed else "same contents, compressed by another liblzma"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the four official IDX files")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args(argv)
    try:
        raw = build_slice(args.folder, mnist.IDX_SHA256, mnist.N_TRAIN, mnist.N_TEST)
        packed = compress(raw)
        if args.check:
            note = compare(mnist.PATH, raw, packed)
        else:
            note = "written"
            with atomic_path(mnist.PATH) as temporary:
                temporary.write_bytes(packed)
    except LeaveoutError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{mnist.PATH}: {note}, {len(packed)} bytes")
    print(f"sha256 of the file:         {hashlib.sha256(packed).hexdigest()}")
    print(f"sha256 of the uncompressed: {hashlib.sha256(raw).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
