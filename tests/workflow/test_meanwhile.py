"""Code or a setting edited while jobs run: refused by name, and nothing of it is ever stamped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
Snakemake = Callable[..., tuple[int, str]]
Planned = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

SETTING = "config/settings/tiny.yaml"
MODEL = "results/tiny/models/full/0.safetensors"
CHUNKS = {f"results/tiny/retrain/lds/{run}-0.safetensors" for run in (0, 1)}
TRUTH = "results/tiny/truth/lds.safetensors"

# Holds a job between its start and its step's function, where a long step spends its time.
HOLD = """\
import time
from pathlib import Path

held = Path("hold")


def hold(job):
    if held.exists() and job.makes[0].startswith(held.read_text()):
        Path("begun").write_text(job.makes[0])
        while held.exists():
            time.sleep(0.05)
"""


@pytest.fixture
def begin(fresh: Path, edit: Edit, start: Start) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a run and waits until a job is under way: the first one
    that makes a file whose name begins so."""
    (fresh / "src" / "held.py").write_text(HOLD)
    before = "    found = function(job)("
    edit(
        fresh / "src/leaveout/workflow/run.py",
        before,
        f"    __import__('held').hold(job)\n{before}",
    )
    processes = []

    def begin(file: str, *arguments: str) -> subprocess.Popen[str]:
        (fresh / "hold").write_text(file)
        process = start(fresh, *arguments)
        processes.append(process)
        for _ in range(1200):
            if (fresh / "begun").exists():
                return process
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        raise AssertionError(f"{file} never began")

    yield begin
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def end(process: subprocess.Popen[str], clone: Path) -> tuple[int, str]:
    """Let the held job go on; return the run's exit status and what it said."""
    (clone / "hold").unlink()
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("src/leaveout/training/stack.py", "\n\n\ndef ", "\n\nX = 1\n\n\ndef ", "edited code"),
        (SETTING, "learning_rate: 0.05", "learning_rate: 0.5", "recipe.learning_rate: 0.05 -> 0.5"),
    ],
)
def test_an_edit_while_a_model_trains_is_refused(
    file: str,
    old: str,
    new: str,
    named: str,
    fresh: Path,
    edit: Edit,
    begin: Callable[..., subprocess.Popen[str]],
    snakemake: Snakemake,
    planned_by_its_code: Planned,
) -> None:
    process = begin(MODEL, MODEL)
    edit(fresh / file, old, new)
    status, output = end(process, fresh)
    assert status == 1
    assert f"{MODEL}: edited while this job ran ({named}), so nothing was written" in output
    assert "Run the same command again" in output
    assert "Traceback" not in output
    assert not list((fresh / MODEL).parent.glob("*"))

    status, output = snakemake(fresh, MODEL)
    assert status == 0, output
    assert planned_by_its_code(fresh, MODEL) == set()
    edit(fresh / file, new, old)  # what was made is the edit's
    assert MODEL in planned_by_its_code(fresh, MODEL)


def test_a_setting_edited_in_mid_run_never_gives_a_truth_of_both(
    fresh: Path,
    edit: Edit,
    begin: Callable[..., subprocess.Popen[str]],
    planned_by_its_code: Planned,
) -> None:
    process = begin("results/tiny/retrain/lds/", TRUTH, "--cores", "1", "--keep-going")
    first = (fresh / "begun").read_text()
    (second,) = CHUNKS - {first}
    edit(fresh / SETTING, "learning_rate: 0.05", "learning_rate: 0.5")
    status, output = end(process, fresh)
    assert status == 1
    why = "(recipe.learning_rate: 0.05 -> 0.5)"
    assert f"{first}: edited while this job ran {why}" in output
    assert f"{second}: edited since this run was planned {why}, so it is not made" in output
    assert not list((fresh / "results/tiny/retrain").rglob("*.safetensors"))
    assert not (fresh / TRUTH).exists()
    edit(fresh / SETTING, "learning_rate: 0.5", "learning_rate: 0.05")
    assert planned_by_its_code(fresh, TRUTH) == CHUNKS | {TRUTH}
