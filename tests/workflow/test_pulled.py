"""Results that came from elsewhere, by `dvc pull` or `leaveout restore`, and what is then due."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout.store import artefacts

Start = Callable[..., "subprocess.Popen[str]"]
Snakemake = Callable[..., tuple[int, str]]
Run = Callable[..., str]
Planned = Callable[..., set[str]]
Below = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

MODEL = "results/tiny/models/full/0.safetensors"
LDS, LOO, PBRF = (
    {f"results/tiny/retrain/{layer}/{i}-0.safetensors" for i in (0, 1)}
    for layer in ("lds", "loo", "pbrf")
)
METRICS = ("lds", "loo", "pbrf")
TRACIN = {"results/tiny/scores/tracin_cp/default.safetensors"}
DAMPINGS = {"results/tiny/damping/lds/if_explicit.csv"}
SCORE = "results/tiny/scores/grad_dot/default.safetensors"


def test_a_fresh_clone_has_nothing_to_do(run: Run, pulled: Path, snakemake: Snakemake) -> None:
    assert "Nothing to be done" in snakemake(pulled)[1]
    assert "up to date" in run(pulled, "dvc", "status")
    assert not run(pulled, "git", "status", "--porcelain")


def test_the_configuration_edited_before_the_pull(
    edit: Edit, run: Run, cloned: Path, planned: Planned, below_truth: Below
) -> None:
    edit(cloned / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    run(cloned, "dvc", "pull")
    assert planned(cloned) == below_truth(*METRICS)


def add_cause(clone: Path) -> None:
    """Make an edit that concerns one table and its page."""
    with (clone / "config/causes.yaml").open("a") as file:
        file.write("  tiny:\n    lds:\n      grad_dot: nobody knows\n")


SHOWN_CAUSES = {"results/published_table.csv", "results/pages/published.html"}


def test_git_pull_without_dvc_pull(
    run: Run,
    pulled: Path,
    origin: Path,
    tmp_path: Path,
    pull: Callable[[Path, Path], Path],
    planned: Planned,
    snakemake: Snakemake,
) -> None:
    upstream = pull(origin, tmp_path / "upstream")
    add_cause(upstream)
    assert snakemake(upstream)[0] == 0
    run(upstream, "dvc", "commit", "--force")
    run(upstream, "dvc", "push")
    run(upstream, "git", "add", "--all")
    run(upstream, "git", "commit", "--quiet", "--message", "Give a cause")

    run(pulled, "git", "pull", "--quiet", str(upstream))
    assert planned(pulled) == SHOWN_CAUSES  # nothing is taken for what it is not
    run(pulled, "dvc", "pull")
    assert planned(pulled) == set()


def test_a_layer_pulled_alone(run: Run, cloned: Path, planned: Planned) -> None:
    run(cloned, "dvc", "pull", "results/tiny/metrics", "results/tiny/damping")
    assert planned(cloned, "results/lds_table.csv") == {"results/lds_table.csv"}


def test_an_interrupted_fan_out(
    edit: Edit, pulled: Path, start: Start, planned: Planned, below_truth: Below
) -> None:
    edit(pulled / "config/settings/tiny.yaml", "lds: {subsets: 8", "lds: {ratio: 0.4, subsets: 8")
    below = {"results/tiny/truth/lds.safetensors"} | below_truth("lds")
    assert planned(pulled) == LDS | DAMPINGS | below
    chunks = [pulled / p for p in sorted(LDS)]
    before = [p.stat().st_ino for p in chunks]
    process = start(pulled, "--cores", "1")
    done: list[Path] = []
    while not done:
        assert process.poll() is None
        # Snakemake removes an output before its job starts: one that is back is new
        done = [
            p for p, i in zip(chunks, before, strict=True) if p.exists() and p.stat().st_ino != i
        ]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=400)
    left = planned(pulled)
    assert below <= left
    assert left - below - DAMPINGS < LDS  # a damping waits for no subset


@pytest.mark.parametrize(
    ("file", "due"),
    [
        ("results/tiny/metrics/lds/grad_dot.csv", "results/tiny/metrics/lds/grad_dot.csv"),
        ("results/tiny/metrics/lds/grad_dot.costs.json", "results/tiny/metrics/lds/grad_dot.csv"),
        ("results/tiny/truth/loo.safetensors", "results/tiny/truth/loo.safetensors"),
        ("results/figures/loo.svg", "results/figures/loo.svg"),
        ("results/tiny/scores/grad_dot/default.cost.json", SCORE),
        ("results/tiny/metrics/lds/grad_dot.csv.stamp", "results/tiny/metrics/lds/grad_dot.csv"),
    ],
)
def test_a_file_altered_by_hand_is_named_and_remade(
    pulled: Path, file: str, due: str, planned_and_said: Callable[..., tuple[set[str], str]]
) -> None:
    path = pulled / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    made, said = planned_and_said(pulled)
    assert file.removesuffix(".stamp") in said
    assert due in made
    assert made.isdisjoint({MODEL} | LDS | LOO | PBRF)


def test_a_byte_changed_with_the_old_time_put_back_is_seen(pulled: Path, planned: Planned) -> None:
    assert planned(pulled) == set()  # digests are remembered now
    path = pulled / "results/loo_table.csv"
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"9")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "results/loo_table.csv" in planned(pulled)


def test_an_altered_file_is_refused_by_hand(run: Run, pulled: Path) -> None:
    table = pulled / "results/lds_table.csv"
    table.write_text(table.read_text().replace("0.", "0.9", 1))
    command = "table-page --table lds --csv results/lds_table.csv --out page.html"
    said = run(pulled, "leaveout", *command.split(), status=1)
    assert "results/lds_table.csv: it was altered after it was made" in said
    assert not (pulled / "page.html").exists()


def test_writing_in_place_does_not_reach_the_cache(
    run: Run, pulled: Path, planned: Planned
) -> None:
    table = pulled / "results/lds_table.csv"
    good = table.read_bytes()
    with table.open("r+b") as file:
        file.write(b"garbage")
    run(pulled, "dvc", "checkout", "--force")
    assert table.read_bytes() == good
    assert planned(pulled) == set()


def test_an_experiment_and_back(
    edit: Edit, run: Run, pulled: Path, planned: Planned, snakemake: Snakemake, below_truth: Below
) -> None:
    table = "results/lds_table.csv"
    good = (pulled / table).read_bytes()
    edit(pulled / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    assert snakemake(pulled, table)[0] == 0
    assert planned(pulled, table) == set()
    assert (pulled / table).read_bytes() != good
    run(pulled, "git", "checkout", "--quiet", "config")
    # the experiment's are not taken for ours
    assert planned(pulled) == below_truth("lds")
    run(pulled, "dvc", "checkout", "--force")
    assert planned(pulled) == set()
    assert (pulled / table).read_bytes() == good


def test_a_job_redone_with_the_same_outcome(
    pulled: Path, planned: Planned, snakemake: Snakemake
) -> None:
    status, output = snakemake(pulled, "--force", MODEL)
    assert status == 0, output
    assert planned(pulled) == set()


def perturb(path: Path) -> None:
    """Rewrite an artefact as another processor makes it: each number is the next one."""
    found = artefacts.read(path)
    moved = {
        name: np.nextafter(values, np.inf, dtype=values.dtype)
        if values.dtype.kind == "f"
        else values
        for name, values in found.tensors.items()
    }
    assert any((moved[name] != values).any() for name, values in found.tensors.items())
    artefacts.write(path, found.kind, moved, found.dims, found.meta)
    assert artefacts.read(path).sha256 != found.sha256


def test_an_input_rebuilt_with_other_last_bits_is_the_same(
    edit: Edit,
    pulled: Path,
    planned: Planned,
    planned_and_said: Callable[..., tuple[set[str], str]],
) -> None:
    perturb(pulled / MODEL)
    assert planned(pulled) == set()
    perturb(pulled / "results/tiny/truth/lds.safetensors")
    assert planned(pulled) == set()
    # unless one asks for what is the same bit by bit
    edit(pulled / "config/config.yaml", "bootstrap: 20", "bootstrap: 20\nexact: true")
    made, said = planned_and_said(pulled)
    assert f"made from another {MODEL}" in said
    assert {SCORE, *PBRF, *DAMPINGS} <= made
    assert made.isdisjoint({MODEL} | LDS | LOO)


def test_dvc_repro_records_what_the_configuration_makes(
    run: Run, pulled: Path, planned: Planned
) -> None:
    assert "up to date" in run(pulled, "dvc", "repro")
    add_cause(pulled)
    assert planned(pulled) == SHOWN_CAUSES
    run(pulled, "dvc", "repro")
    assert planned(pulled) == set()
    assert "up to date" in run(pulled, "dvc", "status")


@pytest.fixture
def reader(pull: Callable[[Path, Path], Path], modest: Path, tmp_path: Path) -> Path:
    """A clone that pulled what this repository publishes: no data, models, scores or chunks."""
    clone = pull(modest, tmp_path / "reader")
    left_out = ("data.safetensors", "models", "retrain", "scores")
    assert not any((clone / "results/tiny" / name).exists() for name in left_out)
    return clone


def test_what_is_published_is_enough_for_a_new_method(
    edit: Edit, reader: Path, planned: Planned, dry_run: Planned, below_truth: Below
) -> None:
    assert planned(reader) == set()
    edit(reader / "config/config.yaml", "if_explicit]", "if_explicit, tracin_cp]")
    # what it needs and was not published is made for it, and for nothing else
    made = TRACIN | {MODEL, "results/tiny/data.safetensors"}
    assert planned(reader) == made | below_truth(*METRICS, methods=("tracin_cp",))
    tables = [f"results/{m}_table.csv" for m in METRICS]
    forced = dry_run(reader, *tables, "--forcerun", "evaluate")
    assert forced > {SCORE, "results/tiny/metrics/loo/grad_dot.csv"}


def test_what_is_published_is_enough_without_a_method_and_with_fewer_draws(
    edit: Edit, reader: Path, planned: Planned, below_truth: Below
) -> None:
    config = reader / "config/config.yaml"
    edit(config, "[grad_dot, if_explicit]", "[grad_dot]")
    # samples are pictured of the methods shown, and with their scores
    drawn = {"results/figures/tiny_examples.svg", SCORE, MODEL, "results/tiny/data.safetensors"}
    made = planned(reader)
    assert made - drawn == below_truth(*METRICS, methods=()) - drawn


@pytest.mark.slow
def test_own_models_of_a_published_setting_leave_what_is_published(
    reader: Path, planned: Planned, snakemake: Snakemake
) -> None:
    """Where a model was not published, it is rebuilt here, on another processor than there."""
    status, output = snakemake(reader, "models", SCORE)
    assert status == 0, output
    perturb(reader / MODEL)
    assert planned(reader) == set()
    shutil.rmtree(reader / "results/tiny/scores")
    assert planned(reader) == set()


def test_restore_pulls_the_frontier(run: Run, cloned: Path, planned: Planned) -> None:
    said = run(cloned, "leaveout", "restore", "results/lds_table.csv")
    assert "pulled 1 files; Snakemake would compute 0" in said
    assert planned(cloned, "results/lds_table.csv") == set()
    assert not (cloned / "results/tiny").exists()


def test_restore_does_not_climb_to_raw_data(
    edit: Edit, run: Run, cloned: Path, planned: Planned, below_truth: Below
) -> None:
    run(cloned, "dvc", "pull", "results/tiny/models/full")
    edit(cloned / "config/config.yaml", "if_explicit]", "if_explicit, tracin_cp]")
    run(cloned, "leaveout", "restore")
    assert planned(cloned) == TRACIN | below_truth(*METRICS, methods=("tracin_cp",))
    there = {p.relative_to(cloned).parts[2] for p in (cloned / "results/tiny").glob("*")}
    assert there <= {"data.safetensors", "models", "truth", "metrics", "damping", "scores"}
    assert not (cloned / "results/tiny/retrain").exists()


def test_restore_leaves_what_is_there(run: Run, cloned: Path) -> None:
    (cloned / "results/tiny/metrics/lds").mkdir(parents=True)
    mine = cloned / "results/tiny/metrics/lds/grad_dot.csv"
    mine.write_text("mine")
    (cloned / "results/lds_table.csv").write_text("old")
    run(cloned, "leaveout", "restore", "results/lds_table.csv")
    assert mine.read_text() == "mine"
    assert (cloned / "results/lds_table.csv").read_text() == "old"


def test_restore_names_an_unknown_target(run: Run, cloned: Path) -> None:
    said = run(cloned, "leaveout", "restore", "results/ldss_table.csv", status=1)
    assert "results/ldss_table.csv: no job makes it" in said
    assert "Traceback" not in said
