"""What a configuration plans: which jobs there are, and what each reads and makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from leaveout.config import ConfigError, Metric, load_setting, load_yaml
from leaveout.config.metric_names import PANELS
from leaveout.retraining.items import chunks
from leaveout.workflow.plan import Plan, named
from leaveout.workflow.step import Job
from leaveout.workflow.steps import STEPS, load_plan

CONFIG = Path(__file__).parents[2] / "config"
PUBLISHED = f"{CONFIG}/published.csv"
CAUSES = f"{CONFIG}/causes.yaml"


@pytest.fixture
def panel() -> Plan:
    """The digits panel, its files where the default configuration has them."""
    return load_plan({**load_yaml(CONFIG / "digits.yaml"), "name": None, "bootstrap": 1000,
                      "methods": METHODS}, CONFIG)  # fmt: skip


METHODS = ["random", "grad_dot", "tracin_cp", "if_explicit", "if_cg", "if_ekfac", "trak_1",
           "rps_l2", "magic"]  # fmt: skip


def jobs(plan: Plan) -> dict[str, Job]:
    """Return the job that makes each file."""
    return {path: job for job in plan.jobs for path in job.makes}


def test_it_loads_neither_torch_nor_snakemake() -> None:
    code = (
        "import sys; from leaveout.workflow.steps import load_plan;"
        "p = load_plan({'settings': ['mnist_lr'], 'metrics': ['lds', 'loo', 'pbrf']}, sys.argv[1]);"
        "[(job.key, job.line) for job in p.jobs];"
        "print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(CONFIG)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "leaveout" in loaded
    assert not loaded & {"torch", "snakemake", "scipy", "pandas", "sklearn", "matplotlib", "numpy"}


def test_files_of_models(panel: Plan) -> None:
    setting = panel.settings["digits_lr"]
    assert panel.files("train", setting="digits_lr", kind="half") == [
        f"results/digits_lr/models/half/{i}.safetensors" for i in chunks(setting, "half")
    ]
    assert len(panel.files("train")) == sum(
        len(chunks(s, kind)) for s in panel.settings.values() for kind in ("full", "half")
    )
    found = panel.files("retrain_loo", setting="digits_lr")
    assert len(found) == len(set(found)) == len(chunks(setting, "loo"))
    assert found[0] == "results/digits_lr/retrain/loo/0-0.safetensors"
    truth = jobs(panel)["results/digits_lr/truth/loo.safetensors"]
    assert truth.reads == tuple(found)


def test_a_chunk_of_pbrf_reads_the_one_file_that_holds_its_run(panel: Plan) -> None:
    setting = panel.settings["digits_lr"]
    split = setting.model_copy(update={"full": setting.full.model_copy(update={"chunk": 1})})
    panel.settings["digits_lr"] = split
    files = panel.files("train", setting="digits_lr", kind="full")
    assert len(files) == 10
    made = jobs(panel)
    for name, part in chunks(split, "pbrf").items():
        job = made[f"results/digits_lr/retrain/pbrf/{name}.safetensors"]
        assert job.reads == ("results/digits_lr/data.safetensors", files[part[0][1]])


def test_half_models_only_for_methods_that_need_them(panel: Plan) -> None:
    names = {"setting": "digits_lr", "method": "grad_dot", "params": "default"}
    job = panel.job("attribute", names)
    assert job.inputs["half"] == ()
    assert [*job.inputs["full"]] == panel.files("train", setting="digits_lr", kind="full")
    grids = panel.grids["digits_lr"]
    grids["grad_dot"] = grids["grad_dot"].model_copy(update={"needs": ("full", "half")})
    job = panel.job("attribute", names)
    assert [*job.inputs["half"]] == panel.files("train", setting="digits_lr", kind="half")


def test_files_of_scores_and_metrics(panel: Plan) -> None:
    found = panel.files("attribute", setting="digits_lr", method="if_explicit")
    damping = [point["damping"] for point in panel.methods["if_explicit"].grid]
    assert found == [
        f"results/digits_lr/scores/if_explicit/damping={value:g}.safetensors" for value in damping
    ]
    points = sum(len(m.grid) for m in panel.methods.values())
    scores = panel.files("attribute")
    assert len(set(scores)) == len(scores) == points * len(panel.settings)
    costs = panel.files("attribute", "cost")
    assert costs == [path.replace(".safetensors", ".cost.json") for path in scores]
    csvs = panel.files("evaluate", metric="lds")
    assert len(set(csvs)) == len(panel.methods) * len(panel.settings)
    assert len(panel.files("merge_truth")) == 3 * len(panel.settings)


def test_a_job_has_what_the_configuration_says(panel: Plan) -> None:
    names = {"setting": "digits_mlp", "method": "if_cg", "params": "damping=0.01+iterations=10"}
    job = panel.job("attribute", names)
    assert job.setting is panel.settings["digits_mlp"]
    assert job.method is panel.methods["if_cg"]
    assert job.params == json.loads(job.key)["params"] == {"damping": 0.01, "iterations": 10}
    (evaluate,) = panel.names("evaluate", setting="digits_mlp", metric="lds", method="if_cg")
    assert json.loads(panel.job("evaluate", evaluate).key)["bootstrap"] == 1000
    assert panel.job("evaluate", evaluate).device == "cpu"


def test_tables_of_all_metrics_read_all_metrics_and_no_score(panel: Plan) -> None:
    made = jobs(panel)
    csvs = [
        f"results/{s}/metrics/{metric}/{m}.csv"
        for metric in panel.metrics
        for s in panel.settings
        for m in panel.methods
    ]
    draws = [path.replace(".csv", ".draws.safetensors") for path in csvs]
    costs = [path.replace(".csv", ".costs.json") for path in csvs]
    for files in zip(csvs, draws, costs, strict=True):
        assert made[files[0]].makes == files
    dampings = panel.files("damping")
    assert dampings == panel.files("damping", metric="lds") != []
    assert {*made["results/tidy.csv"].reads} == {*csvs, *draws, *dampings}
    assert made["results/rank_table.csv"].reads == (*csvs, *draws)
    assert made["results/published_table.csv"].reads == (*csvs, PUBLISHED, CAUSES)
    assert made["results/cost_table.csv"].reads == (*costs, *csvs)
    lds = made["results/lds_table.csv"]
    assert {*panel.files("evaluate", "draws", metric="lds")} < {*lds.reads}
    assert {*dampings} < {*lds.reads}
    tables = ("tidy", "rank_table", "published_table", "cost_table")
    assert {f"results/{name}.csv" for name in tables} < {*panel.shown("table")} < {*panel.shown()}
    assert len({made[f"results/{name}.csv"].key for name in tables}) == 4


@pytest.mark.parametrize("file", ["config", "all", "digits", "mnist60k", "mnist_mlp_paired"])
def test_jobs_come_after_what_they_read(file: str) -> None:
    plan = load_plan(load_yaml(CONFIG / f"{file}.yaml"), CONFIG)
    outputs = [path for job in plan.jobs for path in job.makes]
    assert len(set(outputs)) == len(outputs)
    made = {PUBLISHED, CAUSES}
    for job in plan.jobs:
        assert {*job.reads} <= made, job.line
        made |= {*job.makes}
    assert {*plan.shown()} <= made


def test_every_step_is_planned_by_some_configuration_that_ships() -> None:
    files = [path for path in CONFIG.glob("*.yaml") if path.name not in NO_CONFIGURATION]
    plans = [load_plan(load_yaml(path), CONFIG) for path in files]
    assert {job.step.name for plan in plans for job in plan.jobs} == {*STEPS}


def test_two_methods_are_compared_where_the_configuration_says_so(panel: Plan) -> None:
    assert panel.files("lds_width") == panel.files("width_figure") == []
    values = {"settings": ["digits_lr", "digits_mlp"], "compare": ["if_explicit", "grad_dot"]}
    both = load_plan(values, CONFIG)
    tables = [f"results/{s}/lds_width.csv" for s in both.settings]
    assert both.files("lds_width") == tables
    figures = [f"results/figures/{s}_lds_width.svg" for s in both.settings]
    assert both.files("width_figure") == figures
    assert {*tables, *figures} <= {*both.shown()}
    scores = [
        *both.files("attribute", setting="digits_lr", method="if_explicit"),
        *both.files("attribute", setting="digits_lr", method="grad_dot"),
    ]
    table = jobs(both)[tables[0]]
    assert table.reads == ("results/digits_lr/truth/lds.safetensors", *scores)
    turned = load_plan(values | {"compare": ["grad_dot", "if_explicit"]}, CONFIG)
    assert jobs(turned)[tables[0]].key != table.key
    assert load_plan(values | {"metrics": ["loo"]}, CONFIG).files("lds_width") == []


def test_dampings_are_chosen_for_the_methods_that_have_one(panel: Plan) -> None:
    made = jobs(panel)
    methods = panel.damped("digits_lr", "lds")
    assert {"if_explicit", "if_cg"} <= {*methods}
    assert "grad_dot" not in methods
    chosen = panel.files("damping")
    assert chosen == [f"results/{s}/damping/lds/{m}.csv" for s in panel.settings for m in methods]
    # no ground truth, and no retrained model
    assert made["results/digits_lr/damping/lds/if_explicit.csv"].reads == (
        "results/digits_lr/data.safetensors",
        *panel.files("train", setting="digits_lr", kind="full"),
        *panel.files("attribute", setting="digits_lr", method="if_explicit"),
    )
    assert {*chosen} <= {*made["results/lds_table.csv"].reads}
    # what the others ask for is known beforehand
    assert panel.files("damping_figure") == ["results/figures/damping_lds.svg"]
    assert {*panel.files("damping_figure")} <= {*panel.shown()}
    csvs = [f"results/{s}/metrics/lds/{m}.csv" for s in panel.settings for m in methods]
    assert {*made["results/figures/damping_lds.svg"].reads} == {*csvs, *chosen}
    for metric in ("loo", "pbrf"):
        assert panel.files("damping", metric=metric) == []


def test_samples_are_pictured_by_a_method_of_each_kind_or_those_named(panel: Plan) -> None:
    assert panel.pictured == ["magic", "if_cg", "if_ekfac", "trak_1", "grad_dot"]
    assert panel.files("examples_figure") == [
        f"results/figures/{s}_examples.svg" for s in panel.settings
    ]
    assert panel.files("self_influence_figure") == []  # no label is flipped
    scores = [
        path
        for method in panel.pictured
        for path in panel.files("attribute", setting="digits_lr", method=method)
    ]
    assert jobs(panel)["results/figures/digits_lr_examples.svg"].reads == (
        "results/digits_lr/data.safetensors",
        "results/digits_lr/truth/loo.safetensors",
        *(f"results/digits_lr/metrics/lds/{method}.csv" for method in panel.pictured),
        *scores,
    )

    values = {"settings": ["digits_lr"], "methods": ["random", "grad_dot", "if_cg"]}
    chosen = load_plan(values | {"show": ["random", "magic", "if_cg"]}, CONFIG)
    assert chosen.pictured == ["random", "if_cg"]
    assert load_plan(values | {"show": []}, CONFIG).files("examples_figure") == []
    alone = load_plan(values | {"metrics": ["pbrf"]}, CONFIG)
    read = jobs(alone)["results/figures/digits_lr_examples.svg"].inputs
    assert read["truth"] == ("results/digits_lr/truth/pbrf.safetensors",)
    assert read["csvs"][0] == "results/digits_lr/metrics/pbrf/if_cg.csv"
    with pytest.raises(ConfigError, match="config: show: unknown method 'grad_dott'"):
        load_plan(values | {"show": ["grad_dott"]}, CONFIG)


def test_the_most_self_influential_are_pictured_where_labels_were_flipped() -> None:
    values = {"settings": ["mnist_lr", "mnist_lr_noise10"], "methods": ["grad_dot", "magic"]}
    alone = load_plan(values | {"metrics": ["auc"]}, CONFIG)
    assert alone.files("examples_figure") == []
    (picture,) = alone.files("self_influence_figure")
    assert picture == "results/figures/mnist_lr_noise10_self_influence.svg"
    folder = "results/mnist_lr_noise10"
    scores = [
        path
        for method in ("magic", "grad_dot")
        for path in alone.files("self_influence", setting="mnist_lr_noise10", method=method)
    ]
    assert "/self_influence/magic/" in scores[0]
    assert jobs(alone)[picture].reads == (
        f"{folder}/data.safetensors",
        *(f"{folder}/metrics/auc/{method}.csv" for method in ("magic", "grad_dot")),
        *scores,
    )
    both = load_plan(values | {"metrics": ["lds", "auc"]}, CONFIG)
    assert len(both.files("examples_figure")) == 2
    assert both.files("self_influence_figure") == [picture]


def test_grids_are_drawn_where_there_is_a_choice(panel: Plan) -> None:
    names = [f"results/figures/{m}_grids.svg" for m in panel.metrics]
    assert panel.files("grid_figure") == names
    made = jobs(panel)
    assert made[names[0]].reads == tuple(panel.files("evaluate", metric="lds"))
    quality = panel.files("quality_figure")
    assert len(quality) == 3
    for path in quality:
        metric = path.removesuffix(".svg").rpartition("_")[2]
        assert made[path].reads == (f"results/{metric}_table.csv", "results/cost_table.csv")
    none = load_plan({"settings": ["digits_lr"], "methods": ["grad_dot", "random"]}, CONFIG)
    assert none.files("grid_figure") == []
    # flipped labels have no grid where nobody has a choice about them
    values = {"settings": ["mnist_lr", "mnist_lr_noise10"], "metrics": ["lds", "auc"],
              "methods": {"if_cg": {"damping": 1e-2, "iterations": 10}},
              "grids": {"mnist_lr": {"if_cg": {"damping": [1, 0.1], "iterations": 9}}}}  # fmt: skip
    assert load_plan(values, CONFIG).files("grid_figure") == ["results/figures/lds_grids.svg"]


def test_a_setting_can_have_metrics_of_its_own() -> None:
    values = {
        "settings": {
            "digits_lr": ["lds", "brittleness"],
            "mnist_lr": None,
            "mnist_lr_noise10": ["auc"],
        },
        "methods": ["grad_dot", "if_cg", "if_explicit"],
        "metrics": ["loo"],
        "compare": ["if_cg", "grad_dot"],
        "subgroups": True,
    }
    found = load_plan(values, CONFIG)
    assert found.metrics == ("lds", "loo", "auc")
    assert [found.metrics_of(s) for s in found.settings] == [["lds"], ["loo"], ["auc"]]
    scores, own = (
        [name for name in found.settings if found.files(step, setting=name)]
        for step in ("attribute", "self_influence")
    )
    assert (scores, own) == (["digits_lr", "mnist_lr"], ["mnist_lr_noise10"])
    truths = found.files("merge_truth")
    assert [Path(path).parts[1] for path in truths] == ["digits_lr", "mnist_lr"]
    made = jobs(found).keys()
    assert {*found.shown()} <= made
    only = {
        "damping/lds/if_cg.csv",
        "lds_width.csv",
        "retrain/brittleness/if_cg.safetensors",
    }
    for name in found.settings:
        has = {path for path in only if f"results/{name}/{path}" in made}
        assert has == (only if name == "digits_lr" else set())
    assert {path for path in made if "/subgroups/" in path} == {
        f"results/subgroups/{p}.csv" for p in ("digits_lr/lds", "mnist_lr/loo")
    }


def test_removals_are_retrained_where_the_setting_says_how(panel: Plan) -> None:
    assert "brittleness" not in panel.metrics  # no panel
    assert [panel.removing(name) for name in panel.settings] == [["random", "if_explicit"], [], []]
    made = jobs(panel)
    folder = "results/digits_lr"
    full = panel.files("train", setting="digits_lr", kind="full")
    said = f"{folder}/predictions.safetensors"
    assert made[said].reads == (f"{folder}/data.safetensors", *full)
    scores = panel.files("attribute", setting="digits_lr", method="if_explicit")
    assert made[f"{folder}/retrain/brittleness/if_explicit.safetensors"].reads == (
        f"{folder}/data.safetensors", said, *scores, f"{folder}/metrics/lds/if_explicit.csv",
    )  # fmt: skip
    random = made[f"{folder}/retrain/brittleness/random.safetensors"]
    assert random.inputs["chosen_by"] == ()  # nothing to choose
    table = made["results/brittleness_table.csv"]
    assert table.reads == tuple(panel.files("evaluate_brittleness"))
    assert {"results/brittleness_table.csv", "results/figures/brittleness.svg"} <= {*panel.shown()}
    values = {"settings": ["digits_lr"], "methods": ["if_explicit"], "metrics": ["brittleness"]}
    alone = load_plan(values, CONFIG)
    assert alone.removing("digits_lr") == ["if_explicit"]  # by default all
    (job,) = (job for job in alone.jobs if job.step.name == "retrain_brittleness")
    assert job.inputs["chosen_by"] == ()
    assert alone.files("merge_truth") == []
    assert [*job.inputs["scores"]] == alone.files("attribute")
    assert {*alone.shown()} <= jobs(alone).keys()


def test_variants_share_a_ground_truth_and_have_panels_of_their_own() -> None:
    values = {"settings": ["digits_lr"], "methods": ["grad_dot"]}
    found = load_plan(values | {"metrics": ["lds_kendall", "loo_topk", "lds"], "top_k": 5}, CONFIG)
    made = jobs(found)
    assert found.files("merge_truth") == [
        f"results/digits_lr/truth/{truth}.safetensors" for truth in ("lds", "loo")
    ]
    (path,) = found.files("evaluate", metric="loo_topk")
    assert made[path].inputs["truth"] == ("results/digits_lr/truth/loo.safetensors",)
    assert json.loads(made[path].key)["top_k"] == 5
    (lds,) = found.files("evaluate", metric="lds")
    assert "top_k" not in json.loads(made[lds].key)
    place = found.folders["place"]
    assert f"{place}/lds_kendall_table.csv" in found.shown()
    assert {*found.shown()} <= made.keys()


def test_every_panel_has_a_name_in_the_configuration_and_in_figures() -> None:
    assert {*PANELS, "brittleness"} == {*get_args(Metric)}
    source = (Path(__file__).parents[2] / "src/leaveout/reporting/figures.py").read_text()
    for metric in PANELS:
        assert source.count(f'    "{metric}": ') >= 2, metric


def test_subgroups_read_all_methods_of_a_setting(panel: Plan) -> None:
    made = jobs(panel)
    read = made["results/subgroups/digits_mlp/loo.csv"].inputs
    assert [*read["csvs"]] == panel.files("evaluate", setting="digits_mlp", metric="loo")
    assert [*read["scores"]] == panel.files("attribute", setting="digits_mlp")
    assert made["results/subgroups_table.csv"].reads == tuple(panel.files("subgroups"))
    none = load_plan({"settings": ["digits_lr"]}, CONFIG)
    steps = ("subgroups", "subgroups_table", "brittleness_table", "brittleness_figure", "predict")
    assert not [path for step in steps for path in none.files(step)]
    pages = {Path(path).stem for path in none.files("table_page")}
    assert not {"brittleness", "subgroups"} & pages


def test_tables_that_are_no_panels_have_pages_too(panel: Plan) -> None:
    made = jobs(panel)
    order = [*made]
    for name in ("brittleness", "subgroups"):
        table, page = f"results/{name}_table.csv", f"results/pages/{name}.html"
        assert page in panel.shown("page")
        assert made[page].reads == (table,)
        assert order.index(table) < order.index(page)
        assert json.loads(made[page].key)["table"] == name
    assert "results/pages/tidy.html" not in made  # too large


def test_where_no_method_has_a_damping_none_is_drawn() -> None:
    none = load_plan({"settings": ["digits_lr"], "methods": ["grad_dot", "random"]}, CONFIG)
    assert not [path for path in jobs(none) if "damping" in path]


def test_flipped_labels_are_looked_for_where_there_are_any() -> None:
    values = {"settings": ["mnist_lr", "mnist_lr_noise10"], "methods": ["grad_dot", "if_explicit"]}
    alone = load_plan(values | {"metrics": ["auc"]}, CONFIG)
    assert [alone.metrics_of(name) for name in alone.settings] == [[], ["auc"]]
    assert alone.files("merge_truth") == []
    folder = "results/mnist_lr_noise10"
    csvs = [f"{folder}/metrics/auc/{method}.csv" for method in alone.methods]
    assert alone.files("evaluate_auc") == csvs
    made = jobs(alone)
    points = sum(len(method.grid) for method in alone.grids["mnist_lr_noise10"].values())
    assert len([path for path in made if "/self_influence/" in path]) == 2 * points  # costs beside
    assert not [path for path in made if "/scores/" in path]
    assert {*alone.shown()} <= made.keys()
    data = f"{folder}/data.safetensors"
    scores = alone.files("self_influence", setting="mnist_lr_noise10", method="if_explicit")
    costs = alone.files("self_influence", "cost", method="if_explicit")
    assert made[csvs[1]].reads == (data, *scores, *costs)
    own = made[f"{folder}/self_influence/if_explicit/damping=0.01.safetensors"]
    assert own.reads == (data, *alone.files("train", setting="mnist_lr_noise10", kind="full"))

    both = load_plan(values | {"metrics": ["lds", "auc"]}, CONFIG)
    assert [both.metrics_of(name) for name in both.settings] == [["lds"], ["lds", "auc"]]
    assert len(both.files("merge_truth")) == 2
    assert len(both.files("self_influence")) == points
    assert len(both.files("attribute")) == sum(
        len(method.grid) for methods in both.grids.values() for method in methods.values()
    )
    assert len(both.files("evaluate", metric="lds")) == 4
    assert both.files("attribute", setting="mnist_lr_noise10", method="if_explicit") == [
        path.replace("self_influence", "scores") for path in scores
    ]
    assert {*both.shown()} <= jobs(both).keys()


def test_a_grid_of_the_configuration_decides_the_files() -> None:
    values = {"settings": ["digits_lr"], "methods": {"if_explicit": {"damping": "3e-2"}}}
    found = load_plan(values, CONFIG)
    path = "results/digits_lr/scores/if_explicit/damping=0.03.safetensors"
    assert found.files("attribute") == [path]
    assert json.loads(jobs(found)[path].key)["params"] == {"damping": 0.03}


def test_a_grid_for_one_setting_decides_its_files() -> None:
    grids = {"digits_mlp": {"if_explicit": {"damping": "3e-2"}}, "digits_cnn": {"if_cg": None}}
    values = {"settings": ["digits_lr", "digits_mlp"], "methods": ["if_explicit"], "grids": grids}
    found = load_plan(values, CONFIG)
    (path,) = found.files("attribute", setting="digits_mlp")
    assert path == "results/digits_mlp/scores/if_explicit/damping=0.03.safetensors"
    points = found.grids["digits_lr"]["if_explicit"].grid
    assert len(found.files("attribute")) == 1 + len(points)


BASE: dict[str, Any] = {
    "settings": ["digits_lr"],
    "methods": ["grad_dot", "if_explicit"],
    "metrics": ["lds", "loo", "brittleness"],
    "compare": ["grad_dot", "if_explicit"],
}


@pytest.mark.parametrize(
    ("values", "place", "home"),
    [
        ({}, "results", "results"),
        ({"name": "mine"}, "results/mine", "results"),
        ({"name": "mine", "bootstrap": 30}, "results/mine", "results/mine"),
        ({"name": "mine", "top_k": 3}, "results/mine", "results/mine"),
        ({"name": "mine", "methods": {"if_explicit": {"damping": 3}}}, "results/mine",
         "results/mine"),
        ({"name": "mine", "grids": {"digits_lr": {"if_explicit": {"damping": 3}}}}, "results/mine",
         "results/mine"),
        ({"name": "mine", "methods": {"if_explicit": None}}, "results/mine", "results"),
        ({"name": "mine", "metrics": ["brittleness"]}, "results/mine", "results/mine"),
        ({"name": "mine", "compare": ["if_explicit", "grad_dot"]}, "results/mine", "results"),
    ],
)  # fmt: skip
def test_trying_a_configuration_overwrites_no_other_s_files(
    values: dict[str, Any], place: str, home: str
) -> None:
    """Only what another configuration makes just the same may lie where the default's lies."""
    plan, usual = load_plan(BASE | values, CONFIG), load_plan(BASE, CONFIG)
    assert plan.folders == {"place": place, "home": home}
    here, there = jobs(plan), jobs(usual)
    for path in here.keys() & there.keys():
        assert (here[path].key, here[path].reads) == (there[path].key, there[path].reads), path
    for path in plan.shown("page", "figure"):
        assert path.startswith(f"{place}/")


