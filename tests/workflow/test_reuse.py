"""Results that came from elsewhere, by plain `dvc pull`, and the exact jobs that plain `snakemake`
then finds due."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leaveout.workflow import Plan

Start = Callable[..., "subprocess.Popen[str]"]
Snakemake = Callable[..., tuple[int, str]]
Run = Callable[..., str]
Planned = Callable[..., set[str]]
Below = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

SETUP = {"results/pages/setup.html"}
COST = {"results/cost_table.csv", "results/pages/cost.html"} | SETUP
DATA = {"results/tiny/data.safetensors"}
MODELS = {"results/tiny/models/full/0.safetensors"}
LDS, LOO, PBRF = (
    {f"results/tiny/retrain/{layer}/{i}-0.safetensors" for i in (0, 1)}
    for layer in ("lds", "loo", "pbrf")
)
METRICS = ("lds", "loo", "pbrf")
TRUTHS = {f"results/tiny/truth/{m}.safetensors" for m in METRICS}
GRAD_DOT = {"results/tiny/scores/grad_dot/default.safetensors"}
EXPLICIT = {f"results/tiny/scores/if_explicit/damping={d}.safetensors" for d in ("1", "0.01")}
SCORES = GRAD_DOT | EXPLICIT
DAMPINGS = {"results/tiny/damping/lds/if_explicit.csv"}


@pytest.fixture
def cloned(run: Run, tmp_path: Path, origin: Path) -> Path:
    """A fresh clone in another path, nothing pulled."""
    run(tmp_path, "git", "clone", "--quiet", str(origin), "somewhere-else")
    return tmp_path / "somewhere-else"


@pytest.fixture
def pulled(run: Run, cloned: Path) -> Path:
    """A fresh clone after `dvc pull`; the files' times are in no order at all."""
    run(cloned, "dvc", "pull")
    files = sorted(p for p in (cloned / "results").rglob("*") if p.is_file())
    clock = random.Random(0)
    for path in files:
        os.utime(path, (clock.randrange(10**9), clock.randrange(10**9)))
    return cloned


def test_the_rules_are_the_steps_that_are_reviewed(origin: Path, snakemake: Snakemake) -> None:
    """The stamps are checked against a plan of all jobs; it must be the one Snakemake follows."""
    status, output = snakemake(origin, "--dry-run", "--forceall", "results", "models")
    assert status == 0, output
    blocks = re.findall(r"^rule (\w+):\n((?: {4}.*\n)*)", output, re.M)
    found = set()
    for _, block in blocks:
        fields = dict(re.findall(r"^ {4}(input|output|benchmark): (.*)$", block, re.M))
        if "output" in fields:
            inputs = tuple(fields["input"].split(", ")) if "input" in fields else ()
            benchmark = fields.get("benchmark", "")
            found.add((tuple(fields["output"].split(", ")), inputs, benchmark))
    config = yaml.safe_load((origin / "config/config.yaml").read_text())
    steps = Plan.load(config, origin / "config").steps("config/published.csv")
    assert found == {(step.outputs, step.inputs, step.benchmark) for step in steps}


def test_a_fresh_clone_has_nothing_to_do(
    run: Run, pulled: Path, planned: Planned, snakemake: Snakemake
) -> None:
    assert planned(pulled) == set()
    assert "Nothing to be done" in snakemake(pulled)[1]
    assert "up to date" in run(pulled, "dvc", "status")
    assert not run(pulled, "git", "status", "--porcelain")


def test_times_alone_change_nothing(pulled: Path, planned: Planned) -> None:
    for path in pulled.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".yaml", ".csv", ".smk"):
            os.utime(path)
    for layer in ("models", "truth"):
        for path in (pulled / "results/tiny" / layer).rglob("*.safetensors"):
            os.utime(path, (4e9, 4e9))  # a clock far ahead
    assert planned(pulled) == set()


def test_nor_do_they_where_the_jobs_ran(clone: Path, planned: Planned) -> None:
    """There the benchmarks are, too, whose times Snakemake takes for outputs'."""
    assert list((clone / "benchmarks").rglob("*.tsv"))
    os.utime(clone / "results/tiny/data.safetensors")
    assert planned(clone) == set()


