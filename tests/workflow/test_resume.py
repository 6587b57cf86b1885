"""Killed at any moment, the same command finishes, redoes only what was not finished, and the
result is the same to the last byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., tuple[int, str]]
Contents = Callable[..., dict[str, str]]

CHUNKS = "results/tiny/retrain/lds"
TRUTH = "results/tiny/truth/lds.safetensors"


def wait_for(path: Path) -> None:
    for _ in range(4800):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def jobs_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes Snakemake has started: they share its group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == process.pid:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return [pid for pid in found if pid != process.pid]


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


@pytest.fixture
def target() -> str:
    """What is asked for."""
    return "results"


@pytest.fixture
def halfway(clone: Path, start: Start, target: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run with the first chunk of LDS done and the second under way, all below still to make."""
    below = ("results/tiny/truth", "results/tiny/metrics", "results/figures")
    for folder in (CHUNKS, "logs", *(below if target == "results" else ())):
        shutil.rmtree(clone / folder)
    (clone / TRUTH).unlink(missing_ok=True)
    process = start(clone, "--cores", "1", target)
    try:
        # the shell opens a job's log before its program starts, which takes a second from there
        for chunk in ("0-0", "1-0"):
            wait_for(clone / "logs" / "retrain_lds" / f"tiny-{chunk}.log")
        first = list((clone / CHUNKS).glob("*.safetensors"))
        assert len(first) == 1, "the second chunk was done before the test could look"
        yield process, first[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=400)


@pytest.mark.parametrize(
    ("whom", "target"),
    [("snakemake", "truths"), ("snakemake and its job", "results"), ("job", "truths")],
)
def test_a_killed_run_resumes(
    halfway: tuple[subprocess.Popen[str], Path],
    whom: str,
    target: str,
    clone: Path,
    finished: Path,
    snakemake: Run,
    contents: Contents,
) -> None:
    process, chunk = halfway
    jobs = jobs_of(process)
    assert jobs
    if whom == "snakemake":
        os.kill(process.pid, signal.SIGKILL)  # its job lives on, as an orphan
        process.wait(timeout=400)
    elif whom == "job":
        for pid in jobs:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(timeout=400) == 1
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=400)
    before = identity(chunk)
    assert not (clone / TRUTH).exists()

    status, output = snakemake(clone, "--cores", "1", target)

    assert status == 0, output
    assert identity(chunk) == before
    assert f"output: {CHUNKS}/{chunk.name}" not in output
    for rule in ("prepare", "train", "attribute"):
        assert f"rule {rule}:" not in output
    assert contents(clone) == contents(finished)
    assert not list((clone / "results").rglob("*.tmp.*"))
    assert "Nothing to be done" in snakemake(clone)[1]


def test_a_second_run_is_refused_while_the_first_works(
    halfway: tuple[subprocess.Popen[str], Path], clone: Path, snakemake: Run
) -> None:
    process, _ = halfway
    status, output = snakemake(clone, "results")
    assert status == 1
    assert f"another run (pid {process.pid} on host " in output
    assert "wait for it, stop it, or run in another clone" in output
    assert "Traceback" not in output
    assert process.poll() is None
