"""A setting's limits: how much memory and time a method may take.

A method that reaches one of them cannot be computed, which is a result: a row of the table says so.
What stops it earlier says nothing about the method. So a smaller limit of the process is an error,
and time in which the process did not run does not count.
"""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from leaveout.errors import LeaveoutError, NotComputableError

SLACK_BYTES = 1 << 30
"""Allowed beside what a method asks for: threads, libraries, what is read and written."""

_Block = TypeVar("_Block")


def limited(
    blocks: Iterable[_Block], memory: float, seconds: float, device: torch.device
) -> Iterator[_Block]:
    """Give some blocks, and let making them take no more memory and time than allowed.

    The limits hold only while a block is made, so that whoever takes the blocks is not bound by
    them, and may stop at any block.

    Args:
        blocks: Made one by one.
        memory: Bytes beside what the process has when the first block is asked for. Held by the
            system where that is Linux and the work is done on the CPU: an allocation beyond it
            fails.
        seconds: For all blocks together, as :func:`stopwatch` counts them; not held outside the
            main thread, which has no alarm.
        device: Where the work is done.

    Yields:
        The blocks.

    Raises:
        NotComputableError: The work took more, of the one or the other.
        LeaveoutError: Memory ran out below that limit, because the process has a smaller one.
    """
    most = _in_use("VmData") + memory + SLACK_BYTES
    smaller, gpu = _smaller_limit(memory + SLACK_BYTES), _small_gpu(device, memory)
    iterator, left, done = iter(blocks), seconds, object()
    while True:
        counted = stopwatch(device)
        with _held_to(most, memory, smaller, gpu), _alarm(left, seconds, counted):
            block = next(iterator, done)
        if block is done:
            return
        left -= counted()
        yield block  # type: ignore[misc]


def stopwatch(device: torch.device) -> Callable[[], float]:
    """Return a function that gives the seconds since now that count.

    On a CPU these are the seconds that the process ran, and no more than have passed: a job that
    is suspended, or waits for an overloaded machine, is no slower for it. Work on a GPU counts as
    it passes.

    Args:
        device: Where the work is done.
    """
    start, ran = time.monotonic(), time.process_time()

    def counted() -> float:
        passed = time.monotonic() - start
        return passed if device.type == "cuda" else min(passed, time.process_time() - ran)

    return counted


@contextlib.contextmanager
def _alarm(left: float, seconds: float, counted: Callable[[], float]) -> Iterator[None]:
    """Raise NotComputableError in the main thread when the time that is left has been counted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        rest = left - counted()
        if rest <= 0:
            raise NotComputableError(
                "time", f"not done after {seconds / 3600:.3g} hours (attribution.hours)"
            )
        signal.setitimer(signal.ITIMER_REAL, max(rest, 0.001))

    old = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))  # 0 would set none
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def _held_to(most: float, memory: float, smaller: str, gpu: str) -> Iterator[None]:
    """Let allocations fail beyond a limit, and say what it means when one has failed.

    Args:
        most: Bytes of private memory that the process may have.
        memory: Bytes that the setting allows.
        smaller: Which other limit is smaller, in words; empty if none is.
        gpu: The same of the GPU's memory.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        if sys.platform == "linux" and most < _finite(before[0]):
            resource.setrlimit(resource.RLIMIT_DATA, (int(most), before[1]))
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        on_host = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not (on_gpu or on_host):
            raise
        if why := gpu if on_gpu else smaller:
            raise LeaveoutError(
                f"out of memory, but not by the setting: {why}, less than the "
                f"{memory / 1e9:.3g} GB of attribution.memory_gb and what libraries need. Whether "
                "the method can be computed is not known: raise that limit, or lower "
                "attribution.memory_gb."
            ) from error
        raise NotComputableError(
            "memory", f"more than {memory / 1e9:.3g} GB allowed (attribution.memory_gb)"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _smaller_limit(allowed: float) -> str:
    """Say which limit of the process leaves least, if that is less than allowed.

    A control group's limit (a batch job's, a container's) is none of them: it refuses no allocation
    but ends the process, so that nothing is written.

    Args:
        allowed: Bytes beside what the process has now.
    """
    limits = [
        ("its address space (ulimit -v)", _soft(resource.RLIMIT_AS), _in_use("VmSize")),
        ("its data segment (ulimit -d)", _soft(resource.RLIMIT_DATA), _in_use("VmData")),
    ]
    what, limit, used = min(limits, key=lambda entry: entry[1] - entry[2])
    if limit - used >= allowed:
        return ""
    return f"{what} is limited to {limit / 1e9:.3g} GB, of which {used / 1e9:.3g} are in use"


def _small_gpu(device: torch.device, allowed: float) -> str:
    """Say how much of a GPU's memory is free, if that is less than allowed."""
    if device.type != "cuda":
        return ""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return f"the GPU has {free / 1e9:.3g} GB free" if free < allowed else ""


def _soft(limit: int) -> float:
    return _finite(resource.getrlimit(limit)[0])


def _finite(limit: int) -> float:
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _in_use(what: str, status: Path = Path("/proc/self/status")) -> int:
    """Return bytes of the process: VmData is what counts against RLIMIT_DATA."""
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    found = (int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))
    return next(found, 0)
