"""A whole run, and runs that make what an edit made due."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout.store import artefacts

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str]]
Planned = Callable[..., set[str]]
Below = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

METRICS = ("lds", "loo", "pbrf")
LDS = "results/tiny/truth/lds.safetensors"
DAMPINGS = {"results/tiny/damping/lds/if_explicit.csv"}
SETTING, CONFIG = "config/settings/tiny.yaml", "config/config.yaml"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_makes_the_tables_and_the_figures(finished: Path, final: set[str]) -> None:
    for name in final:
        assert (finished / name).stat().st_size > 0, name
    for metric in METRICS:
        table = rows(finished / "results" / f"{metric}_table.csv")
        assert [(row["setting"], row["method"]) for row in table] == [
            ("tiny", "grad_dot"),
            ("tiny", "if_explicit"),
        ]
        assert all(-1 <= float(row["value"]) <= 1 for row in table)
    assert len(rows(finished / "results/cost_table.csv")) == 3
    assert len(rows(finished / "results/tidy.csv")) == 3 * len(METRICS) * 6
    ranked = rows(finished / "results/rank_table.csv")
    assert [row["metric"] for row in ranked] == [m for m in METRICS for _ in range(2)]
    assert [row["rank"] for row in ranked] == ["1", "2"] * len(METRICS)


def test_every_job_leaves_a_log(finished: Path) -> None:
    logs = {p.name for p in (finished / "logs" / "retrain_lds").iterdir()}
    assert logs == {"tiny-0-0.log", "tiny-1-0.log"}
    assert not list((finished / "results").rglob("*.tmp.*"))


def test_an_artefact_leads_back_to_its_inputs(finished: Path) -> None:
    score = artefacts.read(finished / "results/tiny/scores/grad_dot/default.safetensors")
    for name, made_from in score.meta["inputs"].items():
        assert artefacts.read(finished / name).sha256 == made_from["sha256"]
    assert json.loads(score.meta["key"])["method"] == "grad_dot"


def test_a_second_run_has_nothing_to_do(clone: Path, snakemake: Run) -> None:
    status, output = snakemake(clone)
    assert status == 0, output
    assert "Nothing to be done" in output


def test_each_layer_has_a_target(fresh: Path, snakemake: Run) -> None:
    layers = ("models", "truths", "scores", "tables")
    status, output = snakemake(fresh, "--dry-run", *layers)
    assert status == 0, output
    assert all(f"rule {layer}:" in output for layer in layers)


@pytest.mark.parametrize("profile", ["slurm", "gpu"])
def test_a_profile_plans_the_same_jobs(
    profile: str, fresh: Path, planned: Planned, dry_run: Planned
) -> None:
    assert dry_run(fresh, "--profile", profile) == planned(fresh)


def test_the_workflow_lints_and_is_formatted(fresh: Path, snakemake: Run) -> None:
    status, output = snakemake(fresh, "--lint")
    assert status == 0, output
    command = [sys.executable, "-m", "snakefmt", "--check", "workflow"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_parsing_loads_nothing_heavy(fresh: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from leaveout.config import load_yaml\n"
        "from leaveout.workflow.steps import load_plan\n"
        "plan = load_plan(load_yaml(Path('config/config.yaml')), 'config')\n"
        "assert [job.key for job in plan.jobs]\n"
        "first = {*sys.modules}\n"
        "from leaveout.workflow import due, planned, review, rules\n"
        "found = review.review(plan.jobs)\n"
        "assert due.due(plan.jobs, found, plan.shown())\n"
        "assert planned.Planned.of(plan.jobs).digest()\n"
        "print([[m for m in loaded if '.' not in m] for loaded in (first, sys.modules)])"
    )
    command = [sys.executable, "-c", code]
    first, then = ast.literal_eval(subprocess.check_output(command, cwd=fresh, text=True))
    heavy = {"torch", "scipy", "pandas", "matplotlib", "sklearn", "huggingface_hub"}
    assert "leaveout" in first
    assert not heavy & {*then}
    assert "numpy" not in first  # artefacts are read with it, plans are not


def test_more_subsets_train_the_new_chunks_only(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run
) -> None:
    old = {p: p.read_bytes() for p in sorted((clone / "results/tiny/retrain/lds").iterdir())}
    edit(clone / SETTING, "subsets: 8", "subsets: 12")
    new = {f"results/tiny/retrain/lds/{run}-1.safetensors" for run in (0, 1)}
    assert planned(clone, LDS) == new | {LDS}

    status, output = snakemake(clone, LDS)
    assert status == 0, output
    assert planned(clone, LDS) == set()
    assert all((clone / path).exists() for path in new)
    assert {p: p.read_bytes() for p in old} == old


def test_one_more_run_leaves_the_values_of_the_others(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run
) -> None:
    before = artefacts.read(clone / LDS).tensors
    edit(clone / SETTING, "runs: 2, chunk: 8", "runs: 3, chunk: 8")
    assert planned(clone, LDS) == {"results/tiny/retrain/lds/2-0.safetensors", LDS}

    status, output = snakemake(clone, LDS)
    assert status == 0, output
    after = artefacts.read(clone / LDS).tensors
    assert after["target"].shape == (8, 3, 12)
    np.testing.assert_array_equal(after["target"][:, :2], before["target"])
    np.testing.assert_array_equal(after["mask"], before["mask"])
    assert np.abs(after["target"][:, 2] - before["target"][:, 0]).max() > 1e-3


@pytest.mark.slow
def test_an_edited_subset_of_a_users_own_trains_its_chunks_only(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run, below_truth: Below
) -> None:
    lines = [" ".join(str(i) for i in range(60) if i * (s + 1) % 7 > 2) for s in range(6)]
    own = clone / "config/subsets.txt"
    own.write_text("\n".join(lines))
    edit(
        clone / SETTING,
        "{subsets: 8, runs: 2, chunk: 8}",
        "{subsets: subsets.txt, runs: 1, chunk: 2}",
    )
    status, output = snakemake(clone, "results/lds_table.csv")
    assert status == 0, output
    assert planned(clone, "results/lds_table.csv") == set()
    edit(own, lines[3], "1 2 3")
    below = {LDS} | below_truth("lds") | DAMPINGS  # of subsets' size
    assert planned(clone) == {"results/tiny/retrain/lds/0-1.safetensors"} | below
    own.write_text("\n".join([*lines, "4 5 6  # one more"]))
    assert planned(clone) == {"results/tiny/retrain/lds/0-3.safetensors"} | below


def test_points_that_do_not_converge_are_counted_in_the_table(
    edit: Edit, clone: Path, snakemake: Run
) -> None:
    edit(clone / SETTING, "damping: 1e-1", "damping: 1e-1, solver: sgd, steps: 1")
    status, output = snakemake(clone, "results/pbrf_table.csv")
    assert status == 0, output
    table = rows(clone / "results/pbrf_table.csv")
    assert {row["value"] for row in table} == {"nan"}
    assert {(row["n_samples"], row["n_unconverged"]) for row in table} == {("0", "6")}
    assert {row["ceiling_note"] for row in table} == {"none of 6 points converged"}
    log = (clone / "logs/retrain_pbrf/tiny-0-0.log").read_text()
    assert "6 of 6 points of full run 0 did not converge" in log
    assert "do not count: 0, 10, 20, 30, 40, 50." in log


def test_two_methods_are_compared(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run
) -> None:
    edit(clone / CONFIG, "bootstrap: 20", "bootstrap: 20\ncompare: [if_explicit, grad_dot]")
    made = {"results/tiny/lds_width.csv", "results/figures/tiny_lds_width.svg"}
    status, output = snakemake(clone)
    assert status == 0, output
    for name in made:
        assert (clone / name).stat().st_size > 0
    assert planned(clone) == set()
    # of other methods, the same files are stale
    edit(clone / CONFIG, "[if_explicit, grad_dot]\n", "[grad_dot, if_explicit]\n")
    assert planned(clone) == made


def test_a_cause_remakes_the_one_table_that_shows_it(
    clone: Path, planned: Planned, snakemake: Run
) -> None:
    with (clone / "config/causes.yaml").open("a") as file:
        file.write("  tiny:\n    lds:\n      grad_dot: no correlation is above 1\n")
    table = "results/published_table.csv"
    assert planned(clone) == {table, "results/pages/published.html"}
    with (clone / "config/published.csv").open("a") as file:
        file.write("tiny_lds,tiny,lds,grad_dot,2.0,here\n")
    status, output = snakemake(clone, table)
    assert status == 0, output
    (row,) = rows(clone / table)
    assert (row["published"], row["inside_interval"]) == ("2.0", "no")
    assert row["cause"] == "no correlation is above 1"


def test_flipped_labels_are_looked_for(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run
) -> None:
    edit(clone / SETTING, "n_test: 12", "n_test: 12, label_noise: {fraction: .1}")
    edit(clone / CONFIG, "metrics: [lds, loo, pbrf]", "metrics: [auc]")
    table = "results/auc_table.csv"
    points = ("grad_dot/default", "if_explicit/damping=1", "if_explicit/damping=0.01")
    own = {f"results/tiny/self_influence/{point}.safetensors" for point in points}
    below = {f"results/tiny/metrics/auc/{m}.csv" for m in ("grad_dot", "if_explicit")} | {table}
    first = {"results/tiny/data.safetensors", "results/tiny/models/full/0.safetensors"}
    assert planned(clone, table) == first | own | below
    status, output = snakemake(clone, table)
    assert status == 0, output
    found = rows(clone / table)
    assert [row["method"] for row in found] == ["grad_dot", "if_explicit"]
    assert all(0 <= float(row["value"]) <= 1 for row in found)
    assert {(row["n_test"], row["n_samples"]) for row in found} == {("30", "3")}
    assert planned(clone, table) == set()
    # a grid of the configuration's own, whose point is not in methods.yaml
    edit(clone / CONFIG, "[grad_dot, if_explicit]", "{if_explicit: {damping: 3e-2}}")
    path = "results/tiny/self_influence/if_explicit/damping=0.03.safetensors"
    assert planned(clone, table) == {path, "results/tiny/metrics/auc/if_explicit.csv", table}
    status, output = snakemake(clone, path)
    assert status == 0, output
