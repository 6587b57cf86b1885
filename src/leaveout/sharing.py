"""Share results through DVC: restore what is missing here, publish what was made here.

DVC stores files and knows nothing of how they come about; the plan and the stamps know that
(:mod:`leaveout.freshness`). DVC is called as a program, and never inside a job.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Sequence
from configparser import ConfigParser
from pathlib import Path

import yaml

from leaveout.errors import LeaveoutError
from leaveout.freshness import describe, review
from leaveout.plan import Step
from leaveout.stamps import beside

EMBEDDED_LIMIT = 25_000_000
"""Bytes that may be published inside the repository: every clone carries them."""

DECIDES = ("config", "src", "workflow")
"""What must be committed before results made with it are published."""


def _run(*command: str, capture: bool = False) -> str:
    """Run a program; its own words reach the terminal unless they are asked for."""
    try:
        done = subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE if capture else sys.stderr
        )
    except FileNotFoundError as error:
        raise LeaveoutError(f"{command[0]} is not installed here") from error
    except subprocess.CalledProcessError as error:
        said = f"\n{error.stdout}" if error.stdout else ""
        words = " ".join(command).removeprefix(f"{sys.executable} -m ")
        raise LeaveoutError(f"`{words}` failed (see above){said}") from error
    return done.stdout or ""


def _dvc(*arguments: str, capture: bool = False) -> str:
    return _run(sys.executable, "-m", "dvc", *arguments, capture=capture)


def _tracked() -> set[str]:
    """Return the files that DVC has on record, those in tracked folders one by one."""
    listed = json.loads(_dvc("list", ".", "--recursive", "--dvc-only", "--json", capture=True))
    return {entry["path"] for entry in listed}


def _by_output(steps: Iterable[Step]) -> dict[str, Step]:
    return {path: step for step in steps for path in step.outputs}


def _frontier(
    targets: Iterable[str], makers: dict[str, Step], good: Collection[str], absent: Collection[str]
) -> tuple[set[str], set[str]]:
    """Walk down from the targets to what is good already, or can be had.

    Returns:
        The files to have, of ``absent``, and those that must be computed.
    """
    have: set[str] = set()
    compute: set[str] = set()
    waiting = list(targets)
    while waiting:
        path = waiting.pop()
        if path in good or path in have or path in compute or path not in makers:
            continue
        if path in absent:
            have.add(path)
        else:
            compute.add(path)
            waiting += makers[path].inputs
    return have, compute


def restore(steps: Sequence[Step], targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Pull what is needed to make some files, and nothing behind it.

    Files that are there are left alone, good or stale. Of those that are not, the published ones
    are pulled, from the targets down, and the search stops at each: what they were made from is
    not needed. A pulled file that today's configuration would not make is searched behind.

    Args:
        steps: All jobs, in order.
        targets: Files that some job makes.

    Returns:
        The pulled files, and those that the workflow will have to compute.

    Raises:
        LeaveoutError: A target is made by no job, or DVC failed.
    """
    makers = _by_output(steps)
    for target in targets:
        if target not in makers:
            raise LeaveoutError(
                f"{target}: no job makes it, as configured. `snakemake --dry-run` lists what is"
            )
    tracked = _tracked()
    pulled: list[str] = []
    while True:
        good = review(steps).good
        # what was pulled once and is not good is stale: do not ask for it again
        absent = {path for path in tracked if path not in pulled and not Path(path).exists()}
        have, compute = _frontier(targets, makers, good, absent)
        if not have:
            return pulled, sorted(compute)
        stamps = {str(beside(path)) for path in have} & tracked
        _dvc("pull", *sorted(have | stamps))
        pulled += sorted(have)


