"""The README's commands and its example method do what it says.

`make results`, `make test` and the run on the digits are what CI runs (.ci/run); the rest is run
here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# run whole by CI, from the clone
BY_CI = {"make results", "make test", "snakemake results --configfile config/digits.yaml"}

Run = Callable[..., tuple[int, str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A clone with the configuration that ships."""
    for name in ("workflow", "src", "config", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "slurm").symlink_to((ROOT / "slurm").readlink())
    return tmp_path


def test_ci_runs_the_two_commands() -> None:
    assert set(commands()) >= {"make results", "make test"}
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make results PANEL=digits" in ci
    assert "make check" in ci
    assert "$(MAKE) --no-print-directory test" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("snakemake")])
def test_each_target_resolves_in_a_clone(command: str, shipped: Path, snakemake: Run) -> None:
    status, output = snakemake(shipped, *shlex.split(command)[1:], "--dry-run")
    assert status == 0, output
    assert re.search(r"results/(\w+/)?lds_table\.csv", output)


def test_the_steps_by_hand_run_as_they_stand(shipped: Path) -> None:
    by_hand = [command for command in commands() if command.startswith("leaveout")]
    assert len(by_hand) > 4
    for command in by_hand:
        # the installed script is this module; the clone's own copy of the package is used
        subprocess.run(
            [sys.executable, "-m", "leaveout", *shlex.split(command)[1:]],
            cwd=shipped,
            env={**os.environ, "PYTHONPATH": str(shipped / "src")},
            check=True,
            capture_output=True,
        )
    assert (shipped / "build" / "score.safetensors").is_file()


def test_a_clone_has_nothing_to_do_after_a_pull(
    tmp_path: Path, run: Callable[..., str], snakemake: Run, planned: Callable[..., set[str]]
) -> None:
    """What is published must be what the committed configuration and code would make."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    run(tmp_path, "git", "clone", "--quiet", str(ROOT), "clone")
    clone = tmp_path / "clone"
    run(clone, "dvc", "pull")
    assert "not what today's" not in snakemake(clone, "--dry-run")[1]
    assert planned(clone) == set()
    assert "results/lds_table.csv" in run(clone, "git", "check-ignore", "results/lds_table.csv")


def test_no_command_is_left_out() -> None:
    known = ("make ", "snakemake ", "leaveout ", "dvc pull")
    assert [c for c in commands() if not c.startswith(known)] == []
    assert {c for c in commands() if c.startswith("make")} <= BY_CI


def test_the_example_method_gets_its_row(clone: Path, snakemake: Run) -> None:
    (code,) = blocks("python")
    name = re.search(r"`src/leaveout/attribution/(\w+)\.py`", README)
    assert name
    (clone / "src" / "leaveout" / "attribution" / f"{name[1]}.py").write_text(code)
    methods = clone / "config" / "methods.yaml"
    (entry,) = blocks("yaml")
    methods.write_text(methods.read_text() + entry)
    config = clone / "config" / "config.yaml"
    config.write_text(
        config.read_text().replace("[grad_dot, if_explicit]", f"[grad_dot, {name[1]}]")
    )
    status, output = snakemake(clone, "results/lds_table.csv")
    assert status == 0, output
    table = pd.read_csv(clone / "results" / "lds_table.csv").set_index("method")
    assert table.loc[name[1], "params"] in ("power=1", "power=4")
    assert 0 < table.loc[name[1], "value"] < 1  # samples that look alike help
