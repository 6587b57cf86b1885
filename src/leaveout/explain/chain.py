"""The chain: the files a number was made from, back to raw data, and whether they lie here.

Each file's stamp says what it was made from: path, spec and sha256 of every input. The chain is
walked along the stamps. A file that is not here, or whose stamp is that of a published file and
names no inputs, is followed where it is what today's plan would make, for then the plan knows all
of it; else the chain ends at what is not here, and says so.

An evaluation reads what scoring took, but only its costs are made from that: metrics are not
followed to it, and costs to nothing else.

A link is *broken* where the file here is not the one that its reader was made from, or is not what
its own stamp says. That is another question than whether it is *stale*: made by other code or
configuration than today's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from leaveout.store import stamps
from leaveout.store.artefacts import CorruptArtefactError
from leaveout.store.stamps import Source
from leaveout.workflow.review import Digests, difference, why_stale
from leaveout.workflow.step import Job

FOLLOWS = "what it was made from is"
"""Why a file is stale whose own key is as wanted."""

UNKNOWN = Source("", "")
"""An input of which there is no record."""


@dataclass(frozen=True)
class File:
    """One file of the chain.

    Attributes:
        path: It.
        there: Whether it lies here.
        sha256: Digest of what it holds, or, if it is not here, of what was read.
        spec: What it was to be; empty if nobody knows.
        key: All that decided it beside its inputs; None if it is not known, as of a source.
        inputs: The files it was made from.
        faults: Broken links: why it is not the file that the number was made from.
        stale: Why today's code and configuration would make another; None if they would not.
        header: The header of an artefact that lies here.
        job: Today's job for it.
    """

    path: str
    there: bool
    sha256: str = ""
    spec: str = ""
    key: Mapping[str, Any] | None = None
    inputs: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    stale: str | None = None
    header: Mapping[str, Any] | None = None
    job: Job | None = None

    @property
    def source(self) -> bool:
        """Whether no job makes it."""
        return self.job is None and self.key is None


def walk(
    root: str,
    through: Mapping[str, Sequence[str]],
    jobs: Sequence[Job],
    wanted: Mapping[str, str],
    digests: Digests,
) -> dict[str, File]:
    """Follow a file back to raw data.

    Args:
        root: The file; it must be there.
        through: Which inputs to follow, of files of which not all are to be followed.
        jobs: Today's jobs.
        wanted: The specs that today's plan wants.
        digests: Reads contents.

    Returns:
        The files by path, each before those that it was made from.
    """
    makers = {path: job for job in jobs for path in job.makes}
    records: dict[str, list[tuple[str, Source]]] = {root: []}
    found: dict[str, File] = {}
    waiting = [root]
    while waiting:
        path = waiting.pop(0)
        job = makers.get(path)
        if Path(path).is_file():
            file, read = _here(path, job, wanted, digests)
        else:
            file, read = _absent(path, records[path], job, wanted)
        if path in through:
            read = {name: read.get(name, UNKNOWN) for name in through[path]}
        else:
            costs = path.endswith(".costs.json")
            read = {name: s for name, s in read.items() if name.endswith(".cost.json") == costs}
        found[path] = replace(file, inputs=tuple(read))
        for name, source in read.items():
            if name not in records:
                waiting.append(name)
            records.setdefault(name, []).append((path, source))
    checked = {path: _linked(file, records[path]) for path, file in found.items()}
    return {path: checked[path] for path in _in_order(root, checked)}


def _here(
    path: str, job: Job | None, wanted: Mapping[str, str], digests: Digests
) -> tuple[File, Mapping[str, Source]]:
    """Look at a file that lies here; its links to readers are checked later."""
    faults, sha256 = [], ""
    try:
        sha256 = digests(path)
    except CorruptArtefactError as error:
        faults.append(f"damaged: {error}")
    try:
        stamp = stamps.read(path)
    except CorruptArtefactError as error:
        return File(path, True, sha256, faults=(*faults, str(error)), job=job), {}
    if stamp is None:
        why = None if job is None else "it has no stamp"
        return File(path, True, sha256, sha256, faults=tuple(faults), stale=why, job=job), {}
    if sha256 and sha256 != stamp.sha256:
        faults.append("altered after it was made: it is not what its stamp says")
    read = stamp.inputs
    if job is None:
        stale: str | None = "no job of today's configuration makes it"
    else:
        stale = why_stale(path, job, wanted, digests)
        if not read:
            same = stamp.spec == wanted[path]
            read = {name: Source(wanted[name], "") if same else UNKNOWN for name in job.reads}
    return File(
        path,
        True,
        sha256,
        stamp.spec,
        json.loads(stamp.key),
        faults=tuple(faults),
        stale=FOLLOWS if stale == "" else stale,
        header=_header(path) if path.endswith(".safetensors") and not faults else None,
        job=job,
    ), read


def _header(path: str) -> Mapping[str, Any]:
    """Return the header of an artefact, arrays unread."""
    with safe_open(path, framework="numpy") as handle:
        return dict(json.loads(handle.metadata()["leaveout"]))


def _absent(
    path: str, read: Sequence[tuple[str, Source]], job: Job | None, wanted: Mapping[str, str]
) -> tuple[File, Mapping[str, Source]]:
    """Say what is known of a file that is not here: what its readers noted of it."""
    spec = next((source.spec for _, source in read if source.spec), "")
    if job is None:
        why = "no job of today's configuration makes it"
    elif not spec:
        why = "it is not known what was read: its reader has no record of it"
    elif spec != wanted[path]:
        why = "what was read was made by other code or configuration than today's"
    else:
        inputs = {name: Source(wanted[name], "") for name in job.reads}
        return File(path, False, spec=spec, key=json.loads(job.key), job=job), inputs
    return File(path, False, spec=spec, stale=why, job=job), {}


def _linked(file: File, read: Sequence[tuple[str, Source]]) -> File:
    """Compare what a file holds with what its readers noted of it."""
    faults = list(file.faults)
    if not file.there:
        noted = (source.sha256 for _, source in read if source.sha256)
        file = replace(file, sha256=next(noted, ""))
    for reader, source in read:
        if source.sha256 and file.sha256 and source.sha256 != file.sha256:
            which = "the file here is" if file.there else "another reader noted"
            faults.append(
                f"{reader} was made from another one: it read {source.sha256[:12]}, {which} "
                f"{file.sha256[:12]}"
            )
    return replace(file, faults=tuple(faults))


def _in_order(root: str, files: Mapping[str, File]) -> list[str]:
    """Return the files so that each comes before what it was made from."""
    done: dict[str, None] = {}

    def visit(path: str) -> None:
        if path not in done:
            for name in reversed(files[path].inputs):
                visit(name)
            done[path] = None

    visit(root)
    return list(reversed(done))


def key_difference(file: File, leave: Sequence[str] = ()) -> str:
    """Say how the key of a file differs from today's, nothing if it does not or is not known.

    Args:
        file: The file.
        leave: Entries that are not looked at.
    """
    if file.key is None or file.job is None:
        return ""
    old, new = (
        json.dumps({name: value for name, value in key.items() if name not in leave})
        for key in (file.key, json.loads(file.job.key))
    )
    return difference(old, new)