def test_a_new_learning_rate(
    edit: Edit, pulled: Path, planned: Planned, below_truth: Below
) -> None:
    edit(pulled / "config/settings/tiny.yaml", "0.05", "0.1")
    everything = MODELS | LDS | LOO | PBRF | TRUTHS | SCORES | DAMPINGS | COST
    assert planned(pulled) == everything | below_truth(*METRICS)


def test_why_is_said(edit: Edit, pulled: Path, snakemake: Snakemake) -> None:
    edit(pulled / "config/settings/tiny.yaml", "0.05", "0.1")
    output = snakemake(pulled, "--dry-run")[1]
    assert "not what today's configuration and code make" in output
    assert "recipe.learning_rate: 0.05 -> 0.1: results/tiny/models/full/0.safetensors" in output
    assert "follow from others" in output


def test_two_values_swapped(edit: Edit, pulled: Path, planned: Planned, below_truth: Below) -> None:
    # full.runs: 2, checkpoints: 1; without a second run, PBRF has no replicates
    edit(
        pulled / "config/settings/tiny.yaml",
        "{runs: 2, checkpoints: 1}",
        "{runs: 1, checkpoints: 2}",
    )
    first = {"results/tiny/retrain/pbrf/0-0.safetensors", "results/tiny/truth/pbrf.safetensors"}
    scored = MODELS | SCORES | DAMPINGS | COST
    assert planned(pulled) == scored | first | below_truth(*METRICS)


def test_one_more_seed(edit: Edit, pulled: Path, planned: Planned, below_truth: Below) -> None:
    edit(pulled / "config/settings/tiny.yaml", "full: {runs: 2", "full: {runs: 3")
    truth = {"results/tiny/truth/pbrf.safetensors"}  # it starts from full models
    scored = MODELS | SCORES | DAMPINGS | COST
    assert planned(pulled) == scored | PBRF | truth | SETUP | below_truth(*METRICS)


def test_another_root_seed_spares_the_data(
    edit: Edit, pulled: Path, planned: Planned, below_truth: Below
) -> None:
    edit(pulled / "config/settings/tiny.yaml", "seed: 0", "seed: 1")
    everything = MODELS | LDS | LOO | PBRF | TRUTHS | SCORES | DAMPINGS | COST
    assert planned(pulled) == everything | below_truth(*METRICS)


@pytest.mark.parametrize(
    ("old", "new", "chunks"),
    [
        ("subsets: 8, runs: 2", "subsets: 12, runs: 2", ("0-1", "1-1")),
        ("subsets: 8, runs: 2", "subsets: 8, runs: 3", ("2-0",)),
        ("subsets: 8, runs: 2", "subsets: 16, runs: 3", ("0-1", "1-1", "2-0", "2-1")),
        ("subsets: 8, runs: 2", "subsets: 8, runs: 1", ()),
    ],
)  # fmt: skip
def test_a_larger_bank_trains_what_is_new(
    edit: Edit,
    pulled: Path,
    planned: Planned,
    below_truth: Below,
    old: str,
    new: str,
    chunks: tuple[str, ...],
) -> None:
    edit(pulled / "config/settings/tiny.yaml", old, new)
    truth = {"results/tiny/truth/lds.safetensors"}
    added = {f"results/tiny/retrain/lds/{name}.safetensors" for name in chunks}
    assert planned(pulled) == added | truth | SETUP | below_truth("lds")


def test_another_damping_of_pbrf(
    edit: Edit, pulled: Path, planned: Planned, below_truth: Below
) -> None:
    edit(pulled / "config/settings/tiny.yaml", "damping: 1e-1", "damping: 2e-1")
    truth = {"results/tiny/truth/pbrf.safetensors"}
    assert planned(pulled) == PBRF | truth | SETUP | below_truth("pbrf")


def test_one_more_method(edit: Edit, pulled: Path, planned: Planned, below_truth: Below) -> None:
    edit(pulled / "config/config.yaml", "if_explicit]", "if_explicit, tracin_cp]")
    new = {"results/tiny/scores/tracin_cp/default.safetensors"}
    assert planned(pulled) == new | COST | below_truth(*METRICS, methods=("tracin_cp",))


