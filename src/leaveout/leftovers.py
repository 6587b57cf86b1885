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


def remove_leftovers(*folders: Path | str) -> list[Path]:
    """Remove the temporary files that no process is writing.

    Args:
        folders: Where to look, and below; missing ones are no error.

    Returns:
        What was removed. A file that can't be locked or removed is left alone: it does no harm.
    """
    removed = []
    for folder in folders:
        for path in sorted(Path(folder).rglob(f".*{TEMPORARY}*")):
            if not _NAME.fullmatch(path.name):
                continue
            with contextlib.suppress(OSError), path.open("rb+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
    return removed
