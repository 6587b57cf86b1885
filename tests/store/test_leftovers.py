from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leaveout.store.artefacts import atomic_path
from leaveout.store.leftovers import forget_unfinished, remove_leftovers

WRITER = """
import sys
from leaveout.store.artefacts import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_is_removed_and_what_is_written_is_not(tmp_path: Path) -> None:
    out = tmp_path / "below" / "x.csv"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        temporary = Path(process.stdout.readline().strip())
        assert temporary.read_bytes() == b"half"
        assert remove_leftovers(tmp_path) == []
        process.kill()
        process.wait()
    assert temporary.exists()
    assert remove_leftovers(tmp_path) == [temporary]
    assert not temporary.exists()


def test_a_writer_is_not_disturbed(tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    with atomic_path(out) as temporary:
        temporary.write_text("whole")
        assert remove_leftovers(tmp_path) == []
    assert out.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["x.csv", ".x.tmp.csv", "0123abcd.tmp.x", ".0123abcg.tmp.x"])
def test_other_files_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == remove_leftovers(tmp_path / "missing") == []
    assert (tmp_path / name).exists()


def test_subfolders_are_looked_into_if_asked_for(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    paths = [folder / ".0123abcd.tmp.x" for folder in (tmp_path, inner)]
    for path in paths:
        path.touch()
    assert remove_leftovers(tmp_path, below=False) == paths[:1]
    assert remove_leftovers(tmp_path) == paths[1:]


def test_marks_of_unfinished_jobs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    marks = tmp_path / "incomplete"
    forget_unfinished(marks)
    marks.mkdir()
    (marks / "cmVzdWx0cw==").touch()
    (tmp_path / "other").touch()
    forget_unfinished(marks)
    assert list(marks.iterdir()) == []
    assert (tmp_path / "other").exists()
