from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaveout import plan
from leaveout.config import ConfigError, Method, Setting

Make = Callable[..., Setting]
REMOVALS: list[plan.Layer] = ["loo", "pbrf"]
LAYERS: list[plan.Layer] = ["full", "half", "lds", "loo", "pbrf"]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks_hold_every_training_exactly_once(
    make_setting: Make, layer: plan.Layer, size: int
) -> None:
    setting = make_setting(**{layer: {"chunk": size}})
    cut = plan.chunks(setting, layer)
    assert [item for part in cut.values() for item in part] == plan.items(setting, layer)
    assert all(1 <= len(part) <= size for part in cut.values())
    assert {name: plan.chunk(setting, layer, name) for name in cut} == cut


def test_chunks_by_time_hold_every_training_exactly_once(make_setting: Make) -> None:
    # half a minute a model or so: long layers
    slow = {"dataset": {"n_train": 1000}, "recipe": {"epochs": 50_000, "batch_size": 100}}
    sizes = {"full": {"runs": 70}, "half": {"runs": 200}, "lds": {"subsets": 300, "runs": 7}}
    auto = {layer: {"chunk": "auto", **sizes.get(layer, {})} for layer in LAYERS}
    auto["loo"] |= {"ids": "all", "replicate": 100, "pairing": "none"}
    auto["pbrf"] |= {"ids": "all", "replicate": 100, "solver": "sgd", "steps": 100_000}
    setting = make_setting(**slow, **auto)
    for layer in LAYERS:
        cut = plan.chunks(setting, layer)
        assert [item for part in cut.values() for item in part] == plan.items(setting, layer)
        assert len(cut) > 1
        if layer in REMOVALS:
            assert all(len({run for _, run in part}) == 1 for part in cut.values())
    for more in ({"subsets": 500}, {"runs": 8}, {"subsets": 350, "runs": 9}):
        grown = make_setting(**slow, **auto | {"lds": auto["lds"] | more})
        assert set(keys(setting, "lds")) < set(keys(grown, "lds"))


def test_items(make_setting: Make) -> None:
    setting = make_setting()
    assert plan.items(setting, "full") == plan.items(setting, "half") == [(0, 0), (1, 1), (2, 2)]
    assert plan.items(setting, "lds") == [(s, run) for run in range(2) for s in range(5)]
    ids = (1, 4, 7, 20, 29)
    for layer in REMOVALS:
        assert plan.items(setting, layer) == [*((i, 0) for i in ids), (1, 1), (7, 1)]
    alone = make_setting(full={"runs": 1})
    assert plan.items(alone, "pbrf") == [(i, 0) for i in ids]
    assert plan.items(alone, "loo") == plan.items(setting, "loo")


@pytest.mark.parametrize("layer", ["lds", *REMOVALS])
def test_a_chunk_holds_one_run_and_is_named_by_it(make_setting: Make, layer: plan.Layer) -> None:
    for size in (1, 2, 3, 4, 6, 7, 100):
        setting = make_setting(**{layer: {"chunk": size}})
        for name, part in plan.chunks(setting, layer).items():
            assert {run for _, run in part} == {int(name.split("-")[0])}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pbrf_starts_from_the_full_models_that_hold_its_run(make_setting: Make, size: int) -> None:
    setting = make_setting(full={"chunk": size})
    for name, part in plan.chunks(setting, "pbrf").items():
        ((run,),) = {(run,) for _, run in part}
        assert (run, run) in plan.chunk(setting, "full", plan.base_chunk(setting, name))
    with pytest.raises(ConfigError, match="pbrf has 4 chunks"):
        plan.base_chunk(setting, "2-0")


