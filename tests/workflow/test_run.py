"""A whole run, and what a second one finds to do after a change."""

from __future__ import annotations

import ast
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout import artefacts

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str]]
Planned = Callable[..., set[str]]
Below = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]


def scores(*methods: str) -> set[str]:
    points = {
        "grad_dot": ("default",),
        "if_explicit": ("damping=1", "damping=0.01"),
        "tracin_cp": ("default",),
    }
    return {f"results/tiny/scores/{m}/{p}.safetensors" for m in methods for p in points[m]}


def trained(*layers: str) -> set[str]:
    two = ("0-0", "1-0")
    chunks = {f"retrain/{layer}": two for layer in ("lds", "loo", "pbrf")} | {"models/full": ("0",)}
    return {f"results/tiny/{a}/{name}.safetensors" for a in layers for name in chunks[a]}


def truths(*metrics: str) -> set[str]:
    return {f"results/tiny/truth/{metric}.safetensors" for metric in metrics}


SETUP = {"results/pages/setup.html"}
COST = {"results/cost_table.csv", "results/pages/cost.html"} | SETUP
DAMPINGS = {"results/tiny/damping/lds/if_explicit.csv"}
METRICS = ("lds", "loo", "pbrf")


def test_a_run_makes_the_tables_and_the_figures(finished: Path, final: set[str]) -> None:
    for name in final:
        assert (finished / name).stat().st_size > 0, name
    for metric in METRICS:
        with (finished / "results" / f"{metric}_table.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["setting"], row["method"]) for row in rows] == [
            ("tiny", "grad_dot"),
            ("tiny", "if_explicit"),
        ]
        assert all(-1 <= float(row["value"]) <= 1 for row in rows)
    with (finished / "results" / "cost_table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    with (finished / "results" / "tidy.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * len(METRICS) * 6
    with (finished / "results" / "rank_table.csv").open() as file:
        ranked = list(csv.DictReader(file))
    assert [row["metric"] for row in ranked] == [m for m in METRICS for _ in range(2)]
    assert [row["rank"] for row in ranked] == ["1", "2"] * len(METRICS)


def test_every_job_leaves_a_log_and_the_long_ones_a_benchmark(finished: Path) -> None:
    assert {p.name for p in (finished / "logs" / "retrain_lds").iterdir()} == {
        "tiny-0-0.log",
        "tiny-1-0.log",
    }
    counts = {"train_models": 1, "retrain_lds": 2, "retrain_loo": 2, "retrain_pbrf": 2}
    for rule, count in counts.items():
        assert len(list((finished / "benchmarks" / rule).glob("*.tsv"))) == count
    assert not list((finished / "results").rglob("*.tmp.*"))


def test_a_second_run_has_nothing_to_do(clone: Path, snakemake: Run) -> None:
    status, output = snakemake(clone)
    assert status == 0, output
    assert "Nothing to be done" in output


def test_a_table_can_be_asked_for_alone(fresh: Path, planned: Planned) -> None:
    made = planned(fresh, "results/lds_table.csv")
    assert made == (
        {"results/tiny/data.safetensors", "results/lds_table.csv"}
        | trained("models/full", "retrain/lds")
        | truths("lds")
        | scores("grad_dot", "if_explicit")
        | {f"results/tiny/metrics/lds/{m}.csv" for m in ("grad_dot", "if_explicit")}
        | DAMPINGS
    )


def test_the_workflow_can_be_run_from_another_folder(
    fresh: Path, tmp_path: Path, snakemake: Run
) -> None:
    (tmp_path / "elsewhere").mkdir()
    status, output = snakemake(
        fresh, "--directory", str(tmp_path / "elsewhere"), "results/tiny/data.safetensors",
        "--configfile", "config/config.yaml",
    )  # fmt: skip
    assert status == 0, output
    assert (tmp_path / "elsewhere" / "results" / "tiny" / "data.safetensors").exists()
    assert not (fresh / "results").exists()


@pytest.mark.parametrize("profile", ["slurm", "gpu"])
def test_a_profile_plans_the_same_jobs(profile: str, fresh: Path, planned: Planned) -> None:
    assert planned(fresh, "--profile", profile) == planned(fresh)


def test_the_workflow_lints_and_is_formatted(fresh: Path, snakemake: Run) -> None:
    status, output = snakemake(fresh, "--lint")
    assert status == 0, output
    command = [sys.executable, "-m", "snakefmt", "--check", "workflow"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_parsing_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; import yaml; from leaveout.workflow import Plan\n"
        "plan = Plan.load(yaml.safe_load(Path('config/config.yaml').read_text()), 'config')\n"
        "from leaveout.plan import train_key\n"
        "for layer, name in (('full', '0'), ('lds', '0-0')):\n"
        "    train_key(plan.settings['mnist_lr'], layer, name)\n"
        "print([m for m in sys.modules if '.' not in m])"
    )
    command = [sys.executable, "-c", code]
    loaded = ast.literal_eval(subprocess.check_output(command, cwd=ROOT, text=True))
    heavy = {"torch", "numpy", "scipy", "pandas", "matplotlib", "sklearn", "huggingface_hub"}
    assert "leaveout" in loaded
    assert not heavy & set(loaded)


def test_a_new_learning_rate_spares_the_data(
    edit: Edit, clone: Path, planned: Planned, below_truth: Below
) -> None:
    edit(clone / "config/settings/tiny.yaml", "learning_rate: 0.05", "learning_rate: 0.1")
    assert planned(clone) == (
        trained("models/full", "retrain/lds", "retrain/loo", "retrain/pbrf")
        | truths(*METRICS)
        | scores("grad_dot", "if_explicit")
        | COST
        | DAMPINGS
        | below_truth(*METRICS)
    )


def test_more_subsets_train_the_new_chunks_only(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run, below_truth: Below
) -> None:
    old = {p: p.read_bytes() for p in sorted((clone / "results/tiny/retrain/lds").iterdir())}
    edit(clone / "config/settings/tiny.yaml", "subsets: 8", "subsets: 12")
    new = {f"results/tiny/retrain/lds/{run}-1.safetensors" for run in (0, 1)}
    assert planned(clone) == new | truths("lds") | SETUP | below_truth("lds")

    status, output = snakemake(clone, *truths("lds"))
    assert status == 0, output
    assert all((clone / path).exists() for path in new)
    assert {p: p.read_bytes() for p in old} == old


def test_one_more_run_leaves_the_values_of_the_others(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run, below_truth: Below
) -> None:
    before = artefacts.read(clone / "results/tiny/truth/lds.safetensors").tensors
    edit(clone / "config/settings/tiny.yaml", "runs: 2, chunk: 8", "runs: 3, chunk: 8")
    new = "results/tiny/retrain/lds/2-0.safetensors"
    assert planned(clone) == {new} | truths("lds") | SETUP | below_truth("lds")

    status, output = snakemake(clone, *truths("lds"))
    assert status == 0, output
    after = artefacts.read(clone / "results/tiny/truth/lds.safetensors").tensors
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
        clone / "config/settings/tiny.yaml",
        "{subsets: 8, runs: 2, chunk: 8}",
        "{subsets: subsets.txt, runs: 1, chunk: 2}",
    )
    status, output = snakemake(clone, "results/lds_table.csv")
    assert status == 0, output
    assert planned(clone, "results/lds_table.csv") == set()
    edit(own, lines[3], "1 2 3")
    below = truths("lds") | SETUP | below_truth("lds") | DAMPINGS  # of subsets' size
    assert planned(clone) == {"results/tiny/retrain/lds/0-1.safetensors"} | below
    own.write_text("\n".join([*lines, "4 5 6  # one more"]))
    assert planned(clone) == {"results/tiny/retrain/lds/0-3.safetensors"} | below