def test_values_on_the_command_line_make_a_trial() -> None:
    assert named(BASE, {}) == named(BASE, {"device": "cuda", "exact": True}) == BASE
    given = {"bootstrap": 30}
    trial = load_plan(named(BASE | given, given), CONFIG)
    assert trial.folders == {"place": "results/trial", "home": "results/trial"}
    given = {"bootstrap": 30, "name": "mine"}
    assert named(BASE | given, given)["name"] == "mine"


def test_settings_and_methods_are_those_asked_for_in_that_order() -> None:
    values = {"settings": ["digits_mlp", "digits_lr"], "methods": ["if_cg", "random"]}
    found = load_plan(values, CONFIG)
    assert list(found.settings) == ["digits_mlp", "digits_lr"]
    assert found.settings["digits_lr"] == load_setting(CONFIG / "settings" / "digits_lr.yaml")
    assert list(found.methods) == ["if_cg", "random"]
    assert found.metrics == ("lds", "loo")


def test_methods_to_compare_that_are_not_shown_are_not_compared() -> None:
    values = {"settings": ["digits_lr"], "compare": ["if_explicit", "grad_dot"]}
    assert load_plan(values, CONFIG).files("lds_width")
    none = load_plan(values | {"methods": ["grad_dot", "random"]}, CONFIG)
    assert not none.files("lds_width")