def test_one_method_less(edit: Edit, pulled: Path, planned: Planned, below_truth: Below) -> None:
    edit(pulled / "config/config.yaml", "[grad_dot, if_explicit]", "[grad_dot]")
    examples = {"results/figures/tiny_examples.svg"}
    assert planned(pulled) == COST | below_truth(*METRICS, methods=()) | examples


def test_a_changed_metric(edit: Edit, pulled: Path, planned: Planned, below_truth: Below) -> None:
    edit(pulled / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    assert planned(pulled) == below_truth(*METRICS)


def test_a_methods_source(pulled: Path, planned: Planned, below_truth: Below) -> None:
    source = pulled / "src/leaveout/attribution/if_explicit.py"
    source.write_text(source.read_text() + "\n# a comment\n")
    assert planned(pulled) == set()
    source.write_text(source.read_text() + "\nSOMETHING = 1\n")
    scored = EXPLICIT | DAMPINGS | COST
    assert planned(pulled) == scored | below_truth(*METRICS, methods=("if_explicit",))


def test_a_metrics_source(pulled: Path, planned: Planned, below_truth: Below) -> None:
    source = pulled / "src/leaveout/metrics/evaluate.py"
    source.write_text(source.read_text() + "\nSOMETHING = 1\n")
    # the module of all tables takes the names of the columns from there
    assert planned(pulled) == below_truth(*METRICS) | DAMPINGS | COST


def test_the_configuration_edited_before_the_pull(
    edit: Edit, run: Run, cloned: Path, planned: Planned, below_truth: Below
) -> None:
    edit(cloned / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    run(cloned, "dvc", "pull")
    assert planned(cloned) == below_truth(*METRICS)


def test_git_pull_without_dvc_pull(
    edit: Edit,
    run: Run,
    pulled: Path,
    origin: Path,
    tmp_path: Path,
    planned: Planned,
    snakemake: Snakemake,
    below_truth: Below,
) -> None:
    run(tmp_path, "git", "clone", "--quiet", str(origin), "upstream")
    upstream = tmp_path / "upstream"
    run(upstream, "dvc", "pull")
    edit(upstream / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    run(upstream, "git", "commit", "--quiet", "--all", "--message", "Draw more")
    assert snakemake(upstream)[0] == 0
    run(upstream, "leaveout", "publish")

    run(pulled, "git", "pull", "--quiet", str(upstream))
    assert planned(pulled) == below_truth(*METRICS)  # nothing is taken for what it is not
    run(pulled, "dvc", "pull")
    assert planned(pulled) == set()


def test_a_layer_pulled_alone(run: Run, cloned: Path, planned: Planned) -> None:
    run(cloned, "dvc", "pull", "results/tiny/metrics", "results/tiny/damping")
    assert planned(cloned, "results/lds_table.csv") == {"results/lds_table.csv"}


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
    new = {"results/tiny/scores/tracin_cp/default.safetensors"}
    assert planned(cloned) == new | COST | below_truth(*METRICS, methods=("tracin_cp",))
    there = {p.relative_to(cloned).parts[2] for p in (cloned / "results/tiny").glob("*")}
    assert there == {"data.safetensors", "models", "truth", "metrics", "damping", "scores"}
    assert not (cloned / "results/tiny/retrain").exists()
    # of the old scores, the table of costs needs the small files only
    assert not list((cloned / "results/tiny/scores").rglob("*.safetensors"))


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


def test_an_interrupted_fan_out(
    edit: Edit, pulled: Path, start: Start, planned: Planned, below_truth: Below
) -> None:
    edit(pulled / "config/settings/tiny.yaml", "lds: {subsets: 8", "lds: {ratio: 0.4, subsets: 8")
    truth = {"results/tiny/truth/lds.safetensors"}
    assert planned(pulled) == LDS | truth | DAMPINGS | SETUP | below_truth("lds")
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
    assert truth | SETUP | below_truth("lds") <= left
    assert (
        left - truth - SETUP - below_truth("lds") - DAMPINGS < LDS
    )  # a damping waits for no subset


@pytest.mark.parametrize(
    ("file", "due"),
    [
        ("results/tiny/metrics/lds/grad_dot.csv", {"results/tiny/metrics/lds/grad_dot.csv"}),
        ("results/tiny/truth/loo.safetensors", {"results/tiny/truth/loo.safetensors"}),
        ("results/figures/loo.svg", {"results/figures/loo.svg"}),
        ("results/tiny/scores/grad_dot/default.cost.json", GRAD_DOT),
        ("results/tiny/metrics/lds/grad_dot.csv.stamp", {"results/tiny/metrics/lds/grad_dot.csv"}),
    ],
)
def test_a_file_altered_by_hand_is_named_and_remade(
    pulled: Path,
    file: str,
    due: set[str],
    planned_and_said: Callable[..., tuple[set[str], str]],
) -> None:
    path = pulled / file
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    made, said = planned_and_said(pulled)
    assert file.removesuffix(".stamp") in said
    assert due <= made
    assert made.isdisjoint(MODELS | LDS | LOO | PBRF)


def test_an_altered_file_is_refused_by_hand(run: Run, pulled: Path) -> None:
    table = pulled / "results/lds_table.csv"
    table.write_text(table.read_text().replace("0.", "0.9", 1))
    command = "table-page --name lds --table results/lds_table.csv --out page.html"
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


def test_a_local_experiment_and_back(
    edit: Edit, run: Run, pulled: Path, planned: Planned, snakemake: Snakemake, below_truth: Below
) -> None:
    good = (pulled / "results/lds_table.csv").read_bytes()
    edit(pulled / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    assert snakemake(pulled)[0] == 0
    assert planned(pulled) == set()
    assert (pulled / "results/lds_table.csv").read_bytes() != good
    run(pulled, "git", "checkout", "--quiet", "config")
    assert planned(pulled) == below_truth(*METRICS)  # the experiment's are not taken for ours
    run(pulled, "dvc", "checkout", "--force")
    assert planned(pulled) == set()
    assert (pulled / "results/lds_table.csv").read_bytes() == good


def test_a_job_redone_with_the_same_outcome(
    pulled: Path, planned: Planned, snakemake: Snakemake
) -> None:
    (model,) = MODELS
    status, output = snakemake(pulled, "--force", model)
    assert status == 0, output
    assert planned(pulled) == set()


def test_dvc_repro_records_what_the_configuration_makes(
    edit: Edit, run: Run, pulled: Path, planned: Planned
) -> None:
    assert "up to date" in run(pulled, "dvc", "repro")
    edit(pulled / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    old = (pulled / "results/lds_table.csv").read_bytes()
    run(pulled, "dvc", "repro")
    assert (pulled / "results/lds_table.csv").read_bytes() != old
    assert planned(pulled) == set()
    assert "up to date" in run(pulled, "dvc", "status")


def test_what_is_published_is_enough_for_a_new_method(
    edit: Edit, run: Run, modest: Path, tmp_path: Path, planned: Planned, below_truth: Below
) -> None:
    run(tmp_path, "git", "clone", "--quiet", str(modest), "clone")
    clone = tmp_path / "clone"
    run(clone, "dvc", "pull")
    left_out = {"data.safetensors", "models/full/0.safetensors"}
    assert not any((clone / "results/tiny" / name).exists() for name in (*left_out, "scores"))
    assert planned(clone) == set()
    edit(clone / "config/config.yaml", "if_explicit]", "if_explicit, tracin_cp]")
    new = {"results/tiny/scores/tracin_cp/default.safetensors"}
    tables = [f"results/{m}_table.csv" for m in METRICS]
    below = below_truth(*METRICS, methods=("tracin_cp",))
    metrics = {path for path in below if path.startswith("results/tiny/metrics")}
    # what it needs and was not published is made for it, and for nothing else
    made = {f"results/tiny/{name}" for name in left_out}
    assert planned(clone, *tables) == new | metrics | {*tables} | made
    forced = planned(clone, *tables, "--forcerun", "evaluate")
    paths = ("scores/grad_dot/default.safetensors", "metrics/loo/grad_dot.csv")
    assert forced > {f"results/tiny/{path}" for path in paths}
