"""Stamps: what a file was made from, so that a stale one is told from a good one without clocks.

A *stamp* has four entries. ``key`` is everything, besides its inputs, that determines the file
(configuration, chunk, code). ``inputs`` gives for each file read its own ``spec`` and the sha256 of
what it held. ``spec`` is one digest over the key and the inputs' specs, so it stands for
the whole way back to raw data; and the spec that today's configuration and code want is known
without any file, because keys are. ``sha256`` is that of the contents.

An artefact carries its stamp in its header. Any other output (CSV, JSON, SVG, HTML) has it in a
file beside it, named with ``.stamp`` at the end. A file without a stamp is a source, such as a
table of published values: its contents are its spec.

A published file may be pulled alone, without the stamp beside it. So what is published is indexed
in git (:data:`PUBLISHED`), and a file that is the one published has its stamp from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from leaveout.errors import LeaveoutError
from leaveout.store.artefacts import (
    JSON_LIMIT,
    CorruptArtefactError,
    atomic_path,
    missing,
    parse,
)

ENDING = ".stamp"
FORMAT = "leaveout-stamp/1"

PUBLISHED = Path("data/published/stamps.json")
"""The index of published files, by path below the working folder: stamps without their inputs."""


@dataclass(frozen=True)
class Source:
    """What is remembered of an input.

    Attributes:
        spec: What it was to be: digest of its key and its own inputs' specs.
        sha256: What it held.
    """

    spec: str
    sha256: str


@dataclass(frozen=True)
class Stamp:
    """What a file was made from.

    Attributes:
        key: JSON text of all that decided it beside its inputs.
        inputs: The files read, by path.
        spec: One digest over the key and the inputs' specs.
        sha256: Digest of the contents, as the writer knew them.
    """

    key: str
    inputs: Mapping[str, Source]
    spec: str
    sha256: str


def spec_of(key: str, specs: Iterable[str]) -> str:
    """Return the spec of a file from its key and its inputs' specs, in order."""
    return hashlib.sha256("\n".join([key, *specs]).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(path: Path | str) -> Path:
    """Return where the stamp of a file that is no artefact lies."""
    return Path(f"{path}{ENDING}")


def _load(file: Path) -> Any:
    """Return the JSON in a file."""
    if not file.is_file():  # a pipe would never end
        raise ValueError(f"{file.name} is no regular file")
    if (size := file.stat().st_size) > JSON_LIMIT:
        raise ValueError(f"{file.name} has {size} bytes, of which at most {JSON_LIMIT} are read")
    return parse(file.read_text(encoding="utf-8"))


def _fields(path: Path) -> dict[str, Any] | None:
    """Return the raw entries of a file's stamp."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
        if "leaveout" not in metadata:
            raise ValueError("it has no leaveout header")
        header = parse(metadata["leaveout"])
        return {**header["meta"], "sha256": header["sha256"]}
    stamp = beside(path)
    if not stamp.exists():
        return _published(path)
    fields = _load(stamp)
    if fields["format"] != FORMAT:
        raise ValueError(f"its stamp has format {fields['format']}, this version reads {FORMAT}")
    return dict(fields)


def _published(path: Path) -> dict[str, Any] | None:
    """Return the stamp, without inputs, of a file that is the one published."""
    try:
        written = PUBLISHED.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    name = Path(os.path.relpath(path)).as_posix()
    fields = _index(PUBLISHED.absolute(), written).get(name)
    if fields is None or sha256_of(path) != fields["sha256"]:
        return None
    return {**fields, "inputs": {}}


@lru_cache(maxsize=1)
def _index(file: Path, written: int) -> dict[str, dict[str, str]]:
    """Return the index of published files, which is read again when it is written again."""
    try:
        return {
            name: {entry: str(stamp[entry]) for entry in ("key", "spec", "sha256")}
            for name, stamp in _load(file).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LeaveoutError(
            f"{PUBLISHED} can't be read ({error}). Put it back with: git checkout {PUBLISHED}"
        ) from error


def read(path: Path | str) -> Stamp | None:
    """Return a file's stamp, or None if it has none.

    The contents are not read: whether they are what the stamp says is another question. Only a file
    without a stamp of its own is compared with the one published; that stamp has no inputs.

    Raises:
        LeaveoutError: There is no such file, or the index of what is published can't be read.
        CorruptArtefactError: The stamp can't be read.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    try:
        fields = _fields(path)
        if fields is None:
            return None
        inputs = {
            name: Source(str(entry["spec"]), str(entry["sha256"]))
            for name, entry in fields["inputs"].items()
        }
        stamp = Stamp(str(fields["key"]), inputs, str(fields["spec"]), str(fields["sha256"]))
    except (
        SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        why = f"what it was made from can't be read ({error})"
        raise CorruptArtefactError(path, why) from error
    return stamp


def source(path: Path | str) -> Source:
    """Return what is to be remembered of an input that is about to be read.

    Raises:
        LeaveoutError: There is no such file.
        CorruptArtefactError: It was altered after it was made. (An artefact's contents are checked
            when they are read, see :func:`leaveout.store.artefacts.read`.)
    """
    path = Path(path)
    stamp = read(path)
    if path.suffix == ".safetensors":
        assert stamp is not None
        return Source(stamp.spec, stamp.sha256)
    found = sha256_of(path)
    if stamp is None:
        return Source(found, found)
    if found != stamp.sha256:
        why = f"it was altered after it was made ({beside(path).name}): keep a copy if you did it"
        raise CorruptArtefactError(path, why)
    return Source(stamp.spec, found)


def sources(paths: Sequence[Path | str]) -> dict[str, Source]:
    """Return :func:`source` of each path, in order."""
    return {str(path): source(path) for path in paths}


def entries(key: str, inputs: Mapping[str, Source]) -> dict[str, object]:
    """Return the entries of a stamp as they are written, but for the contents' sha256."""
    return {
        "key": key,
        "inputs": {p: {"spec": s.spec, "sha256": s.sha256} for p, s in inputs.items()},
        "spec": spec_of(key, (s.spec for s in inputs.values())),
    }


def write(path: Path | str, key: str, inputs: Mapping[str, Source]) -> None:
    """Write the stamp beside a file that has just been made.

    Args:
        path: The file.
        key: What decided it beside its inputs.
        inputs: The files it was made from, in order; taken before they were read.

    Raises:
        LeaveoutError: The stamp could not be written.
    """
    path = Path(path)
    fields = {"format": FORMAT, **entries(key, inputs), "sha256": sha256_of(path)}
    with atomic_path(beside(path)) as temporary:
        temporary.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
