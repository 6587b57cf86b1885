from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leaveout.errors import LeaveoutError
from leaveout.workflow.runlock import acquire

HOLDER = """
import sys, time
from leaveout.workflow.runlock import acquire
acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path: Path, code: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.lock"
    with holder(path) as process:
        with pytest.raises(LeaveoutError) as refusal:
            acquire(path)
        who = f"pid {process.pid} on host {socket.gethostname()}"
        assert f"another run ({who})" in str(refusal.value)
        assert str(path) in str(refusal.value)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_the_lock_ends_with_its_holder(tmp_path: Path, end: signal.Signals | None) -> None:
    path = tmp_path / "run.lock"
    with holder(path) as process:
        if end is None:
            process.communicate()
        else:
            process.send_signal(end)
            process.wait()
        assert path.exists()  # what a killed run leaves behind is a file, not a lock
        os.close(acquire(path))


def test_programs_the_holder_started_do_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    code = HOLDER.replace(
        'print("held"',
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, close_fds=False)\n"
        "open(sys.argv[1] + '.child', 'w').write(str(child.pid))\n"
        'print("held"',
    )
    with holder(path, code) as process:
        process.kill()
        process.wait()
        child = int(path.with_name("run.lock.child").read_text())
        try:
            os.close(acquire(path))
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_lock_is_held_though_the_caller_drops_the_result(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    descriptor = acquire(path)
    del descriptor  # an integer: nothing closes it
    with pytest.raises(LeaveoutError, match=f"pid {os.getpid()} "):
        acquire(path)


def test_each_folder_has_its_own_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "a" / "run.lock"):
        os.close(acquire(tmp_path / "b" / "run.lock"))


def test_the_new_holder_replaces_the_old_ones_name(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text('{"pid": 1, "host": "a machine with a name longer than any that this one has"}')
    with holder(path) as process, pytest.raises(LeaveoutError, match=f"pid {process.pid} "):
        acquire(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_an_unreadable_holder_is_still_a_holder(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.lock"
    with holder(path):
        path.write_text(content)
        with pytest.raises(LeaveoutError, match=r"^another run is working in this folder"):
            acquire(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LeaveoutError, match=r"file/run\.lock: .* cannot be opened"):
        acquire(tmp_path / "file" / "run.lock")


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"run\.lock: this file system has no locks"):
        os.close(acquire(tmp_path / "run.lock"))
