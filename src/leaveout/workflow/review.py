"""Which files are not what today's configuration and code would make.

A workflow engine that goes by clocks is wrong as soon as files come from elsewhere: a pull sets
their times in no useful order, and without the engine's own records nobody notices a configuration
that was edited since. Here the stamps decide (:mod:`leaveout.store.stamps`). A file is *stale* when
its stamp is not the one that today's plan wants, or when its contents are not what its stamp says.
The workflow makes stale files anew, with all that follows from them.

Validity follows the specification: an input that was made again elsewhere, by the same code and
configuration, differs in its last bits and unsettles nothing.

The engine compares times and nothing else, so it is told by times: a stale file's job has one more
input, :data:`STALE_MARK`, which is newer. For all others the clocks are put right: a good file that
is older than one of its inputs gets that input's time, and the engine finds nothing to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaveout.errors import LeaveoutError
from leaveout.store import artefacts, stamps
from leaveout.store.artefacts import CorruptArtefactError, atomic_path
from leaveout.workflow.step import Job

CACHE = Path(".snakemake/leaveout-digests.json")
STALE_MARK = ".snakemake/not-as-configured"
"""Newer than any stale file: an input that makes their jobs due."""
LARGE = 1 << 30
"""So many bytes to be read are announced: it takes seconds."""


@dataclass(frozen=True)
class Review:
    """What was found.

    Attributes:
        stale: The files to be made anew and why; an empty reason for those that only follow from
            another.
        good: The files that are there and as wanted.
        settled: Those of them that no job has to make anew: all they were made from that is there
            is settled too. What is not there, such as scores that were never published, does not
            matter to them.
    """

    stale: dict[str, str]
    good: frozenset[str]
    settled: frozenset[str]


class Digests:
    """Digests of contents, remembered by size, times and inode so that each file is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, list[Any]] = {}
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # a broken memory is no memory
            self._known = dict(json.loads(path.read_text(encoding="utf-8")))

    @staticmethod
    def _identity(path: str) -> list[int]:
        status = Path(path).stat()
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    def unread(self, paths: Iterable[str]) -> int:
        """Return how many bytes of these files are not known yet."""
        found = ((path, self._identity(path)) for path in paths)
        return sum(who[0] for path, who in found if self._known.get(path, [])[:-1] != who)

    def __call__(self, path: str) -> str:
        """Return the sha256 of a file's contents, an artefact's after it has been verified."""
        identity = self._identity(path)
        known = self._known.get(path)
        if known is None or known[:-1] != identity:
            whole = path.endswith(".safetensors")
            known = [
                *identity,
                artefacts.read(path, leave=artefacts.ALL).sha256
                if whole
                else stamps.sha256_of(Path(path)),
            ]
        self._found[path] = known
        return str(known[-1])

    def touched(self, path: str) -> None:
        """Note that only the time of a file has changed."""
        if path in self._found:
            self._found[path][:-1] = self._identity(path)

    def save(self) -> None:
        """Write what was found; where that can't be done, the next run reads the files again."""
        if self._found != self._known:
            with contextlib.suppress(LeaveoutError), atomic_path(self._path) as temporary:
                temporary.write_text(json.dumps(self._found), encoding="utf-8")


