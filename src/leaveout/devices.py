"""One GPU for each process on a workstation, with no scheduler to hand them out.

The workflow engine limits how many jobs with a GPU run at once, but not which GPU each of them
takes: left alone, all would take the first. Here each takes the first one whose lock it gets. The
lock is the kernel's (``flock``), so it is free again however its holder ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from leaveout.errors import LeaveoutError

VARIABLE = "LEAVEOUT_GPUS"


def claim(environment: Mapping[str, str], locks: Path | None = None) -> str | None:
    """Take a GPU that no other process has taken, until this one ends.

    Waits until one is free.

    Args:
        environment: ``LEAVEOUT_GPUS`` names the GPUs to share, such as ``0,1,3``; one that stands
            there twice is given to two processes at a time. Without it, or where
            ``CUDA_VISIBLE_DEVICES`` says that somebody else has chosen (as Slurm does), nothing is
            taken.
        locks: The folder of the lock files; by default one that all runs of this user share.

    Returns:
        The GPU, for ``CUDA_VISIBLE_DEVICES``, or None if none was taken.

    Raises:
        LeaveoutError: ``LEAVEOUT_GPUS`` names no GPU, or the lock files cannot be opened.
    """
    if VARIABLE not in environment or "CUDA_VISIBLE_DEVICES" in environment:
        return None
    names = [name.strip() for name in environment[VARIABLE].split(",")]
    if not all(name.replace("-", "").isalnum() for name in names):
        raise LeaveoutError(
            f"{VARIABLE}={environment[VARIABLE]!r} is no list of GPUs, such as 0,1,3 "
            "(`nvidia-smi -L` lists them)"
        )
    folder = locks or Path(tempfile.gettempdir()) / f"leaveout-gpus-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = [
            os.open(folder / f"{name}.{names[:i].count(name)}", os.O_RDWR | os.O_CREAT, 0o600)
            for i, name in enumerate(names)
        ]
    except OSError as error:
        raise LeaveoutError(f"{error.filename}: cannot be opened ({error.strerror})") from error
    while True:
        for name, descriptor in zip(names, files, strict=True):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for other in set(files) - {descriptor}:
                os.close(other)
            return name  # the lock is held until the process, which leaves it open, ends
        time.sleep(0.2)


def check(name: str) -> str:
    """Return a device's name.

    Raises:
        ValueError: It is neither ``cpu`` nor ``cuda``.
    """
    if name not in ("cpu", "cuda"):
        raise ValueError(f"{name!r} is neither cpu nor cuda")
    return name
