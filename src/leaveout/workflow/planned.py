"""What a run was planned with, kept where its jobs find it, on this machine or on a cluster's.

The main process knows the key and the specification of every file that a run may make. They lie in
one file, named by its digest, from the start of the run; each job is told the digest and looks up
its own output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from leaveout.errors import LeaveoutError
from leaveout.store import stamps
from leaveout.store.artefacts import atomic_path
from leaveout.workflow.review import difference, wanted_specs
from leaveout.workflow.step import Job

FOLDER = Path(".snakemake/leaveout")
VARIABLE = "LEAVEOUT_PLAN"
"""Tells the jobs of a cluster, which plan anew, what the run was planned with."""


@dataclass(frozen=True)
class Planned:
    """What was planned.

    Attributes:
        keys: The key of every file that a job makes.
        specs: The specification of every file, sources included.
    """

    keys: Mapping[str, str]
    specs: Mapping[str, str]

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Planned:
        """Return what today's code, configuration and sources plan."""
        jobs = list(jobs)
        keys = {path: job.key for job in jobs for path in job.makes}
        return cls(keys, wanted_specs(jobs))

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps({"keys": self.keys, "specs": self.specs}, sort_keys=True)

    def digest(self) -> str:
        """Return the 16 hex digits that name it."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]

    def keep(self) -> None:
        """Write it for the jobs of the run that begins."""
        path = _path(self.digest())
        if not path.is_file():
            with atomic_path(path) as temporary:
                temporary.write_text(self.text(), encoding="utf-8")

    def forget_others(self) -> None:
        """Remove what earlier runs were planned with: none of them can still be under way."""
        for old in {*FOLDER.glob("plan-*.json")} - {_path(self.digest())}:
            old.unlink(missing_ok=True)

    def check(self, path: Path, key: str, sources: Mapping[str, stamps.Source]) -> None:
        """Refuse to make a file of something else than what was planned.

        Args:
            path: The file.
            key: The key of the job that is about to make it.
            sources: Its inputs, as they lie here.

        Raises:
            LeaveoutError: Code, configuration or an input is another.
        """
        wanted = self.keys.get(str(path))
        if wanted is None:
            raise LeaveoutError(f"{path}: this run was not planned to make it.")
        if wanted != key:
            raise LeaveoutError(
                f"{path}: edited since this run was planned ({difference(wanted, key)}), so it is "
                "not made. Run the same command again."
            )
        for name, source in sources.items():
            if source.spec != self.specs.get(name):
                raise LeaveoutError(
                    f"{name}: not what this run was planned with, so {path} is not made of it. Run "
                    "the same command again."
                )


def _path(digest: str) -> Path:
    return FOLDER / f"plan-{digest}.json"


def load(digest: str) -> Planned:
    """Return what a run was planned with.

    Raises:
        LeaveoutError: The file is gone: another run has begun in this folder since.
    """
    path = _path(digest)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeaveoutError(
            f"{path}: what this job's run was planned with can't be read ({error}). Another run "
            "may have begun in this folder since. Run the same command again."
        ) from error
    return Planned(found["keys"], found["specs"])
