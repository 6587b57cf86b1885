"""Rebuild a bundled slice from the official files, or check that it is what they give.

    python scripts/build_slice.py {mnist,fashion_mnist} FOLDER [--check]

FOLDER holds the four official IDX files (train-images-idx3-ubyte and so on), gzipped or not. They
are verified against the digests in ``leaveout.data.mnist`` or ``leaveout.data.fashion_mnist``
before anything is read from them. Who made them, and on what terms they are passed on, says
``src/leaveout/data/bundled/README.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

from leaveout.data.fashion_mnist import FASHION_MNIST
from leaveout.data.idx import read_parts
from leaveout.data.mnist import MNIST
from leaveout.data.official import Official
from leaveout.data.raw import pick
from leaveout.errors import LeaveoutError
from leaveout.store.artefacts import atomic_path

SLICED = {"mnist": MNIST, "fashion_mnist": FASHION_MNIST}


def build_slice(folder: Path, of: Official) -> bytes:
    """Cut a slice out of the official files.

    Args:
        folder: Where the four files lie.
        of: The data set.

    Returns:
        What ``leaveout.data.slices`` reads: of train and then of test, images and labels, one byte
        each, and, if the slice leaves classes out, ids in two bytes.

    Raises:
        LeaveoutError: A file is missing, damaged, or another one.
    """
    found = []
    for part, n in zip(read_parts(folder, of), (of.slice_train, of.slice_test), strict=True):
        kept = pick(part.labels, of.slice_classes, n, of.title, "slice", "make the slice smaller")
        found += [part.images[kept].tobytes(), part.labels[kept].tobytes()]
        if of.slice_classes is not None:
            found.append(part.ids[kept].astype("<u2").tobytes())
    return b"".join(found)


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
    parser.add_argument("name", choices=SLICED, help="which data set")
    parser.add_argument("folder", type=Path, help="folder with the four official IDX files")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args(argv)
    of = SLICED[args.name]
    try:
        raw = build_slice(args.folder, of)
        packed = compress(raw)
        if args.check:
            note = compare(of.slice_path, raw, packed)
        else:
            note = "written"
            with atomic_path(of.slice_path) as temporary:
                temporary.write_bytes(packed)
    except LeaveoutError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{of.slice_path}: {note}, {len(packed)} bytes")
    print(f"sha256 of the file:         {hashlib.sha256(packed).hexdigest()}")
    print(f"sha256 of the uncompressed: {hashlib.sha256(raw).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
