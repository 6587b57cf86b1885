"""Jobs that a killed run left in Slurm's queue.

Snakemake cancels its jobs when it is interrupted, but not when it is killed, and a new one does not
know them: it would submit the same work again, and a job of the old run that starts late would
remove and remake files the new one already reads. So a run that starts clears them away first. It
holds the folder's lock (:mod:`leaveout.workflow.runlock`), so nobody is left who waits for whatever
Snakemake jobs of this folder are in the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from leaveout.errors import LeaveoutError

LOGS = "logs/slurm"
"""Where the profile lets Slurm write, which shows that a folder has used it."""

# How Snakemake's plugin for Slurm names a job, and what it writes into its comment.
_RUN = re.compile(r"(?:[\w-]+_)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COMMENT = re.compile(r"(?:rule|group)_\w")


def orphans(folder: Path | str = ".") -> list[str]:
    """Return the Slurm ids of Snakemake's jobs from a folder that are not over.

    Args:
        folder: The working folder.

    Raises:
        LeaveoutError: Slurm does not answer.
    """
    found = []
    for line in _slurm("squeue", "--me", "--noheader", "--format=%A|%j|%k|%Z").splitlines():
        job, name, comment, workdir = line.split("|", 3)
        ours = _RUN.fullmatch(name) and _COMMENT.match(comment)
        if ours and os.path.realpath(workdir) == os.path.realpath(folder):
            found.append(job)
    return found


def cancel(folder: Path | str = ".", patience: float = 120) -> list[str]:
    """Cancel the jobs a killed run has left in the queue, and wait until they are gone.

    Without Slurm on this machine there is nothing to do, nor where its programs are installed, no
    cluster answers, and the folder has no Slurm logs.

    Args:
        folder: The working folder, whose lock the caller holds.
        patience: How many seconds Slurm may take to end them.

    Returns:
        The Slurm ids of the cancelled jobs.

    Raises:
        LeaveoutError: Slurm does not answer, though this folder has used it, or does not end them.
    """
    if shutil.which("squeue") is None:
        return []
    try:
        found = left = orphans(folder)
    except LeaveoutError:
        if (Path(folder) / LOGS).exists():
            raise
        return []
    if found:
        _slurm("scancel", *found)
        end = time.monotonic() + patience
        while left and time.monotonic() < end:
            time.sleep(0.5)
            left = orphans(folder)
    if left:
        raise LeaveoutError(
            f"Slurm jobs {', '.join(left)} of an earlier, killed run are still in the queue "
            f"{patience:.0f} s after they were cancelled; when `squeue --me` no longer lists them, "
            "give the command again"
        )
    return found


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired as error:
        raise LeaveoutError(f"{command[0]} does not answer: is the cluster up?") from error
    if done.returncode != 0:
        raise LeaveoutError(f"{command[0]}: {done.stderr.strip()}; is the cluster up?")
    return done.stdout
