from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from leaveout.workflow import provenance


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The code as it lies in a folder of somebody's repository, untracked."""
    file = tmp_path / "repository" / "vendor" / "leaveout" / "workflow" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    (tmp_path / "repository" / "own.txt").write_text("")
    monkeypatch.chdir(tmp_path / "repository")
    monkeypatch.setattr(provenance, "__file__", str(file))
    git("init", "--quiet")
    git("add", "own.txt")
    git("commit", "--quiet", "--message", "Own work")
    provenance._commit.cache_clear()
    yield file
    provenance._commit.cache_clear()


def git(*arguments: str) -> str:
    names = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    command = ["git", *names, *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def test_the_commit_of_a_repository_that_does_not_track_the_code_is_not_recorded(
    code: Path,
) -> None:
    assert provenance._commit() == "unknown"


def test_code_that_git_ignores_has_no_commit(code: Path) -> None:
    Path(".gitignore").write_text("vendor/\n")
    assert provenance._commit() == "unknown"


def test_the_commit_is_recorded_where_git_tracks_the_code(code: Path) -> None:
    git("add", "vendor")
    git("commit", "--quiet", "--message", "Vendor")
    assert provenance._commit() == git("rev-parse", "HEAD")
    provenance._commit.cache_clear()
    code.write_text("edited")
    assert provenance._commit() == f"{git('rev-parse', 'HEAD')}-dirty"


def test_outside_git_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Path
) -> None:
    outside = tmp_path / "plain" / "workflow" / "provenance.py"
    outside.parent.mkdir(parents=True)
    outside.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(outside))
    assert provenance._commit() == "unknown"