def _outs() -> list[Path]:
    """Return the files and folders that dvc.yaml names."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage["outs"]]
    return [Path(next(iter(out)) if isinstance(out, dict) else out) for out in outs]


def _embedded(remote: str) -> Path | None:
    """Return the folder of a remote that lies inside the repository."""
    config = ConfigParser()
    config.read([".dvc/config", ".dvc/config.local"])
    section = f"'remote \"{remote}\"'"
    if not config.has_section(section):
        raise LeaveoutError(f"DVC has no remote {remote!r}; see: dvc remote list")
    url = config.get(section, "url")
    if "://" in url:
        return None
    folder = (Path(".dvc") / url).resolve()
    return folder if folder.is_relative_to(Path.cwd()) else None


def _check_publishable(steps: Sequence[Step], outs: Sequence[Path]) -> list[Path]:
    """Return the files to publish, if all of them are as today's plan wants them."""
    if changes := _run("git", "status", "--porcelain", "--", *DECIDES, capture=True):
        raise LeaveoutError(
            "commit these first; results are published with what they were made by:\n" + changes
        )
    inside = [p for p in _by_output(steps) if any(Path(p).is_relative_to(out) for out in outs)]
    reviewed = review(steps)
    if bad := {p: why for p, why in reviewed.stale.items() if p in inside}:
        raise LeaveoutError(describe(bad) + "Run `snakemake results` first.")
    read = {path for step in steps for path in step.inputs}
    # half models, say, are made only if a method reads them
    needed = [p for p in inside if p in read or not p.endswith(".safetensors")]
    if missing := [p for p in needed if p not in reviewed.good]:
        raise LeaveoutError(
            f"{missing[0]} is not there (nor {len(missing) - 1} others that dvc.yaml names). Run "
            "`snakemake results` first, or `dvc pull`."
        )
    planned = {Path(p) for p in inside} | {beside(p) for p in inside}
    files = [p for out in outs for p in ([out] if out.is_file() else sorted(out.rglob("*")))]
    files = [p for p in files if p.is_file()]
    if strange := [p for p in files if p not in planned]:
        raise LeaveoutError(
            f"{strange[0]} and {len(strange) - 1} more are made by no job of today's "
            "configuration. Move or delete them, or configure what made them."
        )
    return files


def publish(steps: Sequence[Step], remote: str, message: str) -> bool:
    """Record today's results in DVC, push them, and commit the record.

    A remote inside the repository is written anew, so that it holds these results and none of the
    older ones.

    Args:
        steps: All jobs, in order.
        remote: Name of a DVC remote.
        message: Of the commit.

    Returns:
        Whether there was anything new to commit.

    Raises:
        LeaveoutError: Something to publish is missing, stale or made by no job; configuration or
            code are not committed; the results are too large for a remote inside the repository;
            or git or DVC failed.
    """
    folder = _embedded(remote)
    files = _check_publishable(steps, _outs())
    total = sum(path.stat().st_size for path in files)
    if folder and total > EMBEDDED_LIMIT:
        largest = max(files, key=lambda path: path.stat().st_size)
        raise LeaveoutError(
            f"{total / 1e6:.1f} MB in {len(files)} files are too much for a remote inside the "
            f"repository (at most {EMBEDDED_LIMIT / 1e6:.0f} MB; the largest is {largest}). Take "
            "some out of dvc.yaml, or choose another --remote."
        )
    _dvc("commit", "--force")
    if folder:
        # DVC's objects and nothing else, wherever the remote points; git has the old ones
        shutil.rmtree(folder / "files" / "md5", ignore_errors=True)
    _dvc("push", "--remote", remote)
    status = _dvc("status", "--json", capture=True)
    if json.loads(status):
        raise LeaveoutError(f"after the push, `dvc status` finds changes:\n{status}")
    recorded = ["dvc.lock", *([str(folder)] if folder else [])]
    _run("git", "add", *recorded)
    if not _run("git", "status", "--porcelain", "--", *recorded, capture=True):
        return False
    _run("git", "commit", "--quiet", "--message", message, "--", *recorded)
    return True
