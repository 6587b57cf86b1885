from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from leaveout.errors import NotComputableError
from leaveout.scoring.limits import limited, stopwatch

CPU = torch.device("cpu")
LIMIT = resource.getrlimit(resource.RLIMIT_DATA)

GREEDY = """
import torch
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.scoring.limits import limited
try:
    next(limited((torch.ones(1 << 31) for _ in "1"), 8e9, 60, torch.device("cpu")))
except NotComputableError as error:
    print("row", error)
except LeaveoutError as error:
    print("error", error)
"""

BUSY = """
import sys, time, torch
from leaveout.errors import NotComputableError
from leaveout.scoring.limits import limited
def work():
    print("started", flush=True)
    sys.stdin.readline()
    end = time.process_time() + float(sys.argv[1])
    while time.process_time() < end:
        pass
    yield "done"
try:
    print(*limited(work(), 8e9, 2, torch.device("cpu")))
except NotComputableError as error:
    print(error.reason, error.detail)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
@pytest.mark.parametrize(
    ("limit", "named"),
    [("-v", r"address space \(ulimit -v\)"), ("-d", r"data segment \(ulimit -d\)")],
)
def test_a_smaller_limit_of_the_shell_is_an_error_and_no_row(limit: str, named: str) -> None:
    # 8 GB are allowed, and 8.6 asked for: within the slack
    command = f'ulimit {limit} 6000000; exec "$@"'
    words = ["bash", "-c", command, "bash", sys.executable, "-c", GREEDY]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("error out of memory, but not by the setting: its ")

    assert re.search(rf"its {named} is limited to 6.14 GB, of which .* in use", done.stdout)
    assert "less than the 8 GB of attribution.memory_gb" in done.stdout
    assert "raise that limit, or lower attribution.memory_gb" in done.stdout


@pytest.mark.parametrize(
    ("work", "said"), [(0.5, "done"), (60, "time not done after 0.000556 hours")]
)
def test_time_in_which_the_process_is_stopped_does_not_count(work: float, said: str) -> None:
    words = [sys.executable, "-c", BUSY, str(work)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == "started\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep(3)  # longer than the two seconds that are allowed
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate("go\n", timeout=120)
        finally:
            process.kill()
    assert out.startswith(said)


def test_what_counts_is_the_smaller_of_both_clocks_but_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clocks = {"monotonic": 5.0, "process_time": 1.0}
    for name in clocks:
        monkeypatch.setattr(f"time.{name}", lambda name=name: clocks[name])
    cpu, gpu = stopwatch(CPU), stopwatch(torch.device("cuda"))
    clocks.update(monotonic=8.0, process_time=2.0)
    assert (cpu(), gpu()) == (1.0, 3.0)
    clocks.update(process_time=9.0)  # several threads
    assert (cpu(), gpu()) == (3.0, 3.0)


def test_all_blocks_share_the_time() -> None:
    def slow() -> Iterator[int]:
        for block in range(1000):
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
            yield block

    made: list[int] = []
    with pytest.raises(NotComputableError, match=r"time: not done after 8\.33e-05 hours"):
        made.extend(limited(slow(), 8e9, 0.3, CPU))
    assert 1 <= len(made) <= 6


def test_limits_hold_while_a_block_is_made_and_not_while_it_is_used() -> None:
    def look() -> Iterator[tuple[bool, bool]]:
        while True:
            held = resource.getrlimit(resource.RLIMIT_DATA) != LIMIT or sys.platform != "linux"
            yield held, signal.getitimer(signal.ITIMER_REAL)[0] > 0

    handler = signal.getsignal(signal.SIGALRM)
    blocks = limited(look(), 1e9, 60, CPU)
    for _ in range(2):
        assert next(blocks) == (True, True)
        assert resource.getrlimit(resource.RLIMIT_DATA) == LIMIT
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert signal.getsignal(signal.SIGALRM) is handler


def test_outside_the_main_thread_there_is_no_alarm() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(limited(range(3), 1e9, 60, CPU)))
    thread.start()
    thread.join()
    assert found == [0, 1, 2]
