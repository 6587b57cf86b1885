"""One run at a time in a folder, with a lock that cannot outlive its holder.

A workflow engine's own lock is a file, and a killed run leaves it behind. This one is an advisory
lock of the kernel (``flock``) on a file: however the holder ends, by an error, ``kill -9`` or a
crash of the machine, the lock is gone with it, so the command that was killed can simply be given
again.

The file itself is never removed: whoever removed it could take away the one that another run has
just locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import warnings
from pathlib import Path

from leaveout.errors import LeaveoutError

_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EACCES)
"""What a refused ``flock`` says; EACCES where a network file system turns it into a record lock."""


def acquire(path: str | Path = ".snakemake/leaveout.lock") -> int:
    """Lock a folder for this process, until it ends.

    Where the file system has no locks, a warning says so and the run goes on unguarded.

    Args:
        path: The lock file, made if it is not there. While the lock is held, it names the holder's
            process and host.

    Returns:
        The open file descriptor that holds the lock. Nothing needs to be done with it: the lock is
        held until the process ends, and programs it starts do not inherit it. Closing it releases
        the lock.

    Raises:
        LeaveoutError: Another process holds the lock, or the lock file cannot be opened.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opened for writing: network file systems grant an exclusive lock to nothing less.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LeaveoutError(
            f"{path}: the run's lock file cannot be opened ({error.strerror}); make the folder "
            "writable, or run in another one"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_ELSEWHERE:
            os.close(descriptor)
            raise LeaveoutError(
                f"another run{_holder(path)} is working in this folder; wait for it, stop it, or "
                f"run in another clone (lock: {path})"
            ) from error
        warnings.warn(
            f"{path}: this file system has no locks ({error.strerror}); see to it that one run at "
            "a time works in this folder",
            stacklevel=2,
        )
    holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    with contextlib.suppress(OSError):  # only the message above needs it: a full disk may lose it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
    return descriptor


def _holder(path: Path) -> str:
    """Return `` (pid N on host H)``, or nothing in the instant before the holder has written it."""
    try:
        holder = json.loads(path.read_text())
        return f" (pid {holder['pid']} on host {holder['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
