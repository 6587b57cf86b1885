"""Half-written files of processes that were killed.

Every file is written beside its final name and locked meanwhile (``artefacts.atomic_path``). The
kernel drops the lock with the process, so a temporary file without one is nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from pathlib import Path

from leaveout.artefacts import TEMPORARY

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
