"""Artefacts: one self-describing safetensors file per output, written whole or not at all.

A file holds named arrays and a JSON header. The header names the kind of artefact and the dims of
each array, and carries the provenance its writer passes in. Coordinates are arrays too: dim
``train`` is labelled by the int64 array ``train_id``, so that everything is keyed by sample id and
never by position in a loader. The sha256 of the arrays and that of the header are stored too and
checked on every read: a truncated, altered or half-written file is never taken for whole. Nothing
is ever pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from leaveout.errors import LeaveoutError

FORMAT = "leaveout/1"
Array = NDArray[Any]
Dims = Mapping[str, tuple[str, ...]]


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
    """

    path: Path
    kind: str
    tensors: dict[str, Array]
    dims: dict[str, tuple[str, ...]]
    meta: dict[str, Any]
    sha256: str


class CorruptArtefactError(LeaveoutError):
    """A file that is truncated, altered, of another kind, or not an artefact at all."""

    def __init__(self, path: Path, why: str) -> None:
        """Name the file, the fault and the remedy."""
        super().__init__(
            f"{path}: {why}. Delete the file and run the same command again; "
            "Snakemake will make it anew."
        )


def digest(tensors: Mapping[str, Array]) -> str:
    """Return the sha256 over the names, dtypes, shapes and bytes of some arrays."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _header_sha256(header: Mapping[str, Any]) -> str:
    """Return the sha256 of a header but for this entry, as it will be read back from JSON."""
    header = json.loads(json.dumps({k: v for k, v in header.items() if k != "header_sha256"}))
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _check_dims(tensors: Mapping[str, Array], dims: Dims) -> None:
    sizes: dict[str, int] = {}
    if set(dims) != set(tensors):
        raise ValueError(f"dims name {sorted(dims)}, tensors are {sorted(tensors)}")
    for name, array in tensors.items():
        if len(dims[name]) != array.ndim:
            raise ValueError(f"{name} has shape {array.shape} but dims {dims[name]}")
        for dim, size in zip(dims[name], array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"dim {dim} has size {sizes[dim]} and, in {name}, {size}")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``, moved over it on success and removed on failure.

    The file is flushed to disk before it is renamed, so that ``path`` is either the old file or the
    whole new one, even after a crash or a full disk.

    Args:
        path: The final path. Its folder is made if it is missing.

    Yields:
        The temporary path to write to, with the same suffix.

    Raises:
        LeaveoutError: The file could not be written (disk full, no permission), naming it.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as handle:
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


def write(
    path: Path | str,
    kind: str,
    tensors: Mapping[str, Array],
    dims: Dims,
    meta: Mapping[str, Any],
) -> None:
    """Write an artefact atomically.

    Args:
        path: The file to write.
        kind: The kind of artefact; ``read`` can insist on it.
        tensors: The arrays by name.
        dims: For each array the names of its dimensions; a dim has one size throughout the file.
        meta: JSON-able header entries.

    Raises:
        ValueError: ``dims`` and ``tensors`` disagree (a fault of the caller).
        LeaveoutError: The file could not be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    _check_dims(arrays, dims)
    header = {
        "format": FORMAT,
        "kind": kind,
        "dims": {name: list(dims[name]) for name in sorted(dims)},
        "sha256": digest(arrays),
        "meta": dict(meta),
    }
    header["header_sha256"] = _header_sha256(header)
    # one entry: safetensors writes several in random order
    payload = save(arrays, metadata={"leaveout": json.dumps(header, sort_keys=True)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(payload)


def read(path: Path | str, kind: str | None = None) -> Artefact:
    """Read an artefact and verify it.

    Args:
        path: The file to read.
        kind: If given, the kind the file must be of.

    Raises:
        LeaveoutError: The file is missing.
        CorruptArtefactError: It is truncated, altered, of another kind, or no artefact.
    """
    path = Path(path)
    if not path.is_file():
        raise LeaveoutError(f"{path}: no such file. Make it with: snakemake {path}")
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtefactError(path, f"truncated or damaged ({error})") from error
    try:
        header = json.loads(metadata["leaveout"])
        header_sha256 = header["header_sha256"]
        fields = (
            header["format"],
            header["kind"],
            header["dims"],
            header["sha256"],
            header["meta"],
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptArtefactError(path, "it has no leaveout header") from error
    file_format, file_kind, dims, sha256, meta = fields
    if _header_sha256(header) != header_sha256:
        raise CorruptArtefactError(path, "its header does not match the header's own sha256")
    if file_format != FORMAT:
        raise CorruptArtefactError(
            path, f"it has format {file_format}, this version reads {FORMAT}"
        )
    if kind is not None and file_kind != kind:
        raise CorruptArtefactError(path, f"it is of kind {file_kind!r}, expected {kind!r}")
    if digest(tensors) != sha256:
        raise CorruptArtefactError(path, "its contents do not match the sha256 in its header")
    return Artefact(
        path=path,
        kind=file_kind,
        tensors=tensors,
        dims={name: tuple(names) for name, names in dims.items()},
        meta=meta,
        sha256=sha256,
    )
