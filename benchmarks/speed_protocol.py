"""Worker processes that answer JSON lines: how `speed.py` drives both sides in the same way.

Standard library only, so that the workers of other libraries need nothing of leaveout's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
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
        with contextlib.suppress(OSError):
            _RESET_PEAK.write_text("5")
        before = time.process_time()
        answer = actions[request.pop("do")](**request)
        answer |= {"cpu": time.process_time() - before, "peak_mb": _peak_mb()}
        print(json.dumps(answer), file=answers, flush=True)


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

    def ask(self, action: str, **arguments: Any) -> list[Message]:
        """Ask every process for the same, with its number as ``worker``, and wait for all.

        Returns:
            The answers; ``wall`` (s) is the time until the last one came.
        """
        start = time.perf_counter()
        for number, process in enumerate(self.processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"do": action, "worker": number, **arguments}) + "\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in self.processes if process.stdout]
        wall = time.perf_counter() - start
        if not all(lines):
            self.close()
            raise SystemExit(f"a worker stopped; its last words:\n{self.log.read_text()[-2000:]}")
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
