from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leaveout.cli.program import main
from leaveout.devices import claim
from leaveout.errors import LeaveoutError

CLAIMER = """
import os, sys
from pathlib import Path
from leaveout.devices import claim
print(claim(os.environ, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class Claimers:
    """Processes that take a GPU and keep it."""

    def __init__(self, locks: Path) -> None:
        self.locks = locks
        self.started: list[subprocess.Popen[str]] = []

    def start(self, gpus: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(self.locks)],
            env={**env, "LEAVEOUT_GPUS": gpus},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process


@pytest.fixture
def claimers(tmp_path: Path) -> Iterator[Claimers]:
    claimers = Claimers(tmp_path / "locks")
    yield claimers
    for process in claimers.started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Return what a process has taken, as soon as it has."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("gpus", ["0,1,2,3", "5,GPU-8a4f-91", "0,0,1,1"])
def test_each_process_gets_one_of_its_own(claimers: Claimers, gpus: str) -> None:
    # started at once, to race for the first one
    started = [claimers.start(gpus) for _ in gpus.split(",")]
    assert sorted(map(said, started)) == sorted(gpus.split(","))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_it_is_free_when_its_holder_ends(claimers: Claimers, end: signal.Signals | None) -> None:
    first, second = claimers.start("0,1"), claimers.start("0,1")
    mine = said(first)
    assert {mine, said(second)} == {"0", "1"}
    third = claimers.start("0,1")  # waits
    if end is None:
        first.communicate()
    else:
        first.send_signal(end)
        first.wait()
    assert said(third) == mine
    assert second.poll() is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"LEAVEOUT_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "3"},
        {"LEAVEOUT_GPUS": "0,1", "CUDA_VISIBLE_DEVICES": ""},
    ],
)
def test_nothing_is_taken_where_nobody_asks_or_somebody_has_chosen(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert claim(environment, tmp_path / "locks") is None
    assert not (tmp_path / "locks").exists()


@pytest.mark.parametrize("gpus", ["", "0,,1", "0 1", "../0", "all!"])
def test_what_is_no_list_of_gpus(gpus: str, tmp_path: Path) -> None:
    with pytest.raises(LeaveoutError, match="is no list of GPUs, such as 0,1,3"):
        claim({"LEAVEOUT_GPUS": gpus}, tmp_path)


def test_locks_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LeaveoutError, match=r"file/locks: cannot be opened \(Not a directory\)"):
        claim({"LEAVEOUT_GPUS": "0"}, tmp_path / "file" / "locks")


@pytest.mark.parametrize(("device", "gpu"), [("cuda", "7"), ("cpu", None)])
def test_a_command_on_a_gpu_sees_the_one_it_has_taken(
    device: str, gpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leaveout.devices.claim", lambda environment: "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seen = []
    run = "leaveout.workflow.run.run"
    monkeypatch.setattr(run, lambda *job: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")))
    options = {"setting": "tiny", "kind": "full", "chunk": "0", "data": "d", "out": "o"}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    assert main(["train", *arguments, f"--device={device}"]) == 0
    assert seen == [gpu]
