"""What an edit of configuration or settings makes due, where all ran and in a clone that pulled it.

Nothing is started here: what is due is found in this process (:mod:`leaveout.workflow.due`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Planned = Callable[..., set[str]]
Below = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

DATA = {"results/tiny/data.safetensors"}
MODELS = {"results/tiny/models/full/0.safetensors"}
LDS, LOO, PBRF = (
    {f"results/tiny/retrain/{layer}/{i}-0.safetensors" for i in (0, 1)}
    for layer in ("lds", "loo", "pbrf")
)
METRICS = ("lds", "loo", "pbrf")
GRAD_DOT = {"results/tiny/scores/grad_dot/default.safetensors"}
EXPLICIT = {f"results/tiny/scores/if_explicit/damping={d}.safetensors" for d in ("1", "0.01")}
TRACIN = {"results/tiny/scores/tracin_cp/default.safetensors"}
SCORES = GRAD_DOT | EXPLICIT
DAMPINGS = {"results/tiny/damping/lds/if_explicit.csv"}
SETUP = {"results/pages/setup.html"}
SETTING, CONFIG = "config/settings/tiny.yaml", "config/config.yaml"


def truths(*metrics: str) -> set[str]:
    return {f"results/tiny/truth/{metric}.safetensors" for metric in metrics}


@pytest.fixture(params=["clone", "pulled"])
def either(request: pytest.FixtureRequest) -> Path:
    """A clone where all ran, and one that pulled every layer."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_nothing_is_due(either: Path, planned: Planned) -> None:
    assert planned(either) == set()


