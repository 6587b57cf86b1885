"""Artefacts: one self-describing safetensors file per output, written whole or not at all.

A file holds named arrays and a JSON header. The header names the kind of artefact and the dims of
each array, and carries the provenance its writer passes in. Coordinates are arrays too: dim
``train`` is labelled by the int64 array ``train_id``, so that everything is keyed by sample id and
never by position in a loader. The sha256 of the arrays and that of the header are stored too and
checked on every read: a truncated, altered or half-written file is never taken for whole. Nothing
is ever pickled.

An array larger than memory is written from a ``Stream`` of blocks, and read by rows
(``read(..., leave=...)``). Its file is the same, byte for byte, as if it had been written whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from leaveout.errors import LeaveoutError

FORMAT = "leaveout/1"
Array = NDArray[Any]
Dims = Mapping[str, tuple[str, ...]]

TEMPORARY = ".tmp."
"""In the name of a file that is being written, between eight hex digits and its final name."""

RESULTS = Path("results")
"""Where the workflow writes, below the working folder."""

JSON_LIMIT = 16 << 20
"""Bytes of a header, or of a stamp, at most: more is refused, unread."""

BLOCK_BYTES = 32 << 20
"""How much of an array that stays on disk is in memory at once, about."""

_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
    "I32": "<i4", "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
"""numpy's names of safetensors' dtypes; safetensors lays arrays out from the last to the first."""


@dataclass(frozen=True)
class Stream:
    """An array to be written block by block, so that it is never whole in memory.

    Attributes:
        dtype: Of every block.
        shape: Of the whole array.
        blocks: Its rows in order, some at a time; asked for once.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Iterable[Array]