NO_CONFIGURATION = ("methods.yaml", "causes.yaml")


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_ships_is_valid(file: Path) -> None:
    if file.name not in NO_CONFIGURATION:
        assert load_plan(load_yaml(file), CONFIG).jobs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settings": ["digits_rl"]}, "digits_rl.yaml: no such file; did you mean 'digits_lr'"),
        ({"settings": ["digits_lr"], "methods": ["grad_dott"]}, "did you mean 'grad_dot'"),
        (
            {"settings": ["digits_lr"], "methods": ["random"], "compare": ["random", "grad_dott"]},
            "compare: unknown method 'grad_dott'; did you mean 'grad_dot'",
        ),
        (
            {"settings": ["digits_lr"], "compare": ["random", "random"]},
            "compare: random, random: a name stands there twice",
        ),
        (
            {"settings": ["digits_lr"], "grids": {"digits_rl": {}}},
            "grids: unknown setting 'digits_rl'",
        ),
        ({"settings": {"digits_lr": ["ldss"]}}, "settings.digits_lr.0: .*did you mean 'lds'"),
        ({"settings": {"digits_lr": ["lds", "lds"]}}, "digits_lr: lds, lds: a name stands there"),
        ({"settings": {"digits_lr": ["auc"]}}, "no setting has any .*: digits_lr. Add one"),
        ({"setings": ["digits_lr"]}, "setings: unknown key; did you mean 'settings'"),
        (
            {"settings": ["digits_lr", "mnist_lr"], "metrics": ["lds", "auc"]},
            "metrics: auc is about flipped labels, .*label_noise.: digits_lr, mnist_lr. Add one",
        ),
        (
            {"settings": ["digits_mlp"], "metrics": ["brittleness"]},
            "metrics: brittleness is for settings with the section .*: digits_mlp. Add one",
        ),
        (
            {"settings": ["digits_lr"], "brittleness": ["grad_dott"]},
            "brittleness: unknown method 'grad_dott'; did you mean 'grad_dot'",
        ),
        (
            {"settings": ["digits_lr"], "metrics": ["loo_topk"], "top_k": 200},
            "top_k: the 200 that matter most, of 200 samples that digits_lr leaves out",
        ),
    ],
)
def test_unknown_names(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(values, CONFIG)
