"""Worker processes that answer JSON lines: how `speed.py` drives all sides in the same way.

Standard library only, so that the workers of other libraries need nothing of leaveout's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]
_RESET_PEAK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _peak_mb() -> float:
    """Return the peak resident memory since it was reset (where the kernel can), in MB."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1024 / (1024 if sys.platform == "darwin" else 1)


def limit_memory(gib: float) -> None:
    """Let this process have no more than ``gib`` of memory of its own, where the system can."""
    size = int(gib * 2**30)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def reset_peak() -> None:
    """Let the peak of an action count from here, where the system can."""
    with contextlib.suppress(OSError):
        _RESET_PEAK.write_text("5")


def resident_mb() -> float:
    """Return the memory this process has now, in MB; 0 where the system does not say."""
    if not _STATUS.exists():
        return 0.0
    lines = _STATUS.read_text().splitlines()
    return next(int(s.split()[1]) / 1024 for s in lines if s.startswith("VmRSS:"))


def serve(actions: dict[str, Callable[..., Message]]) -> None:
    """Answer requests from standard input until it closes.

    A request is ``{"do": action, ...arguments}``. The answer is what the action returns, with
    ``cpu`` (s of all threads) and ``peak_mb`` of the action added.

    Args:
        actions: What can be asked for, by name.
    """
    # whatever a library prints goes to the log, not into the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        reset_peak()
        before = time.process_time()
        answer = actions[request.pop("do")](**request)
        answer |= {"cpu": time.process_time() - before, "peak_mb": _peak_mb()}
        print(json.dumps(answer), file=answers, flush=True)


class WorkerStopped(SystemExit):
    """A worker ended before it answered.

    Attributes:
        why: ``time``, ``memory`` or ``error``.
    """

    def __init__(self, why: str, words: str) -> None:
        """Keep why, and the worker's last words as the message."""
        super().__init__(words)
        self.why = why


class Workers:
    """Processes of one side that do the same request at the same time."""

    def __init__(self, command: list[str], processes: int, threads: int, log: Path) -> None:
        """Start the processes.

        Args:
            command: Python, script and arguments; the number of threads is appended.
            processes: How many.
            threads: Threads of each.
            log: Where their standard error goes.
        """
        self.log = log
        environment = os.environ | {
            name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        }
        with log.open("a") as errors:
            self.processes = [
                subprocess.Popen(
                    [*command, str(threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment,
                )
                for _ in range(processes)
            ]

    def ask(self, action: str, limit: float | None = None, **arguments: Any) -> list[Message]:
        """Ask every process for the same, with its number as ``worker``, and wait for all.

        Args:
            action: What for.
            limit: Seconds each may take; those that take longer are ended.
            arguments: Of the action.

        Returns:
            The answers; ``wall`` (s) is the time until the last one came.

        Raises:
            WorkerStopped: One ended instead, or took too long.
        """
        start = time.perf_counter()
        for number, process in enumerate(self.processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"do": action, "worker": number, **arguments}) + "\n")
            process.stdin.flush()
        pipes = [process.stdout for process in self.processes if process.stdout]
        if limit is not None and any(not select.select([p], [], [], limit)[0] for p in pipes):
            for process in self.processes:
                process.kill()
            self.close()
            raise WorkerStopped("time", f"{action}: no answer within {limit:g} s")
        lines = [pipe.readline() for pipe in pipes]
        wall = time.perf_counter() - start
        if not all(lines):
            self.close()
            words = self.log.read_text()[-2000:]
            killed = any(process.returncode == -signal.SIGKILL for process in self.processes)
            memory = killed or "MemoryError" in words or "allocate memory" in words
            raise WorkerStopped(
                "memory" if memory else "error", f"a worker stopped; its last words:\n{words}"
            )
        return [json.loads(line) | {"wall": wall} for line in lines]

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.communicate()

    def __enter__(self) -> Workers:
        """Return the workers."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self.close()
