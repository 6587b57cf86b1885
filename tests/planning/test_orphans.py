"""Against a stub of Slurm's programs; tests/workflow/slurm has the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leaveout.errors import LeaveoutError
from leaveout.workflow.orphans import LOGS, cancel, orphans

ROOT = Path(__file__).parents[2]
RUN = "0b45c3a1-2a52-4d5e-8a51-1d1d6e2f0c9b"
RULE = "rule_retrain_lds_wildcards_tiny_0"

SQUEUE = """#!/bin/sh
[ "$*" = "--me --noheader --format=%A|%j|%k|%Z" ] || exit 2
cat {folder}/queue
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {folder}/cancelled
for job; do sed -i "/^$job|/d" {folder}/queue; done
"""

Queue = Callable[..., None]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Return a function that fills the queue with jobs: id, name, comment, folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (("squeue", SQUEUE), ("scancel", SCANCEL)):
        (programs / name).write_text(code.format(folder=tmp_path))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def fill(*jobs: tuple[str, str, str, Path]) -> None:
        (tmp_path / "queue").write_text("".join("|".join(map(str, j)) + "\n" for j in jobs))

    return fill


def test_only_snakemakes_jobs_from_this_folder_are_orphans(queue: Queue, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    queue(
        ("1", RUN, RULE, here),
        ("2", RUN, RULE, other),  # a run in another clone
        ("3", "python train.py", "(null)", here),  # a job of the user's own
        ("4", "snakemake", RULE, here),  # such as the one that this very Snakemake runs in
        ("5", RUN, "(null)", here),
        ("6", f"mine_{RUN}", "group_chunks", tmp_path / "link"),
        ("7", RUN, RULE, f"{here}|x"),
    )
    assert orphans(here) == ["1", "6"]
    assert orphans(tmp_path / "link") == ["1", "6"]
    assert orphans(other) == ["2"]


def test_they_are_cancelled_and_waited_for(queue: Queue, tmp_path: Path) -> None:
    queue(("11", RUN, RULE, tmp_path), ("12", "mine", "", tmp_path), ("13", RUN, RULE, tmp_path))
    assert cancel(tmp_path) == ["11", "13"]
    assert (tmp_path / "cancelled").read_text() == "11 13\n"
    assert cancel(tmp_path) == []
    assert (tmp_path / "queue").read_text().startswith("12|mine|")


def test_a_job_that_does_not_end_is_named(queue: Queue, tmp_path: Path) -> None:
    queue(("11", RUN, RULE, tmp_path))
    (tmp_path / "bin" / "scancel").write_text("#!/bin/sh\n")
    with pytest.raises(LeaveoutError, match="Slurm jobs 11 of an earlier, killed run are still"):
        cancel(tmp_path, patience=0.1)


def test_without_a_cluster_there_is_nothing_to_do(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    assert cancel(tmp_path) == []
    # unless this folder has used one
    (tmp_path / LOGS).mkdir(parents=True)
    with pytest.raises(LeaveoutError, match="squeue: no controller; is the cluster up"):
        cancel(tmp_path)


def test_without_slurm_there_is_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cancel(tmp_path) == []


def test_the_profile_logs_where_it_is_looked_for() -> None:
    path = ROOT / "workflow" / "profiles" / "slurm" / "config.yaml"
    assert yaml.safe_load(path.read_text())["slurm-logdir"] == LOGS