@dataclass(frozen=True)
class Rows:
    """An array that stays on disk.

    Attributes:
        path: The file.
        offset: Where in it the array starts, in bytes.
        dtype: Of the array.
        shape: Of the array.
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def take(self, rows: NDArray[np.integer[Any]]) -> Array:
        """Read the rows at some positions, in that order.

        Raises:
            CorruptArtefactError: The file has become shorter.
        """
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.path.open("rb") as handle:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                if len(run):
                    handle.seek(self.offset + int(rows[run[0]]) * size)
                    self._fill(out[run[0] : run[-1] + 1], handle)
        return out

    def whole(self) -> Array:
        """Read all of it."""
        out = np.empty(self.shape, self.dtype)
        with self.path.open("rb") as handle:
            handle.seek(self.offset)
            self._fill(out, handle)
        return out

    def blocks(self, rows: NDArray[np.integer[Any]]) -> Iterator[tuple[slice, Array]]:
        """Read the rows at some positions, in that order, about ``BLOCK_BYTES`` at a time.

        Yields:
            (which of the positions, their rows).
        """
        row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
        size = max(1, BLOCK_BYTES // row)
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            yield part, self.take(rows[part])

    def _fill(self, out: Array, handle: io.BufferedReader) -> None:
        if handle.readinto(_bytes(out)) != out.nbytes:
            raise CorruptArtefactError(self.path, "truncated while it was read")


@dataclass(frozen=True)
class Artefact:
    """What a file holds.

    Attributes:
        path: Where it was read from.
        kind: The kind of artefact, e.g. ``score`` or ``lds``.
        tensors: The arrays by name.
        dims: The names of each array's dimensions.
        meta: The rest of the header: setting, provenance, whatever the writer added.
        sha256: Digest of the arrays (names, dtypes, shapes and bytes), independent of the header.
        rows: The arrays that were left on disk.
    """

    path: Path
    kind: str
    tensors: dict[str, Array]
    dims: dict[str, tuple[str, ...]]
    meta: dict[str, Any]
    sha256: str
    rows: dict[str, Rows] = field(default_factory=dict)


class _All(frozenset[str]):
    """All names."""

    def __contains__(self, name: object) -> bool:
        """Say yes."""
        return True


ALL: Collection[str] = _All()
"""Names every array, for ``read(path, leave=ALL)``: a file is verified in little memory."""


class CorruptArtefactError(LeaveoutError):
    """A file that is truncated, altered, of another kind, or not an artefact at all."""

    def __init__(self, path: Path, why: str, kind: str | None = None, remedy: str = "") -> None:
        """Name the file, the fault and the remedy.

        To make a file anew is advised only where leaveout wrote it: any other is the user's own.

        Args:
            path: The file.
            why: What is wrong with it; shortened to one line.
            kind: The kind of artefact that is expected, if any is.
            remedy: What to do, if it is not to make the file anew.
        """
        why = " ".join(why.split())
        why = why if len(why) <= 300 else f"{why[:300]} …"
        target = _target(path)
        if not remedy and _is_ours(path):
            how = f"with: snakemake {target}" if target else "with the command that wrote it."
            remedy = f"Make it anew {how}"
        elif not remedy:
            what = "a file" if kind is None else f"a safetensors file of kind {kind!r}"
            remedy = f"Expected is {what} that leaveout wrote."
            if target:
                remedy += f" Move this one elsewhere if it is yours; then: snakemake {target}"
        super().__init__(f"{path}: {why}. {remedy}")


_OURS = (("", b'{"__metadata__":{"leaveout":"{\\"dims\\":'), (".stamp", b'"leaveout-stamp/'))
"""What is near the beginning of an artefact, and of the stamp beside any other file."""


def _is_ours(path: Path) -> bool:
    """Return whether leaveout wrote a file, as far as can be told; it may be damaged."""
    for ending, mark in _OURS:
        file = Path(f"{path}{ending}")
        with contextlib.suppress(OSError):
            if file.is_file():
                with file.open("rb") as handle:
                    if mark in handle.read(100):
                        return True
    return False


def _target(path: Path) -> str:
    """Return what Snakemake calls a file in the folder of results, as typed; empty elsewhere."""
    whole, results = path.resolve(), RESULTS.resolve()
    if not whole.is_relative_to(results):
        return ""
    return shlex.quote((RESULTS / whole.relative_to(results)).as_posix())


def missing(path: Path) -> LeaveoutError:
    """Return the error for a file that is not there; Snakemake makes only what is a result."""
    target = _target(path)
    return LeaveoutError(
        f"{path}: no such file" + (f". Make it with: snakemake {target}" if target else "")
    )


def parse(text: str) -> Any:
    """Parse JSON that may come from anywhere.

    Raises:
        ValueError: It is no JSON, longer than ``JSON_LIMIT``, or nested too deeply.
    """
    if len(text) > JSON_LIMIT:
        raise ValueError(f"{len(text)} characters of JSON, of which at most {JSON_LIMIT} are read")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def digest(tensors: Mapping[str, Array]) -> str:
    """Return the sha256 over the names, dtypes, shapes and bytes of some arrays."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(_description(name, array))
        sha.update(_bytes(array))
    return sha.hexdigest()


def _description(name: str, array: Array | Stream | Rows) -> bytes:
    """Return what the digest holds of an array beside its bytes."""
    return json.dumps([name, array.dtype.str, list(array.shape)]).encode()


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _header_sha256(header: Mapping[str, Any]) -> str:
    """Return the sha256 of a header but for this entry, as it will be read back from JSON."""
    header = json.loads(json.dumps({k: v for k, v in header.items() if k != "header_sha256"}))
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _check_dims(tensors: Mapping[str, Stream], dims: Dims) -> None:
    sizes: dict[str, int] = {}
    if set(dims) != set(tensors):
        raise ValueError(f"dims name {sorted(dims)}, tensors are {sorted(tensors)}")
    for name, array in tensors.items():
        if len(dims[name]) != len(array.shape):
            raise ValueError(f"{name} has shape {array.shape} but dims {dims[name]}")
        for dim, size in zip(dims[name], array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"dim {dim} has size {sizes[dim]} and, in {name}, {size}")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``, moved over it on success and removed on failure.

    The file is flushed to disk before it is renamed, so that ``path`` is either the old file or the
    whole new one, even after a crash or a full disk. While it is written it is locked, which tells
    it from one whose writer was killed (:mod:`leaveout.store.leftovers`).

    Args:
        path: The final path. Its folder is made if it is missing.

    Yields:
        The temporary path to write to, with the same suffix.

    Raises:
        LeaveoutError: The file could not be written (disk full, no permission), naming it.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}{TEMPORARY}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as handle:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield temporary
            os.fsync(handle.fileno())
            temporary.replace(path)
    except OSError as error:
        remedy = {
            errno.ENOSPC: "the disk is full: free some space, then run the command again",
            errno.EDQUOT: "the disk quota is used up: free some space, then run the command again",
            errno.EACCES: "no permission to write there: change the permissions of the folder",
            errno.EROFS: "the file system is read-only: run in a folder that can be written to",
        }.get(error.errno or 0, str(error))
        raise LeaveoutError(f"could not write {path}: {remedy}.") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be what is wrong
            temporary.unlink(missing_ok=True)


