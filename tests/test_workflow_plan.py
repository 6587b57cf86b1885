"""leaveout.workflow, the part of the workflow that is Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml

from leaveout import plan
from leaveout.config import ConfigError, Metric, load_setting, load_yaml
from leaveout.metric_names import PANELS
from leaveout.workflow import TABLES, Plan

CONFIG = Path(__file__).parents[1] / "config"


def wild(**values: object) -> Any:
    return SimpleNamespace(**values)


@pytest.fixture
def panel() -> Plan:
    return Plan.load(yaml.safe_load((CONFIG / "digits.yaml").read_text()), CONFIG)


def test_it_loads_neither_torch_nor_snakemake() -> None:
    code = (
        "import sys, yaml; from leaveout.workflow import Plan;"
        "p = Plan.load({'settings': ['mnist_lr']}, sys.argv[1]);"
        "p.train_key('loo')(type('W', (), {'setting': 'mnist_lr', 'chunk': '0-0'}));"
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
    assert panel.models("digits_lr", "half") == [
        f"results/digits_lr/models/half/{i}.safetensors" for i in plan.chunks(setting, "half")
    ]
    assert len(panel.all_models()) == sum(
        len(plan.chunks(s, kind)) for s in panel.settings.values() for kind in ("full", "half")
    )
    found = panel.retrained(wild(setting="digits_lr", metric="loo"))
    assert len(found) == len(set(found)) == len(plan.chunks(setting, "loo"))
    assert found[0] == "results/digits_lr/retrain/loo/0-0.safetensors"


def test_a_chunk_of_pbrf_reads_the_one_file_that_holds_its_run(panel: Plan) -> None:
    setting = panel.settings["digits_lr"]
    split = setting.model_copy(update={"full": setting.full.model_copy(update={"chunk": 1})})
    panel.settings["digits_lr"] = split
    files = panel.models("digits_lr", "full")
    assert len(files) == 10
    steps = {step.outputs[0]: step.inputs for step in panel.steps("published.csv")}
    for name, part in plan.chunks(split, "pbrf").items():
        asked = wild(setting="digits_lr", chunk=name)
        assert panel.base_model(asked) == files[part[0][1]]
        made = f"results/digits_lr/retrain/pbrf/{name}.safetensors"
        assert steps[made] == ("results/digits_lr/data.safetensors", files[part[0][1]])


def test_half_models_only_for_methods_that_need_them(panel: Plan) -> None:
    asked = wild(setting="digits_lr", method="grad_dot")
    assert panel.half_models(asked) == []
    assert panel.full_models(asked) == panel.models("digits_lr", "full")
    panel.methods["grad_dot"] = panel.methods["grad_dot"].model_copy(
        update={"needs": ("full", "half")}
    )
    assert panel.half_models(asked) == panel.models("digits_lr", "half")


def test_files_of_scores_and_metrics(panel: Plan) -> None:
    found = panel.scores(wild(setting="digits_lr", method="if_explicit", metric="lds"))
    assert found[:2] == [
        "results/digits_lr/scores/if_explicit/damping=0.1.safetensors",
        "results/digits_lr/scores/if_explicit/damping=0.01.safetensors",
    ]
    points = sum(len(m.grid) for m in panel.methods.values())
    assert len(set(panel.all_scores())) == points * len(panel.settings)
    assert {Path(p).suffix for p in panel.all_scores(".json")} == {".json"}
    csvs = panel.metric_csvs(wild(metric="lds"))
    assert len(set(csvs)) == len(panel.methods) * len(panel.settings)
    assert len(panel.truths()) == 3 * len(panel.settings)


def test_keys_are_the_plans(panel: Plan) -> None:
    setting = panel.settings["digits_mlp"]
    asked = wild(setting="digits_mlp", chunk="0", kind="half", metric="lds", method="if_cg",
                 params="damping=0.01+iterations=10")  # fmt: skip
    assert panel.prepare_key(asked) == plan.prepare_key(setting)
    assert panel.train_key("lds")(wild(setting="digits_mlp", chunk="0-0")) == plan.train_key(
        setting, "lds", "0-0"
    )
    assert panel.model_key(asked) == plan.train_key(setting, "half", "0")
    loo = wild(setting="digits_mlp", metric="loo")
    assert panel.truth_key(loo) == plan.truth_key(setting, "loo")
    method = panel.methods["if_cg"]
    point = {"damping": 0.01, "iterations": 10}
    assert panel.attribute_key(asked) == plan.attribute_key(setting, method, point)
    assert json.loads(panel.attribute_key(asked))["params"] == point
    assert panel.evaluate_key(asked) == plan.evaluate_key(setting, "lds", "if_cg", 200)
    assert panel.report_key("page")(asked) == plan.report_key("page", "lds")
    assert panel.shown_key("table", "cost")(asked) == plan.report_key("table", "cost")
    assert panel.shown_key("ranks", "all")(asked) == plan.report_key("ranks", "all")


def test_tables_of_all_metrics_read_all_metrics_and_no_score(panel: Plan) -> None:
    steps = {path: step for step in panel.steps("config/published.csv") for path in step.outputs}
    csvs = [
        f"results/{s}/metrics/{metric}/{m}.csv"
        for metric in panel.metrics
        for s in panel.settings
        for m in panel.methods
    ]
    draws = [path.replace(".csv", ".draws.safetensors") for path in csvs]
    for path, beside in zip(csvs, draws, strict=True):
        assert steps[path].outputs == (path, beside)
    dampings = panel.all_damping_csvs()
    assert dampings == panel.damping_csvs(wild(metric="lds")) != []
    given = ("config/published.csv", "config/causes.yaml")
    assert steps["results/tidy.csv"].inputs == (*csvs, *draws, *dampings)
    assert steps["results/rank_table.csv"].inputs == (*csvs, *draws)
    assert steps["results/published_table.csv"].inputs == (*csvs, *given)
    assert steps["results/cost_table.csv"].inputs == (*panel.all_scores(".cost.json"), *csvs)
    assert set(panel.draws(wild(metric="lds"))) < set(steps["results/lds_table.csv"].inputs)
    assert {*TABLES} < {*panel.shown()}
    assert len({steps[path].key for path in (*TABLES, "results/cost_table.csv")}) == 4


def test_steps_come_after_what_they_read(panel: Plan) -> None:
    steps = panel.steps("published.csv")
    outputs = [path for step in steps for path in step.outputs]
    assert len(set(outputs)) == len(outputs)
    made = {"published.csv", "causes.yaml"}
    for step in steps:
        assert set(step.inputs) <= made, step
        made |= set(step.outputs)
    assert {*panel.shown(), *panel.truths(), *panel.all_scores(), *panel.all_models()} <= made


def test_two_methods_are_compared_where_the_configuration_says_so(panel: Plan) -> None:
    assert panel.widths() == []
    values = {"settings": ["digits_lr", "digits_mlp"], "compare": ["if_explicit", "grad_dot"]}
    both = Plan.load(values, CONFIG)
    assert both.widths() == [
        "results/digits_lr/metrics/lds_width.csv",
        "results/digits_mlp/metrics/lds_width.csv",
        "results/figures/digits_lr_lds_width.svg",
        "results/figures/digits_mlp_lds_width.svg",
    ]
    steps = {path: step for step in both.steps("published.csv") for path in step.outputs}
    assert set(both.widths()) <= set(steps)
    assert set(both.widths()) <= set(both.shown())
    asked = wild(setting="digits_lr")
    scores = [*both.scores(wild(setting="digits_lr", method="if_explicit", metric="lds")),
              *both.scores(wild(setting="digits_lr", method="grad_dot", metric="lds"))]  # fmt: skip
    assert both.compared_scores(asked) == scores
    table = steps["results/digits_lr/metrics/lds_width.csv"]
    assert table.inputs == ("results/digits_lr/truth/lds.safetensors", *scores)
    assert table.key == both.width_key(asked)
    turned = Plan.load(values | {"compare": ["grad_dot", "if_explicit"]}, CONFIG)
    assert turned.width_key(asked) != both.width_key(asked)
    assert Plan.load(values | {"metrics": ["loo"]}, CONFIG).widths() == []


def test_dampings_are_chosen_for_the_methods_that_have_one(panel: Plan) -> None:
    methods = panel.damped("lds")
    assert methods == ["if_explicit"]
    chosen = panel.damping_csvs(wild(metric="lds"))
    assert chosen == [f"results/{s}/damping/lds/{m}.csv" for s in panel.settings for m in methods]
    steps = {path: step for step in panel.steps("published.csv") for path in step.outputs}
    asked = wild(setting="digits_lr", metric="lds", method="if_explicit")
    step = steps["results/digits_lr/damping/lds/if_explicit.csv"]
    # no ground truth, and no retrained model
    assert step.inputs == (
        "results/digits_lr/data.safetensors",
        *panel.full_models(asked),
        *panel.scores(asked),
    )
    assert step.key == panel.damping_key(asked)
    assert set(chosen) <= set(steps["results/lds_table.csv"].inputs)
    figure = steps["results/figures/damping_lds.svg"]
    assert figure.inputs == (*chosen, *panel.damped_csvs(asked))
    assert set(panel.damping_figures()) <= set(panel.shown())
    assert panel.mem_mb("damping")(asked, 1) > 0
    # what the others ask for is known beforehand
    assert panel.damping_figures() == ["results/figures/damping_lds.svg"]
    for metric in ("loo", "pbrf"):
        assert panel.damping_csvs(wild(metric=metric)) == []


def test_samples_are_pictured_by_a_method_of_each_kind_or_those_named(panel: Plan) -> None:
    assert panel.pictured == ["magic", "if_cg", "if_ekfac", "trak_1", "grad_dot"]
    assert panel.examples() == [f"results/figures/{s}_examples.svg" for s in panel.settings]
    assert panel.self_influences() == []  # no label is flipped
    steps = {path: step for step in panel.steps("published.csv") for path in step.outputs}
    asked = wild(setting="digits_lr")
    step = steps["results/figures/digits_lr_examples.svg"]
    scores = [
        path
        for method in panel.pictured
        for path in panel.scores(wild(setting="digits_lr", method=method, metric="lds"))
    ]
    assert step.inputs == (
        "results/digits_lr/data.safetensors",
        "results/digits_lr/truth/loo.safetensors",
        *(f"results/digits_lr/metrics/lds/{method}.csv" for method in panel.pictured),
        *scores,
    )
    assert step.inputs[1:] == (
        panel.example_truth(asked), *panel.example_csvs(asked), *panel.example_scores(asked)
    )  # fmt: skip
    assert step.key == panel.picture_key("examples_figure")(asked)

    values = {"settings": ["digits_lr"], "methods": ["random", "grad_dot", "if_cg"]}
    named = Plan.load(values | {"show": ["random", "magic", "if_cg"]}, CONFIG)
    assert named.pictured == ["random", "if_cg"]
    assert Plan.load(values | {"show": []}, CONFIG).examples() == []
    alone = Plan.load(values | {"metrics": ["pbrf"]}, CONFIG)
    assert alone.example_truth(asked) == "results/digits_lr/truth/pbrf.safetensors"
    assert alone.example_csvs(asked)[0] == "results/digits_lr/metrics/pbrf/if_cg.csv"
    with pytest.raises(ConfigError, match="config: show: unknown method 'grad_dott'"):
        Plan.load(values | {"show": ["grad_dott"]}, CONFIG)


def test_the_most_self_influential_are_pictured_where_labels_were_flipped() -> None:
    values = {"settings": ["mnist_lr", "mnist_lr_noise10"], "methods": ["grad_dot", "magic"]}
    alone = Plan.load(values | {"metrics": ["auc"]}, CONFIG)
    assert alone.examples() == []
    (picture,) = alone.self_influences()
    assert picture == "results/figures/mnist_lr_noise10_self_influence.svg"
    steps = {path: step for step in alone.steps("published.csv") for path in step.outputs}
    folder, asked = "results/mnist_lr_noise10", wild(setting="mnist_lr_noise10")
    assert steps[picture].inputs == (
        f"{folder}/data.safetensors",
        *(f"{folder}/metrics/auc/{method}.csv" for method in ("magic", "grad_dot")),
        *alone.self_influence_scores(asked),
    )
    assert set(alone.self_influence_scores(asked)) <= set(alone.all_scores())
    assert "/self_influence/magic/" in alone.self_influence_scores(asked)[0]
    both = Plan.load(values | {"metrics": ["lds", "auc"]}, CONFIG)
    assert len(both.examples()) == 2
    assert both.self_influences() == [picture]


def test_grids_are_drawn_where_there_is_a_choice(panel: Plan) -> None:
    names = [f"results/figures/{m}_grids.svg" for m in panel.metrics]
    assert panel.grid_figures() == names
    steps = {path: step for step in panel.steps("published.csv") for path in step.outputs}
    assert steps[names[0]].inputs == tuple(panel.metric_csvs(wild(metric="lds")))
    assert len(panel.quality_figures()) == 3
    for path in panel.quality_figures():
        metric = path.removesuffix(".svg").rpartition("_")[2]
        assert steps[path].inputs == (f"results/{metric}_table.csv", "results/cost_table.csv")
    none = Plan.load({"settings": ["digits_lr"], "methods": ["grad_dot", "random"]}, CONFIG)
    assert none.grid_figures() == []
    # flipped labels have no grid where nobody has a choice about them
    values = {"settings": ["mnist_lr", "mnist_lr_noise10"], "metrics": ["lds", "auc"],
              "methods": {"if_cg": {"damping": 1e-2, "iterations": 10}},
              "grids": {"mnist_lr": {"if_cg": {"damping": [1, 0.1], "iterations": 9}}}}  # fmt: skip
    assert Plan.load(values, CONFIG).grid_figures() == ["results/figures/lds_grids.svg"]


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
    found = Plan.load(values, CONFIG)
    assert found.metrics == ("lds", "loo", "auc")
    assert [found.metrics_of(s) for s in found.settings] == [["lds"], ["loo"], ["auc"]]
    assert [found.score_layers(s) for s in found.settings] == [
        ["scores"], ["scores"], ["self_influence"],
    ]  # fmt: skip
    assert [Path(path).parts[1] for path in found.truths()] == ["digits_lr", "mnist_lr"]
    made = {path for step in found.steps("published.csv") for path in step.outputs}
    assert {*found.shown()} <= made
    only = {
        "damping/lds/if_cg.csv",
        "metrics/lds_width.csv",
        "retrain/brittleness/if_cg.safetensors",
    }
    for name in found.settings:
        has = {path for path in only if f"results/{name}/{path}" in made}
        assert has == (only if name == "digits_lr" else set())
    groups = {path for path in made if "/subgroups/" in path}
    assert groups == {
        f"results/{p}.csv" for p in ("digits_lr/subgroups/lds", "mnist_lr/subgroups/loo")
    }


def test_removals_are_retrained_where_the_setting_says_how(panel: Plan) -> None:
    assert "brittleness" not in panel.metrics  # no panel
    assert [panel.removing(name) for name in panel.settings] == [["random", "if_explicit"], [], []]
    steps = {path: step for step in panel.steps("published.csv") for path in step.outputs}
    folder = "results/digits_lr"
    asked = wild(setting="digits_lr", method="if_explicit")
    said = f"{folder}/predictions.safetensors"
    assert steps[said].inputs == (f"{folder}/data.safetensors", *panel.full_models(asked))
    made = steps[f"{folder}/retrain/brittleness/if_explicit.safetensors"]
    lds = f"{folder}/metrics/lds/if_explicit.csv"
    assert made.inputs == (f"{folder}/data.safetensors", said, *panel.own_scores(asked), lds)
    assert made.key == panel.brittleness_key(asked)
    assert panel.chosen_by(wild(setting="digits_lr", method="random")) == []  # nothing to choose
    assert steps["results/brittleness_table.csv"].inputs == tuple(panel.brittleness_csvs())
    assert {"results/brittleness_table.csv", "results/figures/brittleness.svg"} <= {*panel.shown()}
    assert panel.mem_mb("brittleness")(asked, 1) >= 1000
    values = {"settings": ["digits_lr"], "methods": ["if_explicit"], "metrics": ["brittleness"]}
    alone = Plan.load(values, CONFIG)
    assert alone.removing("digits_lr") == ["if_explicit"]  # by default all
    assert alone.chosen_by(asked) == []
    assert alone.truths() == []
    assert alone.all_scores() == alone.own_scores(asked)
    assert {*alone.shown()} <= {p for step in alone.steps("p.csv") for p in step.outputs}


def test_variants_share_a_ground_truth_and_have_panels_of_their_own() -> None:
    values = {"settings": ["digits_lr"], "methods": ["grad_dot"]}
    found = Plan.load(values | {"metrics": ["lds_kendall", "loo_topk", "lds"], "top_k": 5}, CONFIG)
    assert found.truths() == [f"results/digits_lr/truth/{m}.safetensors" for m in ("lds", "loo")]
    asked = wild(setting="digits_lr", method="grad_dot", metric="loo_topk")
    assert found.truth(asked) == "results/digits_lr/truth/loo.safetensors"
    assert json.loads(found.evaluate_key(asked))["top_k"] == 5
    assert "top_k" not in json.loads(found.evaluate_key(wild(**vars(asked) | {"metric": "lds"})))
    assert "results/lds_kendall_table.csv" in found.shown()
    assert {*found.shown()} <= {p for step in found.steps("p.csv") for p in step.outputs}


def test_every_panel_has_a_name_in_the_configuration_and_in_figures() -> None:
    assert {*PANELS, "brittleness"} == {*get_args(Metric)}
    source = (Path(__file__).parents[1] / "src/leaveout/reporting/figures.py").read_text()
    for metric in PANELS:
        assert source.count(f'    "{metric}": ') >= 2, metric


def test_subgroups_read_all_methods_of_a_setting(panel: Plan) -> None:
    steps = {path: step for step in panel.steps("published.csv") for path in step.outputs}
    asked = wild(setting="digits_mlp", metric="loo")
    made = steps["results/digits_mlp/subgroups/loo.csv"]
    assert made.inputs[3:] == (*panel.grouped_csvs(asked), *panel.grouped_scores(asked))
    assert made.key == panel.subgroups_key(asked)
    assert steps["results/subgroups_table.csv"].inputs == tuple(panel.subgroup_csvs())
    none = Plan.load({"settings": ["digits_lr"]}, CONFIG)
    assert none.subgroup_csvs() == none.more_tables() == none.more_figures() == []
    assert not {"brittleness", "subgroups"} & {*none.paged}


def test_tables_that_are_no_panels_have_pages_too(panel: Plan) -> None:
    steps = panel.steps("published.csv")
    order = [path for step in steps for path in step.outputs]
    made = {path: step for step in steps for path in step.outputs}
    for name in ("brittleness", "subgroups"):
        table, page = f"results/{name}_table.csv", f"results/pages/{name}.html"
        assert page in panel.shown()
        assert made[page].inputs == (table,)
        assert order.index(table) < order.index(page)
        assert json.loads(made[page].key)["shows"] == name
    assert "tidy" not in panel.paged  # too large


def test_where_no_method_has_a_damping_none_is_drawn() -> None:
    none = Plan.load({"settings": ["digits_lr"], "methods": ["grad_dot", "random"]}, CONFIG)
    assert none.damping_figures() == []
    assert none.damping_csvs(wild(metric="lds")) == []
    assert not [path for step in none.steps("p.csv") for path in step.outputs if "damping" in path]


def test_flipped_labels_are_looked_for_where_there_are_any() -> None:
    values = {"settings": ["mnist_lr", "mnist_lr_noise10"], "methods": ["grad_dot", "if_explicit"]}
    alone = Plan.load(values | {"metrics": ["auc"]}, CONFIG)
    assert [alone.metrics_of(name) for name in alone.settings] == [[], ["auc"]]
    assert alone.truths() == []
    folder = "results/mnist_lr_noise10"
    csvs = [f"{folder}/metrics/auc/{method}.csv" for method in alone.methods]
    assert alone.metric_csvs(wild(metric="auc")) == csvs
    steps = {path: step for step in alone.steps("published.csv") for path in step.outputs}
    made = [path for path in steps if "/self_influence/" in path]
    assert len(made) == 2 * 8  # eight points, a cost beside each
    assert not [path for path in steps if "/scores/" in path]
    assert set(alone.shown()) <= set(steps)
    asked = wild(setting="mnist_lr_noise10", method="if_explicit", metric="auc",
                 params="damping=0.01")  # fmt: skip
    assert alone.truth(asked) == f"{folder}/data.safetensors"
    assert steps[csvs[1]].inputs == (alone.truth(asked), *alone.scores(asked))
    assert steps[csvs[1]].key == alone.evaluate_key(asked)
    own = steps[f"{folder}/self_influence/if_explicit/damping=0.01.safetensors"]
    assert own.key == alone.self_influence_key(asked) != alone.attribute_key(asked)
    assert own.inputs == (alone.truth(asked), *alone.full_models(asked))
    assert alone.all_scores() == [path for path in made if path.endswith(".safetensors")]
    assert alone.mem_mb("self_influence")(asked, 1) >= 1000
    assert alone.runtime("self_influence")(asked, 1) >= alone.runtime("attribute")(asked, 1)

    both = Plan.load(values | {"metrics": ["lds", "auc"]}, CONFIG)
    assert [both.metrics_of(name) for name in both.settings] == [["lds"], ["lds", "auc"]]
    assert len(both.truths()) == 2
    assert len(both.all_scores()) == 3 * 8
    assert len(both.metric_csvs(wild(metric="lds"))) == 4
    assert both.scores(wild(**vars(asked) | {"metric": "lds"})) == [
        path.replace("self_influence", "scores") for path in alone.scores(asked)
    ]
    made_by = {path for step in both.steps("published.csv") for path in step.outputs}
    assert {*both.shown(), *both.truths(), *both.all_scores()} <= made_by


def test_a_grid_of_the_configuration_decides_the_files() -> None:
    values = {"settings": ["digits_lr"], "methods": {"if_explicit": {"damping": "3e-2"}}}
    found = Plan.load(values, CONFIG)
    path = "results/digits_lr/scores/if_explicit/damping=0.03.safetensors"
    assert found.all_scores() == [path]
    asked = wild(setting="digits_lr", method="if_explicit", params="damping=0.03")
    assert json.loads(found.attribute_key(asked))["params"] == {"damping": 0.03}


def test_a_grid_for_one_setting_decides_its_files() -> None:
    grids = {"digits_mlp": {"if_explicit": {"damping": "3e-2"}}, "digits_cnn": {"if_cg": None}}
    values = {"settings": ["digits_lr", "digits_mlp"], "methods": ["if_explicit"], "grids": grids}
    found = Plan.load(values, CONFIG)
    (path,) = [path for path in found.all_scores() if "digits_mlp" in path]
    assert path == "results/digits_mlp/scores/if_explicit/damping=0.03.safetensors"
    assert len(found.all_scores()) == 1 + len(found.grids["digits_lr"]["if_explicit"].grid)
    made_by = {output for step in found.steps("config/published.csv") for output in step.outputs}
    assert {*found.all_scores()} <= made_by


def test_a_stale_output_gives_its_job_one_more_input() -> None:
    given = Plan.if_stale({"results/a/x.csv"}, "results/{setting}/{name}.csv")
    assert given({"setting": "a", "name": "x"}) == [plan.STALE_MARK]
    assert given({"setting": "a", "name": "y"}) == []
    assert given({"setting": "b", "name": "x"}) == []


def test_settings_and_methods_are_those_asked_for_in_that_order() -> None:
    values = {"settings": ["digits_mlp", "digits_lr"], "methods": ["if_cg", "random"]}
    found = Plan.load(values, CONFIG)
    assert list(found.settings) == ["digits_mlp", "digits_lr"]
    assert found.settings["digits_lr"] == load_setting(CONFIG / "settings" / "digits_lr.yaml")
    assert list(found.methods) == ["if_cg", "random"]
    assert found.metrics == ("lds", "loo")


def test_methods_to_compare_that_are_not_shown_are_not_compared() -> None:
    values = {"settings": ["digits_lr"], "compare": ["if_explicit", "grad_dot"]}
    assert Plan.load(values, CONFIG).widths()
    assert not Plan.load(values | {"methods": ["grad_dot", "random"]}, CONFIG).widths()


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_ships_can_be_given_on_the_command_line(file: Path) -> None:
    """``--configfile`` extends the default one, whose other keys stay."""
    if file.name in ("methods.yaml", "causes.yaml"):
        return
    values = load_yaml(CONFIG / "config.yaml") | load_yaml(file)
    assert Plan.load(values, CONFIG).steps("config/published.csv")


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
        Plan.load(values, CONFIG)