def test_more_loo_ids_in_a_new_chunk(
    edit: Edit, clone: Path, planned: Planned, below_truth: Below
) -> None:
    # the first chunk holds the same six ids; the replicates are spread over the ids anew
    edit(clone / "config/settings/tiny.yaml", "first: 6", "first: 12")
    new = {f"results/tiny/retrain/loo/{name}.safetensors" for name in ("0-1", "1-0")}
    assert planned(clone) == new | truths("loo") | SETUP | below_truth("loo")


def test_one_more_method(edit: Edit, clone: Path, planned: Planned, below_truth: Below) -> None:
    edit(clone / "config/config.yaml", "if_explicit]", "if_explicit, tracin_cp]")
    assert planned(clone) == (
        scores("tracin_cp") | COST | below_truth(*METRICS, methods=("tracin_cp",))
    )


def test_another_damping_of_pbrf_spares_all_else(
    edit: Edit, clone: Path, planned: Planned, below_truth: Below
) -> None:
    edit(clone / "config/settings/tiny.yaml", "damping: 1e-1", "damping: 2e-1")
    assert planned(clone) == trained("retrain/pbrf") | truths("pbrf") | SETUP | below_truth("pbrf")


def test_code_of_the_solver_reruns_pbrf_alone(
    clone: Path, planned: Planned, below_truth: Below
) -> None:
    with (clone / "src/leaveout/retraining/proximal.py").open("a") as file:
        file.write("\nSOMETHING = 1\n")
    assert planned(clone) == trained("retrain/pbrf") | truths("pbrf") | SETUP | below_truth("pbrf")