def _head(streams: Mapping[str, Stream], header: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
    """Return what precedes the arrays, as safetensors has it, and where in the file each starts."""
    names = {code: name for name, code in _DTYPES.items()}
    rank = {code: place for place, code in enumerate(_DTYPES.values())}
    # one entry: safetensors wants text, and the library writes several in random order
    entries: dict[str, Any] = {
        "__metadata__": {"leaveout": json.dumps(header, sort_keys=True)},
    }
    starts, end = {}, 0
    for name in sorted(streams, key=lambda name: (-rank[streams[name].dtype.str], name)):
        stream = streams[name]
        starts[name], end = end, end + math.prod(stream.shape) * stream.dtype.itemsize
        entries[name] = {
            "dtype": names[stream.dtype.str],
            "shape": list(stream.shape),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}


def _put(handle: io.BufferedWriter, name: str, stream: Stream, sha: hashlib._Hash) -> None:
    """Write an array where the file stands, and add it to the digest."""
    sha.update(_description(name, stream))
    found = 0
    for block in stream.blocks:
        block = np.ascontiguousarray(block)
        if block.dtype != stream.dtype or block.shape[1:] != stream.shape[1:]:
            raise ValueError(
                f"{name}: a block is {block.dtype} {block.shape}, the whole {stream.dtype} "
                f"{stream.shape}"
            )
        sha.update(_bytes(block))
        handle.write(_bytes(block))
        found += len(block)
    if found != stream.shape[0]:
        raise ValueError(f"{name}: the blocks have {found} rows, the whole has {stream.shape[0]}")


def write(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Array | Stream],
    dims: Dims,
    meta: Mapping[str, Any],
    check: Callable[[], None] | None = None,
) -> None:
    """Write an artefact atomically.

    Args:
        path: The file to write.
        kind: The kind of artefact; ``read`` can insist on it.
        tensors: The arrays by name, or streams of those that should not be in memory as a whole.
        dims: For each array the names of its dimensions; a dim has one size throughout the file.
        meta: JSON-able header entries.
        check: Called when all is written, before the file takes its place; it may raise.

    Raises:
        ValueError: ``dims`` and ``tensors``, or a stream and its blocks, disagree, or the header
            is longer than ``JSON_LIMIT`` (a fault of the caller).
        LeaveoutError: The file could not be written.
    """
    streams = {}
    for name, value in tensors.items():
        if not isinstance(value, Stream):
            array = np.ascontiguousarray(value)
            value = Stream(array.dtype, array.shape, [array])
        streams[name] = value
    _check_dims(streams, dims)
    header = {
        "format": FORMAT,
        "kind": kind,
        "dims": {name: list(dims[name]) for name in sorted(dims)},
        # the digests are known when all is written; until then their place is kept
        "sha256": "0" * 64,
        "header_sha256": "0" * 64,
        "meta": dict(meta),
    }
    head, starts = _head(streams, header)
    if len(head) > JSON_LIMIT:
        raise ValueError(f"{path}: a header of {len(head)} bytes; at most {JSON_LIMIT} can be read")
    sha = hashlib.sha256()
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        handle.write(head)
        for name in sorted(streams):
            handle.seek(starts[name])
            _put(handle, name, streams[name], sha)
        header["sha256"] = sha.hexdigest()
        header["header_sha256"] = _header_sha256(header)
        handle.seek(0)
        handle.write(_head(streams, header)[0])
        if check is not None:
            check()