@pytest.mark.parametrize("layer", REMOVALS)
@pytest.mark.parametrize("count", [0, 1, 3, 5, 50])
def test_replicated_ids_are_evenly_spaced_and_distinct(
    make_setting: Make, layer: plan.Layer, count: int
) -> None:
    setting = make_setting(**{layer: {"ids": "all", "replicate": count}})
    again = [i for i, run in plan.items(setting, layer) if run == 1]
    assert len(again) == len(set(again)) == min(count, 30)
    gaps = {b - a for a, b in zip(again, [*again[1:], 30 + (again or [0])[0]], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("name", ["-1", "0", "0-3", "2-0", "00-0"])
def test_there_is_no_such_chunk(make_setting: Make, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"lds has 6 chunks, 0-0 to 1-2 .* no chunk {name}$"):
        plan.chunk(make_setting(), "lds", name)


def keys(setting: Setting, layer: plan.Layer) -> list[str]:
    return [plan.train_key(setting, layer, name) for name in plan.chunks(setting, layer)]


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
    make_setting: Make, layer: plan.Layer, more: dict[str, Any]
) -> None:
    base = make_setting()
    size = getattr(base, layer).chunk
    whole = [
        key
        for key, part in zip(keys(base, layer), plan.chunks(base, layer).values(), strict=True)
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
def test_no_two_chunks_have_one_key(make_setting: Make, layer: plan.Layer) -> None:
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
]
OWN: dict[plan.Layer, list[dict[str, Any]]] = {
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
def test_what_one_layer_depends_on(make_setting: Make, layer: plan.Layer) -> None:
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
    method = Method(name="m", module="leaveout.attribution.if_cg", grid=({},))
    points = [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 1.0}, {"y": 2.0, "x": 1.0}]
    one, two, again = (plan.attribute_key(a, method, dict(point)) for point in points)
    assert one != two
    assert one == again  # a dictionary has no order


def test_metrics_depend_on_method_and_draws(make_setting: Make) -> None:
    found = {
        plan.evaluate_key(make_setting(seed=seed), metric, name, bootstrap)
        for seed in (1, 2)
        for metric in ("lds", "loo")
        for name in ("a", "b")
        for bootstrap in (100, 200)
    }
    assert len(found) == 16


def test_attribution_depends_on_the_methods_own_code(make_setting: Make) -> None:
    one, other = (
        plan.attribute_key(
            make_setting(), Method(name="m", module=f"leaveout.attribution.{name}", grid=({},)), {}
        )
        for name in ("grad_dot", "if_cg")
    )
    assert one != other
    assert json.loads(one)["method_code"] != json.loads(other)["method_code"]


def test_a_damping_depends_on_what_models_the_retraining(make_setting: Make) -> None:
    method = Method(name="m", module="leaveout.attribution.if_cg", grid=({"damping": 1.0},))

    def key(metric: str, **changes: Any) -> str:
        return plan.damping_key(make_setting(**changes), metric, method)

    changes = {
        "recipe": {"recipe": {"momentum": 0.1}},
        "ratio": {"lds": {"ratio": 0.4}},
        "proximal": {"pbrf": {"damping": 0.2}},
        "more subsets": {"lds": {"subsets": 6}},
        "more runs": {"lds": {"runs": 3}},
    }
    matters = {"lds": {"recipe", "ratio"}, "loo": {"recipe"}, "pbrf": {"proximal"}}
    for metric, expected in matters.items():
        found = {name for name, c in changes.items() if key(metric, **c) != key(metric)}
        assert found == expected
    assert len({key(metric) for metric in matters}) == 3


def all_keys(setting: Setting) -> list[str]:
    method = Method(name="m", module="leaveout.attribution.if_cg", grid=({"damping": 1.0},))
    return [
        plan.prepare_key(setting),
        *(key for layer in LAYERS for key in keys(setting, layer)),
        plan.truth_key(setting, "lds"),
        plan.truth_key(setting, "loo"),
        plan.truth_key(setting, "pbrf"),
        plan.attribute_key(setting, method, {"damping": 1.0}),
        plan.evaluate_key(setting, "lds", "m", 100),
        plan.damping_key(setting, "lds", method),
        plan.report_key("table", "lds"),
        plan.report_key("table", "cost"),
        plan.report_key("tidy", "all"),
        plan.report_key("ranks", "all"),
        plan.report_key("published", "all"),
        plan.report_key("figure", "lds"),
    ]


def test_keys_hold_no_path_and_no_time(
    make_setting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = all_keys(make_setting())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert all_keys(make_setting()) == first
    for key in first:
        assert "/" not in key
        assert not re.search(r"\b20\d\d-", key)
        assert json.dumps(json.loads(key), sort_keys=True) == key
    assert len(set(first)) == len(first)


def test_the_key_of_a_truth_follows_what_it_joins(make_setting: Make) -> None:
    assert plan.truth_key(make_setting(), "lds") != plan.truth_key(
        make_setting(lds={"subsets": 6}), "lds"
    )
    assert plan.truth_key(make_setting(), "lds") == plan.truth_key(
        make_setting(lds={"chunk": 5}), "lds"
    )
    assert plan.prepare_key(make_setting()) != plan.prepare_key(make_setting(dataset={"mean": 0.5}))


def test_what_decides_the_prepared_data(make_setting: Make) -> None:
    def key(**changes: Any) -> str:
        return plan.prepare_key(make_setting(**changes))

    noise = {"label_noise": {"fraction": 0.1}}
    mnist = {"name": "mnist", "n_train": 30, "n_test": 6}
    different = [
        {},
        {"dataset": mnist},
        {"dataset": {"classes": (2, 4)}},
        {"dataset": {"classes": (4, 2)}},
        {"dataset": noise},
        {"dataset": {"label_noise": {"fraction": 0.2}}},
        {"dataset": noise, "seed": 4},
    ]
    assert len({key(**changes) for changes in different}) == len(different)
    # nothing is drawn without noise, and settings that share data share the draw
    assert key() == key(seed=4) == key(name="other", model={"name": "mlp", "hidden": [3]})
    assert key(dataset=noise) == key(dataset=noise, name="other")
    assert key(dataset=mnist) == key(dataset={**mnist, "source": "hub"})
