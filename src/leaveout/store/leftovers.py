"""What killed processes leave behind: half-written files, and Snakemake's marks of unfinished jobs.

Every file is written beside its final name and locked meanwhile (``artefacts.atomic_path``). The
kernel drops the lock with the process, so a temporary file without one is nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from pathlib import Path

from leaveout.store.artefacts import TEMPORARY

_NAME = re.compile(rf"\.[0-9a-f]{{8}}{re.escape(TEMPORARY)}.+")


def remove_leftovers(folder: Path | str, below: bool = True) -> list[Path]:
    """Remove the temporary files that no process is writing.

    Args:
        folder: Where to look; if it is missing, nothing is done.
        below: Whether to look in its subfolders, too.

    Returns:
        What was removed. A file that can't be locked or removed is left alone: it does no harm.
    """
    removed = []
    for path in sorted(Path(folder).glob(f"{'**/' * below}.*{TEMPORARY}*")):
        if not _NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), path.open("rb+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


def forget_unfinished(marks: Path | str = ".snakemake/incomplete") -> None:
    """Remove Snakemake's marks of jobs whose end it has not seen.

    What a stamp says is whole is whole, whoever saw it, so runs ignore the marks; but a report
    would refuse them. Only to be called by the one run that holds the folder's lock.

    Args:
        marks: Their folder; if it is missing, nothing is done.
    """
    for path in Path(marks).glob("*"):
        with contextlib.suppress(OSError):
            path.unlink()