def _open(path: Path) -> tuple[dict[str, str], dict[str, Rows]]:
    """Return the metadata of a safetensors file and where its arrays are."""
    # the library sees to it that the head is sound and the arrays fill the rest of the file
    with safe_open(path, framework="numpy"):
        pass
    with path.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        if size > JSON_LIMIT:
            raise ValueError(f"its header has {size} bytes, of which at most {JSON_LIMIT} are read")
        entries = json.loads(handle.read(size))
    metadata = entries.pop("__metadata__", {})
    arrays = {}
    for name, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"dtype {entry['dtype']} of {name}")
        offset, dtype = 8 + size + entry["data_offsets"][0], np.dtype(_DTYPES[entry["dtype"]])
        arrays[name] = Rows(path, offset, dtype, tuple(entry["shape"]))
    return metadata, arrays


def read(path: Path | str, kind: str | None = None, leave: Collection[str] = ()) -> Artefact:
    """Read an artefact and verify it.

    Args:
        path: The file to read.
        kind: If given, the kind the file must be of.
        leave: Names of arrays that stay on disk, to be read by rows: verified as well, but block by
            block.

    Raises:
        LeaveoutError: The file is missing.
        CorruptArtefactError: It is truncated, altered, of another kind, or no artefact.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    try:
        metadata, arrays = _open(path)
    except (SafetensorError, OSError, ValueError) as error:
        what = "truncated or damaged" if _is_ours(path) else "it is no intact safetensors file"
        raise CorruptArtefactError(path, f"{what} ({error})", kind) from error
    try:
        header = parse(metadata["leaveout"])
        header_sha256 = header["header_sha256"]
        names = ("format", "kind", "dims", "sha256", "meta")
        file_format, file_kind, dims, sha256, meta = (header[name] for name in names)
        intact = _header_sha256(header) == header_sha256
        ranks = {name: len(of) for name, of in dims.items()}
        if not isinstance(meta, dict):
            raise TypeError("meta is no mapping")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptArtefactError(path, f"it has no leaveout header ({error})", kind) from error
    if not intact:
        raise CorruptArtefactError(path, "its header does not match the header's own sha256", kind)
    if file_format != FORMAT:
        why = f"it has format {file_format}, this version reads {FORMAT}"
        raise CorruptArtefactError(path, why, kind)
    if kind is not None and file_kind != kind:
        why = f"it is of kind {file_kind!r}, expected {kind!r}"
        raise CorruptArtefactError(path, why, remedy="Give a file of that kind.")
    if ranks != {name: len(rows.shape) for name, rows in arrays.items()}:
        raise CorruptArtefactError(path, "its header has dims of other arrays", kind)
    tensors, found = {}, hashlib.sha256()
    try:
        for name, rows in sorted(arrays.items()):
            found.update(_description(name, rows))
            if name in leave and rows.shape:
                # an empty array may claim any number of rows
                count = rows.shape[0] if math.prod(rows.shape) else 0
                for _, block in rows.blocks(np.arange(count)):
                    found.update(_bytes(block))
            else:
                tensors[name] = rows.whole()
                found.update(_bytes(tensors[name]))
    except (OSError, ValueError) as error:
        raise CorruptArtefactError(path, f"it cannot be read ({error})", kind) from error
    if found.hexdigest() != sha256:
        raise CorruptArtefactError(path, "its contents do not match the sha256 in its header", kind)
    return Artefact(
        path=path,
        kind=file_kind,
        tensors=tensors,
        dims={name: tuple(names) for name, names in dims.items()},
        meta=meta,
        sha256=sha256,
        rows={name: arrays[name] for name in arrays if name not in tensors},
    )