def test_points_that_do_not_converge_are_counted_in_the_table(
    edit: Edit, clone: Path, snakemake: Run
) -> None:
    edit(
        clone / "config/settings/tiny.yaml", "damping: 1e-1", "damping: 1e-1, solver: sgd, steps: 1"
    )
    status, output = snakemake(clone)
    assert status == 0, output
    with (clone / "results/pbrf_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["value"] for row in rows} == {"nan"}
    assert {(row["n_samples"], row["n_unconverged"]) for row in rows} == {("0", "6")}
    assert {row["ceiling_note"] for row in rows} == {"none of 6 points converged"}
    log = (clone / "logs/retrain_pbrf/tiny-0-0.log").read_text()
    assert "6 of 6 points of full run 0 did not converge" in log
    assert "do not count: 0, 10, 20, 30, 40, 50." in log


def test_one_more_grid_point(edit: Edit, clone: Path, planned: Planned, below_truth: Below) -> None:
    edit(clone / "config/methods.yaml", "[1, 1e-2]", "[1, 1e-2, 1e-3]")
    assert planned(clone) == (
        {"results/tiny/scores/if_explicit/damping=0.001.safetensors"}
        | COST
        | DAMPINGS
        | below_truth(*METRICS, methods=("if_explicit",))
    )


def test_two_methods_to_compare_touch_nothing_else(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run
) -> None:
    config = clone / "config/config.yaml"
    edit(config, "bootstrap: 20", "bootstrap: 20\ncompare: [if_explicit, grad_dot]")
    made = {"results/tiny/metrics/lds_width.csv", "results/figures/tiny_lds_width.svg"}
    assert planned(clone) == made
    status, output = snakemake(clone)
    assert status == 0, output
    for name in made:
        assert (clone / name).stat().st_size > 0
    assert planned(clone) == set()
    # on other methods, the same files are stale
    edit(config, "[if_explicit, grad_dot]", "[grad_dot, if_explicit]")
    assert planned(clone) == made


def test_one_method_less_remakes_tables_and_figures(
    edit: Edit, clone: Path, planned: Planned, below_truth: Below
) -> None:
    edit(clone / "config/config.yaml", "[grad_dot, if_explicit]", "[grad_dot]")
    examples = {"results/figures/tiny_examples.svg"}
    assert planned(clone) == COST | below_truth(*METRICS, methods=()) | examples


def test_more_bootstrap_draws_touch_no_model(
    edit: Edit, clone: Path, planned: Planned, below_truth: Below
) -> None:
    edit(clone / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    assert planned(clone) == below_truth(*METRICS)


def test_a_published_value_remakes_tables_and_figures(
    clone: Path, planned: Planned, below_truth: Below
) -> None:
    with (clone / "config/published.csv").open("a") as file:
        file.write("tiny_lds,tiny,lds,grad_dot,0.10,here\n")
    measured = COST | {"results/tidy.csv", "results/rank_table.csv", "results/pages/rank.html"}
    assert planned(clone) == below_truth(*METRICS, methods=()) - measured


def test_a_cause_remakes_the_one_table_that_shows_it(
    clone: Path, planned: Planned, snakemake: Run
) -> None:
    with (clone / "config/published.csv").open("a") as file:
        file.write("tiny_lds,tiny,lds,grad_dot,2.0,here\n")
    assert snakemake(clone)[0] == 0
    with (clone / "config/causes.yaml").open("a") as file:
        file.write("  tiny:\n    lds:\n      grad_dot: no correlation is above 1\n")
    table = "results/published_table.csv"
    assert planned(clone) == {table, "results/pages/published.html"}
    assert snakemake(clone)[0] == 0
    with (clone / table).open() as file:
        (row,) = csv.DictReader(file)
    assert (row["published"], row["inside_interval"]) == ("2.0", "no")
    assert row["cause"] == "no correlation is above 1"


def test_words_in_code_change_nothing(clone: Path, planned: Planned) -> None:
    for path in (clone / "src" / "leaveout").rglob("*.py"):
        text = path.read_text()
        tree = ast.parse(text)
        if ast.get_docstring(tree):
            text = text.replace('"""', '"""New words. ', 1)
        path.write_text(text + "\n\n# a comment\n")
    assert planned(clone) == set()


def test_code_of_one_method_reruns_that_method(
    clone: Path, planned: Planned, below_truth: Below
) -> None:
    with (clone / "src/leaveout/attribution/if_explicit.py").open("a") as file:
        file.write("\nSOMETHING = 1\n")
    assert planned(clone) == (
        scores("if_explicit") | COST | DAMPINGS | below_truth(*METRICS, methods=("if_explicit",))
    )


def test_code_of_the_engine_reruns_all_training(
    clone: Path, planned: Planned, below_truth: Below
) -> None:
    with (clone / "src/leaveout/training/stack.py").open("a") as file:
        file.write("\nSOMETHING = 1\n")
    made = planned(clone)
    assert "results/tiny/data.safetensors" not in made
    layers = ("models/full", "retrain/lds", "retrain/loo", "retrain/pbrf")
    assert trained(*layers) <= made


def test_clocks_change_nothing(clone: Path, planned: Planned) -> None:
    for path in clone.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert planned(clone) == set()
    # not even when inputs are newer than what was made of them
    os.utime(clone / "results/tiny/data.safetensors", (2e9, 2e9))
    os.utime(clone / "config/published.csv", (2e9, 2e9))
    assert planned(clone) == set()


def test_the_device_and_the_folder_change_nothing(clone: Path, planned: Planned) -> None:
    assert planned(clone, "--config", "device=cuda") == set()
    moved = clone.rename(clone.with_name("moved"))
    assert planned(moved) == set()


def test_a_lost_file_is_made_again_with_what_needs_it(clone: Path, planned: Planned) -> None:
    (clone / "results/loo_table.csv").unlink()
    assert planned(clone) == {
        "results/loo_table.csv",
        "results/pages/loo.html",
        "results/pages/start.html",
        "results/figures/loo.svg",
        "results/figures/quality_cost_loo.svg",
    }


def test_an_artefact_leads_back_to_its_inputs(finished: Path) -> None:
    from leaveout import artefacts

    score = artefacts.read(finished / "results/tiny/scores/grad_dot/default.safetensors")
    for name, made_from in score.meta["inputs"].items():
        assert artefacts.read(finished / name).sha256 == made_from["sha256"]
    assert json.loads(score.meta["key"])["method"] == "grad_dot"


def test_flipped_labels_are_looked_for(
    edit: Edit, clone: Path, planned: Planned, snakemake: Run
) -> None:
    edit(
        clone / "config/settings/tiny.yaml", "n_test: 12", "n_test: 12, label_noise: {fraction: .1}"
    )
    edit(clone / "config/config.yaml", "metrics: [lds, loo, pbrf]", "metrics: [auc]")
    table = "results/auc_table.csv"
    own = {
        path.replace("/scores/", "/self_influence/") for path in scores("grad_dot", "if_explicit")
    }
    below = {f"results/tiny/metrics/auc/{m}.csv" for m in ("grad_dot", "if_explicit")} | {table}
    first = {"results/tiny/data.safetensors"} | trained("models/full")
    assert planned(clone, table) == first | own | below
    status, output = snakemake(clone, table)
    assert status == 0, output
    with (clone / table).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["grad_dot", "if_explicit"]
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert {(row["n_test"], row["n_samples"]) for row in rows} == {("30", "3")}
    assert planned(clone, table) == set()
    # a grid of the configuration's own, whose point is not in methods.yaml
    edit(clone / "config/config.yaml", "[grad_dot, if_explicit]", "{if_explicit: {damping: 3e-2}}")
    path = "results/tiny/self_influence/if_explicit/damping=0.03.safetensors"
    assert planned(clone, table) == {path, "results/tiny/metrics/auc/if_explicit.csv", table}
    status, output = snakemake(clone, path)
    assert status == 0, output


@pytest.mark.parametrize("target", ["models", "truths", "scores", "tables"])
def test_each_layer_has_a_target(clone: Path, snakemake: Run, target: str) -> None:
    status, output = snakemake(clone, "--dry-run", target)
    assert status == 0, output