def test_a_new_learning_rate_spares_the_data(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    edit(either / SETTING, "learning_rate: 0.05", "learning_rate: 0.1")
    trained = MODELS | LDS | LOO | PBRF | truths(*METRICS) | SCORES | DAMPINGS
    assert planned(either) == trained | below_truth(*METRICS)


def test_a_new_learning_rate_of_one_setting_spares_the_others(
    edit: Edit, either: Path, planned: Planned
) -> None:
    shutil.copy2(either / SETTING, either / "config/settings/second.yaml")
    edit(either / CONFIG, "[tiny]", "[tiny, second]")
    made = planned(either)
    assert not any(path.startswith("results/tiny/") for path in made)
    assert {path.replace("tiny", "second") for path in DATA | MODELS | LDS | SCORES} <= made
    edit(either / "config/settings/second.yaml", "learning_rate: 0.05", "learning_rate: 0.1")
    assert planned(either) == made


def test_why_is_said(
    edit: Edit, either: Path, planned_and_said: Callable[..., tuple[set[str], str]]
) -> None:
    edit(either / SETTING, "0.05", "0.1")
    said = planned_and_said(either)[1]
    assert "not what today's configuration and code make" in said
    assert "recipe.learning_rate: 0.05 -> 0.1: results/tiny/models/full/0.safetensors" in said
    assert "follow from others" in said


def test_two_values_swapped(edit: Edit, either: Path, planned: Planned, below_truth: Below) -> None:
    # without a second run, PBRF has no replicates
    edit(either / SETTING, "{runs: 2, checkpoints: 1}", "{runs: 1, checkpoints: 2}")
    first = {"results/tiny/retrain/pbrf/0-0.safetensors"}
    scored = MODELS | SCORES | DAMPINGS
    assert planned(either) == scored | first | truths("pbrf") | below_truth(*METRICS)


def test_one_more_full_run(edit: Edit, either: Path, planned: Planned, below_truth: Below) -> None:
    edit(either / SETTING, "full: {runs: 2", "full: {runs: 3")
    scored = MODELS | SCORES | DAMPINGS  # PBRF starts from full models
    assert planned(either) == scored | PBRF | truths("pbrf") | below_truth(*METRICS)


def test_another_root_seed_spares_the_data(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    edit(either / SETTING, "seed: 0", "seed: 1")
    trained = MODELS | LDS | LOO | PBRF | truths(*METRICS) | SCORES | DAMPINGS
    assert planned(either) == trained | below_truth(*METRICS)


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
    either: Path,
    planned: Planned,
    below_truth: Below,
    old: str,
    new: str,
    chunks: tuple[str, ...],
) -> None:
    edit(either / SETTING, old, new)
    added = {f"results/tiny/retrain/lds/{name}.safetensors" for name in chunks}
    assert planned(either) == added | truths("lds") | below_truth("lds")


def test_more_loo_ids_in_a_new_chunk(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    # the first chunk holds the same six ids; the replicates are spread over the ids anew
    edit(either / SETTING, "first: 6", "first: 12")
    new = {f"results/tiny/retrain/loo/{name}.safetensors" for name in ("0-1", "1-0")}
    assert planned(either) == new | truths("loo") | below_truth("loo")


def test_another_damping_of_pbrf_spares_all_else(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    edit(either / SETTING, "damping: 1e-1", "damping: 2e-1")
    assert planned(either) == PBRF | truths("pbrf") | below_truth("pbrf")


def test_one_more_method(edit: Edit, either: Path, planned: Planned, below_truth: Below) -> None:
    edit(either / CONFIG, "if_explicit]", "if_explicit, tracin_cp]")
    assert planned(either) == TRACIN | below_truth(*METRICS, methods=("tracin_cp",))


def test_one_method_less_computes_nothing(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    edit(either / CONFIG, "[grad_dot, if_explicit]", "[grad_dot]")
    examples = {"results/figures/tiny_examples.svg"}
    assert planned(either) == below_truth(*METRICS, methods=()) | examples


def test_a_method_exchanged_for_another_scores_no_third(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    """And one more value in a grid."""
    edit(either / CONFIG, "[grad_dot, if_explicit]", "[if_explicit, tracin_cp]")
    edit(either / "config/methods.yaml", "[1, 1e-2]", "[1, 1e-2, 1e-3]")
    point = {"results/tiny/scores/if_explicit/damping=0.001.safetensors"}
    below = below_truth(*METRICS, methods=("if_explicit", "tracin_cp"))
    assert planned(either) == TRACIN | point | DAMPINGS | below


def test_one_more_grid_point(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    edit(either / "config/methods.yaml", "[1, 1e-2]", "[1, 1e-2, 1e-3]")
    point = {"results/tiny/scores/if_explicit/damping=0.001.safetensors"}
    assert planned(either) == point | DAMPINGS | below_truth(*METRICS, methods=("if_explicit",))


def test_another_number_of_draws_scores_and_trains_nothing(
    edit: Edit, either: Path, planned: Planned, below_truth: Below
) -> None:
    edit(either / CONFIG, "bootstrap: 20", "bootstrap: 19")
    assert planned(either) == below_truth(*METRICS)


def test_two_methods_to_compare_touch_nothing_else(
    edit: Edit, either: Path, planned: Planned
) -> None:
    edit(either / CONFIG, "bootstrap: 20", "bootstrap: 20\ncompare: [if_explicit, grad_dot]")
    made = {"results/tiny/lds_width.csv", "results/figures/tiny_lds_width.svg"}
    assert planned(either) == made


def test_a_published_value_remakes_tables_and_figures(
    either: Path, planned: Planned, below_truth: Below
) -> None:
    with (either / "config/published.csv").open("a") as file:
        file.write("tiny_lds,tiny,lds,grad_dot,0.10,here\n")
    measured = {f"results/{name}" for name in ("tidy.csv", "rank_table.csv", "pages/rank.html")}
    measured |= {"results/cost_table.csv", "results/pages/cost.html"}
    assert planned(either) == below_truth(*METRICS, methods=()) - measured - SETUP


def test_times_alone_change_nothing(either: Path, planned: Planned) -> None:
    for path in either.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts and ".git" not in path.parts:
            os.utime(path)
    for layer in ("models", "truth"):
        for path in (either / "results/tiny" / layer).rglob("*.safetensors"):
            os.utime(path, (4e9, 4e9))  # a clock far ahead
    os.utime(either / "config/published.csv", (2e9, 2e9))
    assert planned(either) == set()
    # not even when inputs are newer than what was made of them
    os.utime(either / "results/tiny/data.safetensors")
    assert planned(either) == set()


def test_the_device_and_the_folder_change_nothing(
    edit: Edit, either: Path, planned: Planned
) -> None:
    edit(either / CONFIG, "bootstrap: 20", "bootstrap: 20\ndevice: cuda")
    assert planned(either) == set()
    moved = either.rename(either.with_name("moved"))
    assert planned(moved) == set()


@pytest.mark.parametrize(
    ("lost", "due"),
    [
        ("results/loo_table.csv", {"results/loo_table.csv"}),
        ("results/tiny/metrics/loo/grad_dot.csv", {"results/loo_table.csv"}),
        ("results/tiny/truth/loo.safetensors", {"results/tiny/metrics/loo/grad_dot.csv"}),
    ],
)
def test_a_lost_file_is_made_again_where_it_is_needed(
    either: Path, planned: Planned, lost: str, due: set[str]
) -> None:
    (either / lost).unlink()
    # what was made from it stands, for it will be the same
    assert planned(either) == due & {lost}
    # until something needs it
    for path in due:
        (either / path).unlink(missing_ok=True)
    assert planned(either, *due) == due | {lost}


def test_values_for_a_trial_touch_nothing(edit: Edit, either: Path, planned: Planned) -> None:
    """A configuration with a name makes its own metrics and tables, of scores that are there."""
    edit(either / CONFIG, "bootstrap: 20", "bootstrap: 30\nname: wide")
    made = planned(either)
    assert made
    assert {path for path in made if not path.startswith("results/wide/")} == set()
    assert not (SCORES | MODELS) & made


def test_a_name_alone_takes_what_was_measured(edit: Edit, either: Path, planned: Planned) -> None:
    values = yaml.safe_load((either / CONFIG).read_text())
    # as everywhere a name changes tables, and measures of the usual draws lie in the common folder
    (either / CONFIG).write_text(yaml.safe_dump({**values, "bootstrap": 1000}))
    common = {path for path in planned(either) if "/metrics/" in path or "/damping/" in path}
    (either / CONFIG).write_text(yaml.safe_dump({**values, "bootstrap": 1000, "name": "mine"}))
    made = planned(either)
    assert {path for path in made if not path.startswith("results/mine/")} == common
    assert common


def test_a_table_can_be_asked_for_alone(fresh: Path, planned: Planned) -> None:
    assert planned(fresh, "results/lds_table.csv") == (
        DATA
        | MODELS
        | LDS
        | truths("lds")
        | SCORES
        | DAMPINGS
        | {f"results/tiny/metrics/lds/{m}.csv" for m in ("grad_dot", "if_explicit")}
        | {"results/lds_table.csv"}
    )