def _flat(key: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(key, dict):
        parts = (_flat(value, f"{prefix}{name}.") for name, value in key.items())
        return {name: value for part in parts for name, value in part.items()}
    return {prefix.rstrip("."): key}


def difference(old: str, new: str) -> str:
    """Say in words how two keys differ, e.g. ``recipe.learning_rate: 0.01 -> 0.1``."""
    try:
        before, after = _flat(json.loads(old)), _flat(json.loads(new))
    except (ValueError, RecursionError):
        return "made by another version"
    words = []
    for name in dict.fromkeys([*before, *after]):
        a, b = (json.dumps(k.get(name)) if name in k else "none" for k in (before, after))
        if a != b and name in ("code", "method_code"):
            words.append("edited code" if name == "code" else "edited code of the method")
        elif a != b:
            words.append(f"{name}: {a} -> {b}" if len(a) + len(b) < 80 else f"other {name}")
    return ", ".join(dict.fromkeys(words))


def why_stale(
    path: str, job: Job, wanted: Mapping[str, str], digests: Digests, exact: bool = False
) -> str | None:
    """Return why a file is stale (empty: it follows from another), or None if it is good.

    Args:
        path: The file, which is there.
        job: The job that makes it.
        wanted: The specs that today's plan wants.
        digests: Reads contents.
        exact: Whether its inputs must be the very ones it was made from, bit by bit. An input that
            was made again elsewhere, to the same specification, differs in its last bits.
    """
    try:
        stamp = stamps.read(path)
    except CorruptArtefactError:
        return "its stamp can't be read"
    if stamp is None:
        return "it has no stamp"
    if stamp.key != job.key:
        return difference(stamp.key, job.key) or "made by another version"
    try:
        if digests(path) != stamp.sha256:
            return "altered after it was made"
    except CorruptArtefactError:
        return "damaged"
    if stamp.spec != wanted[path]:
        return ""
    return _other_input(job, stamp, wanted, digests) if exact else None


def _other_input(
    job: Job, stamp: stamps.Stamp, wanted: Mapping[str, str], digests: Digests
) -> str | None:
    """Return which input that is here is not the very one that a file was made from."""
    made_from: dict[str, set[str]] = {}
    for source in stamp.inputs.values():  # two outputs of one job have one spec
        made_from.setdefault(source.spec, set()).add(source.sha256)
    for name in job.reads:
        if Path(name).is_file():
            with contextlib.suppress(CorruptArtefactError):  # it is stale itself, and named
                if digests(name) not in made_from.get(wanted[name], ()):
                    return f"made from another {name}"
    return None


def wanted_specs(jobs: Sequence[Job]) -> dict[str, str]:
    """Return the spec that today's plan wants of each file, sources included.

    Args:
        jobs: All jobs, each after those that make its inputs.

    Raises:
        LeaveoutError: A source is missing.
    """
    wanted: dict[str, str] = {}
    for job in jobs:
        for name in job.reads:
            if name not in wanted:  # a source: no job makes it
                wanted[name] = stamps.source(name).spec
        spec = stamps.spec_of(job.key, (wanted[name] for name in job.reads))
        wanted |= dict.fromkeys(job.makes, spec)
    return wanted


def review(jobs: Sequence[Job], exact: bool = False, cache: Path = CACHE) -> Review:
    """Compare all files that are there with what today's plan wants, and put their times right.

    Args:
        jobs: All jobs, each after those that make its inputs.
        exact: Whether inputs must be bit-identical to those that a file was made from.
        cache: Where digests of contents are remembered between runs.

    Returns:
        Which files are stale and which are good; files that are not there are neither.
    """
    digests = Digests(cache)
    there = {p for job in jobs for p in job.makes if Path(p).is_file()}
    now = time.time_ns()
    if (unread := digests.unread(there)) > LARGE:
        print(f"leaveout: reading {len(there)} files, {unread / 1e9:.1f} GB", file=sys.stderr)
    wanted = wanted_specs(jobs)
    newest: dict[str, int] = {}
    stale: dict[str, str] = {}
    good: set[str] = set()
    settled: set[str] = set()
    for job in jobs:
        for name in job.reads:
            if name not in newest:  # a source: no job makes it
                newest[name] = _dated(name, 0, now, digests)
                settled.add(name)
        after = max((newest[name] for name in job.reads), default=0)
        for path in job.makes:
            newest[path] = after
            if path not in there:
                continue
            why = why_stale(path, job, wanted, digests, exact)
            if why is None:
                good.add(path)
                newest[path] = _dated(path, after, now, digests)
            else:
                stale[path] = why
        if good.issuperset(job.makes) and all(
            name in settled or name not in there for name in job.reads
        ):
            settled.update(job.makes)
    digests.save()
    return Review(stale, frozenset(good), frozenset(settled & good))


def _dated(path: str, earliest: int, now: int, digests: Digests) -> int:
    """Give a file a time (nanoseconds) that is not before its inputs' nor ahead of the clock.

    Snakemake takes a file from the future for a fault of the clocks, and stops.
    """
    status = Path(path).stat()
    wanted = max(min(status.st_mtime_ns, now), earliest)
    if wanted == status.st_mtime_ns:
        return wanted
    try:
        os.utime(path, ns=(status.st_atime_ns, wanted))
    except OSError as error:
        print(
            f"leaveout: {path} is older than what it was made from, or of the future, and its time "
            f"can't be set ({error.strerror}): what is good may be made anew",
            file=sys.stderr,
        )
    digests.touched(path)
    return wanted


def describe(stale: Mapping[str, str]) -> str:
    """Say what is stale and why, one line a reason; nothing if nothing is."""
    if not stale:
        return ""
    by_reason: dict[str, list[str]] = {}
    for path, why in stale.items():
        by_reason.setdefault(why, []).append(path)
    follow = len(by_reason.pop("", []))
    lines = [
        f"  {why}: {paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        for why, paths in by_reason.items()
    ]
    if follow:
        lines.append(f"  and {follow} that follow from others")
    head = "leaveout: not what today's configuration and code make; made anew where needed:"
    return "\n".join([head, *lines, ""])


def refresh(jobs: Sequence[Job], exact: bool = False) -> Review:
    """Find what is stale, say so on standard error, and set the mark that makes its jobs due.

    Args:
        jobs: All jobs, each after those that make its inputs.
        exact: As for :func:`review`.

    Returns:
        What was found.

    Raises:
        LeaveoutError: The mark can't be set.
    """
    found = review(jobs, exact)
    if stale := found.stale:
        print(describe(stale), end="", file=sys.stderr)
        newest = max(Path(path).stat().st_mtime_ns for path in stale)
        now = max(time.time_ns(), newest + 1_000_000_000)  # a clock may have run ahead
        with atomic_path(STALE_MARK) as temporary:
            # other contents each time: an input whose checksum is on record counts as unchanged
            temporary.write_text(secrets.token_hex(), encoding="utf-8")
            os.utime(temporary, ns=(now, now))
    return found
