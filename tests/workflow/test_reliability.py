"""Whatever happens to a run or to its files, the end is the same, to the last byte."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]
Snakemake = Callable[..., tuple[int, str]]
Planned = Callable[..., set[str]]
Contents = Callable[..., dict[str, str]]
Run = Callable[..., str]

KILLS = 5
SEED = int(os.environ.get("LEAVEOUT_KILL_SEED", "0"))

# one file of every type; what makes it, its first output
FILES = {
    "results/tiny/data.safetensors": "",
    "results/tiny/models/full/0.safetensors": "",
    "results/tiny/retrain/lds/0-0.safetensors": "",
    "results/tiny/retrain/loo/1-0.safetensors": "",
    "results/tiny/retrain/pbrf/1-0.safetensors": "",
    "results/tiny/truth/loo.safetensors": "",
    "results/tiny/truth/pbrf.safetensors": "",
    "results/tiny/scores/grad_dot/default.safetensors": "",
    "results/tiny/scores/grad_dot/default.cost.json": (
        "results/tiny/scores/grad_dot/default.safetensors"
    ),
    "results/tiny/metrics/lds/grad_dot.csv": "",
    "results/tiny/metrics/lds/grad_dot.costs.json": "results/tiny/metrics/lds/grad_dot.csv",
    "results/tiny/metrics/loo/grad_dot.draws.safetensors": "results/tiny/metrics/loo/grad_dot.csv",
    "results/lds_table.csv": "",
    "results/cost_table.csv": "",
    "results/tidy.csv": "",
    "results/rank_table.csv": "",
    "results/pages/lds.html": "",
    "results/pages/start.html": "",
    "results/pages/setup.html": "",
    "results/figures/loo.svg": "",
}


@pytest.mark.slow
def test_killed_again_and_again(
    fresh: Path, finished: Path, start: Start, snakemake: Snakemake, contents: Contents
) -> None:
    """Kill a run from nothing and all its jobs at random times, and start it again each time.

    With two cores and with one, the end is that of an undisturbed run.
    """
    clock = random.Random(SEED)
    times = []
    for _ in range(KILLS):
        times.append(clock.uniform(0.2, 6.0))
        process = start(fresh, "--cores", "2")
        try:
            process.communicate(timeout=times[-1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=400)
        else:  # it had the time to finish: to it again, from somewhere in the middle
            assert contents(fresh) == contents(finished), f"seed {SEED}, after {times} s"
            victims = sorted(p for p in (fresh / "results").rglob("*") if p.is_file())
            for path in clock.sample(victims, len(victims) // 2):
                path.unlink()
    status, output = snakemake(fresh, "--cores", "1")
    assert status == 0, output
    assert contents(fresh) == contents(finished), f"seed {SEED}, after {times} s"
    assert "Nothing to be done" in snakemake(fresh)[1]


@pytest.mark.parametrize("path", FILES)
def test_a_truncated_file_is_named_and_made_anew(
    clone: Path, path: str, planned_and_said: Callable[..., tuple[set[str], str]]
) -> None:
    whole = (clone / path).read_bytes()
    (clone / path).write_bytes(whole[: len(whole) // 2])
    made, said = planned_and_said(clone)
    reasons = ("damaged", "its stamp can't be read", "altered after it was made")
    assert any(f"{why}: {path}" in said for why in reasons), said
    assert (FILES[path] or path) in made


class Trap:
    """Unpickled, it leaves a trace."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch TRAPPED",)


def test_no_pickle_is_ever_opened(
    clone: Path, finished: Path, snakemake: Snakemake, contents: Contents, run: Run
) -> None:
    by_hand = "--setting tiny --data results/tiny/data.safetensors --chunk 0 --out x.safetensors"
    commands = (
        f"train --kind full {by_hand}",
        f"retrain-lds {by_hand}",
        "merge-truth --setting tiny --truth lds --out x "
        "--chunks results/tiny/retrain/lds/0-0.safetensors",
        "evaluate --setting tiny --metric loo --method grad_dot --out x --truth "
        "results/tiny/truth/loo.safetensors "
        "--scores results/tiny/scores/grad_dot/default.safetensors "
        "--cost results/tiny/scores/grad_dot/default.cost.json",
        "table-page --table lds --csv results/lds_table.csv --out x",
        "cost-table --out x --costs results/tiny/metrics/lds/grad_dot.costs.json "
        "--quality results/tiny/metrics/lds/grad_dot.csv",
    )
    # each file as the oldest and as the newest kind; the run finds half of them of either
    for first in (0, 5):
        for number, path in enumerate([*FILES, ".snakemake/leaveout-digests.json"]):
            protocol = 5 - first if number % 2 else first
            (clone / path).write_bytes(pickle.dumps(Trap(), protocol))
            # and what a job leaves that is killed while it writes
            left = (clone / path).with_name(f".0123abcd.tmp.{Path(path).name}")
            left.write_bytes(pickle.dumps(Trap(), protocol))
        for command in commands:
            said = run(clone, "leaveout", *command.split(), status=1)
            assert "Traceback" not in said, said
        assert not (clone / "x").exists()
    status, output = snakemake(clone)
    assert status == 0, output
    assert not list(clone.rglob("TRAPPED"))
    assert contents(clone) == contents(finished)


def test_nothing_of_ours_can_open_a_pickle() -> None:
    sources = Path(__file__).parents[2].joinpath("src").rglob("*.py")
    texts = {str(path): path.read_text() for path in sources}
    assert len(texts) > 20
    for name, text in texts.items():
        for word in (
            "pickle.load",
            "Unpickler",
            "np.load",
            "joblib",
            "allow_pickle",
            "read_pickle",
        ):
            assert word not in text, f"{name}: {word}"
    # users' checkpoints come from torch.save: two places open them, and run no code in them
    calls = [call for text in texts.values() for call in re.findall(r"torch\.load\(.*", text)]
    assert sorted(calls) == [
        "torch.load(checkpoint, map_location=where, weights_only=True)",
        'torch.load(path, map_location="cpu", weights_only=True)',
    ]


def test_a_clock_that_runs_ahead(
    clone: Path, finished: Path, snakemake: Snakemake, planned: Planned, contents: Contents
) -> None:
    """As when the file server's clock is an hour ahead of this machine's."""
    for path in (clone / "results").rglob("*"):
        if path.is_file():
            later = path.stat().st_mtime + 3600
            os.utime(path, (later, later))
    (clone / "results/tiny/truth/lds.safetensors").unlink()
    status, output = snakemake(clone, "truths", "results")
    assert status == 0, output
    assert planned(clone) == set()
    assert contents(clone) == contents(finished)


@pytest.fixture
def read_only(clone: Path) -> Iterator[Path]:
    """A finished clone whose results can't be written, not even by root."""
    folder = clone / "results"
    bound = ["mount", "--bind", str(folder), str(folder)]
    try:
        done = subprocess.run(bound, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    try:
        yield clone
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_read_only_results_can_be_used(
    read_only: Path, tmp_path: Path, snakemake: Snakemake, planned: Planned
) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "results" / "x").touch()
    assert planned(read_only) == set()
    config = read_only / "config" / "config.yaml"
    config.write_text(config.read_text().replace("bootstrap: 20", "bootstrap: 30"))
    table = (read_only / "results" / "lds_table.csv").read_bytes()
    status, output = snakemake(read_only)
    assert status == 1
    assert "Write-protected output files" in output
    assert (read_only / "results" / "lds_table.csv").read_bytes() == table
