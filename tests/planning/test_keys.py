from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaveout.config import Config, ConfigError, Layer, Method, Setting
from leaveout.retraining import items as trainings
from leaveout.workflow.plan import Plan
from leaveout.workflow.steps import STEPS

Make = Callable[..., Setting]
REMOVALS: list[Layer] = ["loo", "pbrf"]
LAYERS: list[Layer] = ["full", "half", "lds", "loo", "pbrf"]
IF_CG = Method(name="m", module="leaveout.attribution.if_cg", grid=({"damping": 1.0},))
IF_EXPLICIT = Method(
    name="if_explicit",
    module="leaveout.attribution.if_explicit",
    grid=({"damping": 1.0}, {"damping": 0.1}),
)


def plan_of(setting: Setting, *methods: Method, **config: Any) -> Plan:
    return Plan(
        Config(settings=(setting.name,), **config),
        {setting.name: setting},
        {setting.name: {method.name: method for method in methods}},
        STEPS,
    )


def key(plan: Plan, step: str, **names: str) -> str:
    """Return the key of the one job of a step that has these names."""
    (found,) = plan.names(step, **names)
    return plan.job(step, found).key


def keys(setting: Setting, layer: Layer) -> list[str]:
    """Return the keys of all chunks of a layer, in order."""
    plan = plan_of(setting)
    step, known = f"retrain_{layer}", {}
    if layer in ("full", "half"):
        step, known = "train", {"kind": layer}
    return [plan.job(step, names).key for names in plan.names(step, **known)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks_hold_every_training_exactly_once(
    make_setting: Make, layer: Layer, size: int
) -> None:
    setting = make_setting(**{layer: {"chunk": size}})
    cut = trainings.chunks(setting, layer)
    assert [item for part in cut.values() for item in part] == trainings.items(setting, layer)
    assert all(1 <= len(part) <= size for part in cut.values())
    assert {name: trainings.chunk(setting, layer, name) for name in cut} == cut


def test_items(make_setting: Make) -> None:
    setting = make_setting()
    assert (
        trainings.items(setting, "full")
        == trainings.items(setting, "half")
        == [(0, 0), (1, 1), (2, 2)]
    )
    assert trainings.items(setting, "lds") == [(s, run) for run in range(2) for s in range(5)]
    ids = (1, 4, 7, 20, 29)
    for layer in REMOVALS:
        assert trainings.items(setting, layer) == [*((i, 0) for i in ids), (1, 1), (7, 1)]
    alone = make_setting(full={"runs": 1})
    assert trainings.items(alone, "pbrf") == [(i, 0) for i in ids]
    assert trainings.items(alone, "loo") == trainings.items(setting, "loo")


@pytest.mark.parametrize("layer", ["lds", *REMOVALS])
def test_a_chunk_holds_one_run_and_is_named_by_it(make_setting: Make, layer: Layer) -> None:
    for size in (1, 2, 3, 4, 6, 7, 100):
        setting = make_setting(**{layer: {"chunk": size}})
        for name, part in trainings.chunks(setting, layer).items():
            assert {run for _, run in part} == {int(name.split("-")[0])}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pbrf_starts_from_the_full_models_that_hold_its_run(make_setting: Make, size: int) -> None:
    setting = make_setting(full={"chunk": size})
    for name, part in trainings.chunks(setting, "pbrf").items():
        ((run,),) = {(run,) for _, run in part}
        assert (run, run) in trainings.chunk(setting, "full", trainings.base_chunk(setting, name))
    with pytest.raises(ConfigError, match="pbrf has 4 chunks"):
        trainings.base_chunk(setting, "2-0")


@pytest.mark.parametrize("layer", REMOVALS)
@pytest.mark.parametrize("count", [0, 1, 3, 5, 50])
def test_replicated_ids_are_evenly_spaced_and_distinct(
    make_setting: Make, layer: Layer, count: int
) -> None:
    setting = make_setting(**{layer: {"ids": "all", "replicate": count}})
    again = [i for i, run in trainings.items(setting, layer) if run == 1]
    assert len(again) == len(set(again)) == min(count, 30)
    gaps = {b - a for a, b in zip(again, [*again[1:], 30 + (again or [0])[0]], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("name", ["-1", "0", "0-3", "2-0", "00-0"])
def test_there_is_no_such_chunk(make_setting: Make, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"lds has 6 chunks, 0-0 to 1-2 .* no chunk {name}$"):
        trainings.chunk(make_setting(), "lds", name)


@pytest.mark.parametrize(
    ("layer", "more"),
    [
        ("lds", {"subsets": 12}),
        ("lds", {"runs": 3}),
        ("lds", {"subsets": 6, "runs": 4}),
        ("full", {"runs": 8}),
        ("half", {"runs": 8}),
        ("loo", {"ids": (1, 4, 7, 20, 29, 3, 5), "replicate": 2}),
        ("pbrf", {"ids": (1, 4, 7, 20, 29, 3, 5), "replicate": 2}),
    ],
)
def test_more_items_leave_whole_chunks_as_they_were(
    make_setting: Make, layer: Layer, more: dict[str, Any]
) -> None:
    base = make_setting()
    size = getattr(base, layer).chunk
    whole = [
        key
        for key, part in zip(keys(base, layer), trainings.chunks(base, layer).values(), strict=True)
        if len(part) == size
    ]
    assert whole
    grown = set(keys(make_setting(**{layer: more}), layer))
    if more == {"runs": 3}:  # whatever the other runs' chunks hold, they stay
        whole = keys(base, layer)
    if layer in REMOVALS:  # which ids are replicated depends on all of them: those come last
        whole = whole[:-1]
    assert set(whole) <= grown


@pytest.mark.parametrize("layer", LAYERS)
def test_no_two_chunks_have_one_key(make_setting: Make, layer: Layer) -> None:
    found = [key for one in LAYERS for key in keys(make_setting(), one)]
    assert len(set(found)) == len(found)


# what must, and what must not, change the keys of each layer
SHARED = [
    {"seed": 4},
    {"name": "other"},
    {"dataset": {"n_train": 31}},
    {"model": {"name": "mlp", "hidden": [3]}},
    {"recipe": {"learning_rate": 0.2}},
    {"recipe": {"momentum": 0.5}},
    {"recipe": {"weight_decay": 0.1}},
    {"recipe": {"batch_size": 9}},
    {"recipe": {"epochs": 4}},
    {"recipe": {"precision": "bfloat16"}},
    {"recipe": {"optimizer": "adamw"}},
    {"recipe": {"momentum": 0.5, "nesterov": True}},
    {"recipe": {"schedule": "cosine"}},
    {"recipe": {"clip": 1.0}},
    {"recipe": {"epochs": None, "iterations": 30}},
    {"objective": {"name": "cross_entropy", "label_smoothing": 0.1}},
    {"objective": {"name": "cross_entropy", "measure": "margin"}},
    {"model": {"name": "mlp", "hidden": [3], "activation": "tanh"}},
]


def test_a_setting_of_before_has_the_keys_it_had(make_setting: Make) -> None:
    """Results that were published stay valid, whatever settings can say since."""
    setting = make_setting(model={"name": "mlp", "hidden": [3]}, recipe={"momentum": 0.5})
    found = json.loads(keys(setting, "half")[0])
    assert {name: found[name] for name in ("seed", "n_train", "model", "recipe", "half")} == {
        "seed": 3,
        "n_train": 30,
        "model": {"name": "mlp", "hidden": [3], "dropout": 0.0},
        "recipe": {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.5,
            "weight_decay": 0.0,
            "epochs": 3,
            "batch_size": 8,
            "precision": "float32",
        },
        "half": {"ratio": 0.5, "size": 15},
    }
    assert not {"objective", "own_code", "iterations"} & found.keys()
    data = json.loads(key(plan_of(setting), "prepare", setting="tiny"))
    assert {name: data[name] for name in ("dataset", "full_scale", "n_classes")} == {
        "dataset": {"name": "digits", "n_train": 30, "n_test": 6, "mean": 0.0, "std": 1.0},
        "full_scale": 16,
        "n_classes": 10,
    }


OWN: dict[Layer, list[dict[str, Any]]] = {
    "full": [{"full": {"checkpoints": 3}}],
    "half": [{"half": {"ratio": 0.4}}],
    "lds": [{"lds": {"ratio": 0.4}}, {"lds": {"pairing": "drop"}}],
    "loo": [{"loo": {"pairing": "drop"}}, {"loo": {"shuffle": False}}],
    "pbrf": [
        {"pbrf": {"damping": 0.2}},
        {"pbrf": {"solver": "sgd"}},
        {"pbrf": {"steps": 7}},
        {"pbrf": {"tolerance": 1e-3}},
        {"pbrf": {"learning_rate": 0.1}},
    ],
}


@pytest.mark.parametrize("change", SHARED, ids=str)
def test_what_every_training_depends_on(make_setting: Make, change: dict[str, Any]) -> None:
    for layer in LAYERS:
        assert not set(keys(make_setting(**change), layer)) & set(keys(make_setting(), layer))


@pytest.mark.parametrize("layer", LAYERS)
def test_what_one_layer_depends_on(make_setting: Make, layer: Layer) -> None:
    for change in OWN[layer]:
        for other in LAYERS:
            same = keys(make_setting(**change), other) == keys(make_setting(), other)
            assert same == (other != layer), (change, other)


def test_the_size_of_a_chunk_counts_by_what_it_puts_into_it(make_setting: Make) -> None:
    for layer in LAYERS:
        sizes = [make_setting(**{layer: {"chunk": size}}) for size in (5, 6)]
        assert len({tuple(keys(setting, layer)) for setting in sizes}) == 1


def test_swapped_values_change_the_key(make_setting: Make) -> None:
    a = make_setting(recipe={"momentum": 0.1, "weight_decay": 0.2})
    b = make_setting(recipe={"momentum": 0.2, "weight_decay": 0.1})
    assert keys(a, "lds") != keys(b, "lds")
    points = [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 1.0}, {"y": 2.0, "x": 1.0}]
    one, two, again = (
        key(plan_of(a, IF_CG.model_copy(update={"grid": (point,)})), "attribute")
        for point in points
    )
    assert one != two
    assert one == again  # a dictionary has no order


def test_metrics_depend_on_method_and_draws(make_setting: Make) -> None:
    methods = [IF_CG.model_copy(update={"name": name}) for name in ("a", "b")]
    found = {
        key(plan_of(make_setting(seed=seed), *methods, bootstrap=bootstrap), "evaluate",
            metric=metric, method=name)
        for seed in (1, 2)
        for metric in ("lds", "loo")
        for name in ("a", "b")
        for bootstrap in (100, 200)
    }  # fmt: skip
    assert len(found) == 16


def test_only_the_share_of_the_first_samples_depends_on_how_many_they_are(
    make_setting: Make,
) -> None:
    def found(metric: str, top_k: int) -> str:
        plan = plan_of(make_setting(), IF_CG, metrics=("loo", "loo_topk"), top_k=top_k)
        return key(plan, "evaluate", metric=metric)

    assert found("loo_topk", 2) != found("loo_topk", 3)
    assert found("loo", 2) == found("loo", 3)


def test_attribution_depends_on_the_methods_own_code(make_setting: Make) -> None:
    one, other = (
        json.loads(key(plan_of(make_setting(), method), "attribute"))
        for name in ("grad_dot", "if_cg")
        for method in [Method(name="m", module=f"leaveout.attribution.{name}", grid=({},))]
    )
    assert one != other  # whatever their versions
    for entries in (one, other):
        del entries["module"], entries["method_code"]
    assert one == other


def test_self_influence_is_no_other_score(make_setting: Make) -> None:
    noisy = make_setting(dataset={"label_noise": {"fraction": 0.1}})
    plan = plan_of(noisy, IF_CG, metrics=("lds", "auc"))
    assert key(plan, "self_influence") != key(plan, "attribute")


def test_a_damping_depends_on_what_models_the_retraining(make_setting: Make) -> None:
    def damping(**changes: Any) -> str:
        return key(plan_of(make_setting(**changes), IF_EXPLICIT), "damping")

    changes = {
        "recipe": {"recipe": {"momentum": 0.1}},
        "ratio": {"lds": {"ratio": 0.4}},
        "proximal": {"pbrf": {"damping": 0.2}},
        "more subsets": {"lds": {"subsets": 6}},
        "more runs": {"lds": {"runs": 3}},
    }
    found = {name for name, change in changes.items() if damping(**change) != damping()}
    assert found == {"recipe", "ratio"}
    # leave-one-out and PBRF ask for a damping known beforehand
    plan = plan_of(make_setting(), IF_EXPLICIT, metrics=("lds", "loo", "pbrf"))
    assert [names["metric"] for names in plan.names("damping")] == ["lds"]


def all_keys(setting: Setting) -> list[str]:
    random = Method(name="random", module="leaveout.attribution.random", grid=({},))
    plan = plan_of(
        setting, IF_EXPLICIT, random, subgroups=True, compare=("if_explicit", "random"), top_k=3,
        metrics=("lds", "loo", "pbrf", "loo_topk", "auc", "brittleness"),
    )  # fmt: skip
    return [job.key for job in plan.jobs]


def test_keys_hold_no_path_and_no_time(
    make_setting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = make_setting(
        dataset={"label_noise": {"fraction": 0.1}}, brittleness={"n_test": 3, "k": [2], "runs": 2}
    )
    first = all_keys(setting)
    assert {json.loads(one)["step"] for one in first} == {*STEPS}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert all_keys(setting) == first
    for one in first:
        assert "/" not in one
        assert not re.search(r"\b20\d\d-", one)
        assert json.dumps(json.loads(one), sort_keys=True) == one
    assert len(set(first)) == len(first)


def test_the_key_of_a_truth_follows_what_it_joins(make_setting: Make) -> None:
    def truth(**changes: Any) -> str:
        return key(plan_of(make_setting(**changes)), "merge_truth", truth="lds")

    assert truth() != truth(lds={"subsets": 6})
    assert truth() == truth(lds={"chunk": 5})


def test_what_decides_the_prepared_data(make_setting: Make) -> None:
    def data(**changes: Any) -> str:
        entries = json.loads(key(plan_of(make_setting(**changes)), "prepare"))
        del entries["setting"]  # each has a file of its own
        return json.dumps(entries)

    noise = {"label_noise": {"fraction": 0.1}}
    mnist = {"name": "mnist", "n_train": 30, "n_test": 6}
    different = [
        {},
        {"dataset": mnist},
        {"dataset": {"mean": 0.5}},
        {"dataset": {"classes": (2, 4)}},
        {"dataset": {"classes": (4, 2)}},
        {"dataset": noise},
        {"dataset": {"label_noise": {"fraction": 0.2}}},
        {"dataset": noise, "seed": 4},
    ]
    assert len({data(**changes) for changes in different}) == len(different)
    # nothing is drawn without noise, and settings that share data share the draw
    assert data() == data(seed=4) == data(name="other", model={"name": "mlp", "hidden": [3]})
    assert data(dataset=noise) == data(dataset=noise, name="other")
    assert data(dataset=mnist) == data(dataset={**mnist, "source": "hub"})
