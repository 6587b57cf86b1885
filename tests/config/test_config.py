from __future__ import annotations

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import yaml
from snakemake.utils import update_config

from job_keys import train_key
from leaveout.config import (
    LAYERS,
    MAX_CHUNKS,
    ConfigError,
    Layer,
    Setting,
    grid_point,
    label,
    load_methods,
    load_setting,
    parse_config,
    select_methods,
)
from leaveout.data.identity import data_identity
from leaveout.retraining import items

ROOT = Path(__file__).parents[2]
SETTINGS = sorted((ROOT / "config" / "settings").glob("*.yaml"))
METHODS = ROOT / "config" / "methods.yaml"
SCHEMA = ROOT / "workflow" / "schemas" / "setting.schema.json"

BASE: dict[str, Any] = {
    "dataset": {"name": "digits", "n_train": 30, "n_test": 6},
    "model": {"name": "linear"},
    "recipe": {"learning_rate": 0.1, "epochs": 10, "batch_size": 8},
}


def setting(folder: Path, changes: dict[str, Any], name: str = "tiny") -> Setting:
    values = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        place, *rest = [values, *key.split(".")]
        for step in rest[:-1]:
            place = place.setdefault(step, {})
        place[rest[-1]] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_setting(path)


def message(folder: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        setting(folder, changes)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'tiny.yaml'}: ")
    assert "\n" not in text
    return text.removeprefix(f"{folder / 'tiny.yaml'}: ")


MLP = {"name": "mlp", "hidden": [4]}


@pytest.mark.parametrize(
    ("changes", "key", "nearest"),
    [
        ({"sede": 1}, "sede", "seed"),
        ({"receipe": {}}, "receipe", "recipe"),
        ({"dataset.n_trian": 5}, "dataset.n_trian", "n_train"),
        ({"model": {**MLP, "dropuot": 0.1}}, "model.dropuot", "dropout"),
        (
            {"model": {"name": "cnn", "channels": [2], "batchnorm": True}},
            "model.batchnorm",
            "batch_norm",
        ),
        ({"recipe.learning_rat": 1}, "recipe.learning_rat", "learning_rate"),
        ({"full.checkpoint": 2}, "full.checkpoint", "checkpoints"),
        ({"half.ratoi": 0.5}, "half.ratoi", "ratio"),
        ({"lds.subset": 3}, "lds.subset", "subsets"),
        ({"loo.replicates": 3}, "loo.replicates", "replicate"),
        ({"pbrf.dampening": 3}, "pbrf.dampening", "damping"),
    ],
)
def test_an_unknown_key_names_file_key_and_nearest(
    tmp_path: Path, changes: dict[str, Any], key: str, nearest: str
) -> None:
    text = message(tmp_path, changes)
    assert text.startswith(f"{key}: unknown key; did you mean {nearest!r}? Valid: ")


def test_the_valid_keys_are_those_of_that_place(tmp_path: Path) -> None:
    assert message(tmp_path, {"model.hidden": [3]}) == "model.hidden: unknown key. Valid: name"
    found = message(tmp_path, {"model": {**MLP, "qqqq": 1}})
    assert found == "model.qqqq: unknown key. Valid: name, hidden, dropout, activation"
    assert "name," not in message(tmp_path, {"qqqq": 1})  # a setting is named by its file


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lds.ratio": -0.5}, "lds.ratio: Input should be greater than 0 (got -0.5)"),
        ({"half.ratio": 1}, "half.ratio: Input should be less than 1 (got 1)"),
        ({"lds.ratio": 0.01}, "lds.ratio: 0.01 of 30 samples is none"),
        ({"recipe.epochs": 0}, "recipe.epochs: Input should be greater than 0 (got 0)"),
        ({"recipe.epochs": 1.5}, "recipe.epochs: "),
        ({"recipe.learning_rate": "fast"}, "recipe.learning_rate: "),
        ({"recipe.learning_rate": float("nan")}, "recipe.learning_rate: "),
        ({"recipe.learning_rate": float("inf")}, "recipe.learning_rate: "),
        ({"dataset.mean": float("nan")}, "dataset.mean: "),
        ({"recipe.momentum": 1}, "recipe.momentum: Input should be less than 1 (got 1)"),
        ({"dataset.std": 0}, "dataset.std: Input should be greater than 0 (got 0)"),
        ({"lds.subsets": 2}, "lds.subsets: Input should be greater than 2 (got 2)"),
        ({"full.checkpoints": 11}, "full.checkpoints: 11 is more than recipe.epochs = 10"),
        ({"loo.ids": [3, 30]}, "loo.ids: [30] lie outside the training slice 0..29 (dataset.n_tr"),
        ({"loo.ids": [-1, 3]}, "loo.ids: [-1] lie outside the training slice 0..29"),
        ({"loo.ids": {"first": 31}}, "loo.ids.first: 31 is more than dataset.n_train = 30"),
        ({"pbrf.ids": [3, 30]}, "pbrf.ids: [30] lie outside the training slice 0..29 (dataset.n_"),
        ({"pbrf.ids": {"first": 31}}, "pbrf.ids.first: 31 is more than dataset.n_train = 30"),
        ({"brittleness": {"k": [5, 30]}}, "brittleness.k: 30 leaves nothing of dataset.n_train"),
        (
            {"brittleness": {"k": [5, 3]}},
            "brittleness.k: must ascend, each number once; got [5",
        ),
        ({"brittleness": {"k": [5], "runs": 99}}, "brittleness.runs: 99 is more than full.runs = "),
        ({"brittleness": {"k": [5], "kk": 1}}, "brittleness.kk: unknown key; did you mean 'k'"),
        ({"pbrf.damping": 0}, "pbrf.damping: Input should be greater than 0 (got 0)"),
        ({"pbrf.steps": 0}, "pbrf.steps: Input should be greater than 0 (got 0)"),
        ({"pbrf.tolerance": 0}, "pbrf.tolerance: Input should be greater than 0 (got 0)"),
        (
            {"pbrf.solver": "newton"},
            "pbrf.solver: unknown value 'newton'; did you mean 'newton_cg'",
        ),
        (
            {
                "pbrf.ids": {"first": 2500},
                "dataset": {"name": "mnist", "n_train": 3000, "n_test": 9},
                "pbrf.chunk": 1,
            },
            "pbrf.chunk: 2600 in chunks of 1 need 2600 jobs",
        ),
        ({"dataset.name": "minst"}, "dataset.name: unknown value 'minst'; did you mean 'mnist'?"),
        ({"dataset.source": "hbu"}, "dataset.source: unknown value 'hbu'; did you mean 'hub'?"),
        ({"dataset.source": "hub"}, "dataset.source: digits has no source 'hub'"),
        (
            {"dataset.name": "fashion_mnist", "dataset.source": "hub"},
            "dataset.source: fashion_mnist has no source 'hub'. Valid: bundled, idx",
        ),
        (
            {"dataset.classes": [2, 12]},
            "dataset.classes: digits has no class 12; the nearest is 9. Valid: 0 to 9",
        ),
        ({"dataset.classes": [-1, 2]}, "dataset.classes: digits has no class -1; the nearest is 0"),
        ({"dataset.classes": [2, 2]}, "dataset.classes: the classes must be distinct, and two at"),
        ({"dataset.classes": [2]}, "dataset.classes: the classes must be distinct, and two at"),
        ({"dataset.classes": []}, "dataset.classes: the classes must be distinct, and two at"),
        ({"dataset.classes": "all"}, "dataset.classes: "),
        ({"dataset.label_noise": {"fraction": 0}}, "dataset.label_noise.fraction: Input should be"),
        ({"dataset.label_noise": {"fraction": 1.1}}, "dataset.label_noise.fraction: Input should"),
        (
            {"dataset.label_noise": {"fraction": 0.01}},
            "dataset.label_noise: fraction: 0.01 of 30 samples is none",
        ),
        (
            {"dataset.label_noise": {"fraction": 0.1, "fractoin": 0.1}},
            "dataset.label_noise.fractoin: unknown key; did you mean 'fraction'?",
        ),
        ({"lds.pairing": "mask"}, "lds.pairing: unknown value 'mask'. Valid: none, drop"),
        ({"recipe.optimizer": "adan"}, "recipe.optimizer: "),
        ({"model": {**MLP, "hidden": []}}, "model.hidden: "),
        ({"model": {**MLP, "hidden": [4, -1]}}, "model.hidden.1: "),
        ({"model": {"hidden": [4]}}, "model: expected a `name`, or a `module` of yours"),
        ({"model": {"name": "mpl"}}, "model.name: unknown value 'mpl'; did you mean 'mlp'? "),
        ({"name": "other"}, "name: unknown key; a setting is named by its file"),
        (
            {"lds.subsets": 10_000, "lds.runs": 1, "lds.chunk": 1},
            "lds.chunk: 10000 in chunks of 1 need 10000 jobs",
        ),
        ({"lds.runs": 2001}, "lds.runs: 2001 runs need a job each at least, at most 2000 are"),
        ({"full.runs": 3000, "full.chunk": 1}, "full.chunk: 3000 in chunks of 1 need 3000 jobs"),
        ({"lds.chunk": 0}, "lds.chunk: Input should be greater than 0 (got 0)"),
        ({"lds.chunk": 1.5}, "lds.chunk: Input should be a valid integer"),
        ({"lds.chunk": "auto"}, "lds.chunk: Input should be a valid integer"),
        ({"grids": {"If_cg": {}}}, "grids: 'If_cg' is no name: a name has lower-case letters"),
        ({"hardware": "tpu"}, "hardware: unknown value 'tpu'"),
    ],
)
def test_bad_values(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert message(tmp_path, changes).startswith(expected)


@pytest.mark.parametrize("layer", ["loo", "pbrf"])
@pytest.mark.parametrize("ids", [[1, 1], []])
def test_left_out_ids_are_distinct_and_some(tmp_path: Path, layer: str, ids: list[int]) -> None:
    with pytest.raises(ConfigError, match=rf"{layer}\.ids.*the ids must be distinct, and one at l"):
        setting(tmp_path, {f"{layer}.ids": ids})


@pytest.mark.parametrize("layer", ["loo", "pbrf"])
@pytest.mark.parametrize("ids", ["some", {"frist": 3}, {"spaced": 1}, 3])
def test_ids_of_no_known_form_name_the_key(tmp_path: Path, layer: str, ids: Any) -> None:
    with pytest.raises(ConfigError, match=rf"tiny.yaml: {layer}\.ids"):
        setting(tmp_path, {f"{layer}.ids": ids})


def test_the_bound_on_chunks_says_what_would_do(tmp_path: Path) -> None:
    changes = {"lds.subsets": MAX_CHUNKS * 3 + 1, "lds.runs": 1, "lds.chunk": 3}
    text = message(tmp_path, changes)
    assert text.endswith("set lds.chunk to at least 4")
    setting(tmp_path, {**changes, "lds.chunk": 4})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"full.runs": 10**9}, "full.runs: 1000000000 trainings, at most 1000000 are allowed"),
        ({"full.runs": 10**9, "full.chunk": 10**6}, "full.runs: 1000000000 trainings, at most"),
        ({"half.runs": 10**30}, "half.runs: 1"),
        ({"lds.subsets": 10**12}, "lds.subsets: 2000000000000 trainings, at most"),
        ({"lds.runs": 10**12}, "lds.runs: 1000000000000 runs need a job each at least"),
        ({"loo.ids": {"first": 10**12}}, "loo.ids.first: 1000000000000 is more than dataset.n_tr"),
        ({"dataset.n_train": 10**12}, "loo.ids: 1000000000500 trainings, at most 1000000 are"),
        (
            {"dataset.n_train": 10**12, "loo.ids": {"first": 10**11}, "loo.replicate": 10**11},
            "loo.ids: 200000000000 trainings, at most 1000000 are allowed; ask for fewer",
        ),
        (
            {"dataset.n_train": 10**12, "loo.ids": [5], "pbrf.ids": {"spaced": 10**9}},
            "pbrf.ids: 1000000100 trainings, at most 1000000 are allowed",
        ),
    ],
)
def test_what_is_far_too_much_is_refused_before_it_is_listed(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    tracemalloc.start()
    try:
        text = message(tmp_path, changes)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert text.startswith(expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_trainings_are_counted_as_they_are_listed(tmp_path: Path, layer: Layer) -> None:
    for changes in (
        {},
        {"full.runs": 1},
        {"loo.ids": {"first": 7}, "loo.replicate": 9, "pbrf.ids": {"spaced": 7}},
        {"loo.ids": {"spaced": 40}, "loo.replicate": 0, "pbrf.ids": [3, 1], "pbrf.replicate": 1},
    ):
        made = setting(tmp_path, changes)
        listed = items.items(made, layer)
        if layer in ("full", "half"):
            assert made.counts(layer) == (len(listed),)
            continue
        runs = [run for _, run in listed]
        assert made.counts(layer) == tuple(runs.count(run) for run in sorted({*runs}))


def test_replicated_trainings_count_towards_the_chunks(tmp_path: Path) -> None:
    # 1500 + 1500 chunks of one id each are more than may be
    big = {"dataset.name": "mnist", "dataset.n_train": 1500, "loo.chunk": 1, "loo.replicate": 1500}
    assert message(tmp_path, big).endswith("set loo.chunk to at least 2")
    setting(tmp_path, {**big, "loo.chunk": 2})


def test_1e_3_is_a_number_though_yaml_reads_text(tmp_path: Path) -> None:
    assert yaml.safe_load("1e-3") == "1e-3"
    found = setting(tmp_path, {"recipe.learning_rate": "1e-3", "recipe.weight_decay": "1e-4"})
    assert (found.recipe.learning_rate, found.recipe.weight_decay) == (1e-3, 1e-4)


def test_several_errors_come_together_each_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        setting(tmp_path, {"lds.ratio": -1, "sede": 2})
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{tmp_path / 'tiny.yaml'}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected keys and values, found list"),
        ("", "expected keys and values, found NoneType"),
        ("\x00", "not valid YAML"),
    ],
)
def test_what_is_no_mapping(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"tiny\.yaml: {expected}"):
        load_setting(path)


def test_a_missing_setting_names_the_nearest(tmp_path: Path) -> None:
    setting(tmp_path, {}, "mnist_lr")
    with pytest.raises(ConfigError, match=r"mnist_rl.yaml: no such file; did you mean 'mnist_lr'"):
        load_setting(tmp_path / "mnist_rl.yaml")


@pytest.mark.parametrize("name", ["Tiny", "a-b", "1a", "a b"])
def test_a_name_that_would_not_do_in_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a setting's name has lower-case letters"):
        setting(tmp_path, {}, name)


@pytest.mark.parametrize(
    ("epochs", "kept", "expected"),
    [
        (10, 10, tuple(range(1, 11))),
        (10, 1, (10,)),
        (10, 3, (4, 7, 10)),
        (20, 10, tuple(range(2, 21, 2))),
    ],
)
def test_checkpoints_are_even_and_end_at_the_end(
    tmp_path: Path, epochs: int, kept: int, expected: tuple[int, ...]
) -> None:
    found = setting(tmp_path, {"recipe.epochs": epochs, "full.checkpoints": kept})
    assert found.checkpoint_epochs() == expected


@pytest.mark.parametrize("layer", ["loo", "pbrf"])
def test_ids_taken_out(tmp_path: Path, layer: Literal["loo", "pbrf"]) -> None:
    everything = tuple(range(30))
    for ids, expected in (
        ("all", everything),
        ({"first": 3}, (0, 1, 2)),
        ({"spaced": 4}, (0, 7, 15, 22)),
        ({"spaced": 30}, everything),
        ({"spaced": 31}, everything),
        ([9, 2], (9, 2)),
    ):
        made = setting(tmp_path, {f"{layer}.ids": ids, f"{layer}.replicate": 2})
        found, again = made.removed(layer)
        assert found == expected
        assert again == (found[0], found[len(found) // 2])
    default = setting(tmp_path, {"dataset.n_train": 1000})
    assert default.removed("loo")[0] == tuple(range(1000))
    assert default.removed("pbrf")[0] == tuple(range(0, 1000, 2))


def test_a_second_run_of_pbrf_needs_a_second_full_run(tmp_path: Path) -> None:
    for runs, count in ((1, 0), (2, 30)):
        found = setting(tmp_path, {"full.runs": runs})
        assert len(found.removed("pbrf")[1]) == count
        assert len(found.removed("loo")[1]) == 30


# the top-level configuration


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"settings": []}, "config: settings: "),
        ({}, "config: settings: "),
        ({"settings": ["a"], "metrics": ["ldss"]}, "config: metrics.0: unknown value 'ldss'; did"),
        ({"settings": ["a"], "bootstrap": 3}, "config: bootstrap: "),
        ({"settings": ["a"], "device": "gpu"}, "config: device: unknown value 'gpu'"),
        ({"settings": ["a"], "metric": ["lds"]}, "config: metric: unknown key; did you mean 'met"),
        (
            {"settings": ["a"], "setting": 1},
            "config: setting: unknown key; did you mean 'settings'",
        ),
    ],
)
def test_bad_top_level_values(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(values)
    assert str(caught.value).startswith(expected)


def test_methods_are_picked_in_the_order_asked_for() -> None:
    methods = load_methods(METHODS)
    asked = parse_config({"settings": ["a"], "methods": ["if_cg", "random"]})
    assert [m.name for m in select_methods(asked, methods)] == ["if_cg", "random"]
    everything = parse_config({"settings": ["a"]})
    assert [m.name for m in select_methods(everything, methods)] == list(methods)
    unknown = parse_config({"settings": ["a"], "methods": ["if_gc"]})
    with pytest.raises(ConfigError, match=r"methods: unknown method 'if_gc'; did you mean 'if_cg'"):
        select_methods(unknown, methods)


def test_a_configuration_can_give_a_method_another_grid() -> None:
    methods = load_methods(METHODS)
    given = {"if_cg": {"damping": ["1e-2", 5], "iterations": 3}, "grad_dot": None, "tracin": {}}
    found = select_methods(parse_config({"settings": ["a"], "methods": given}), methods)
    assert [m.name for m in found] == ["if_cg", "grad_dot", "tracin"]
    assert found[0].grid == (
        {"damping": 0.01, "iterations": 3},
        {"damping": 5.0, "iterations": 3},
    )
    assert found[0].module == methods["if_cg"].module
    assert found[1:] == [methods["grad_dot"], methods["tracin"]]


def test_a_configuration_can_give_a_setting_another_grid(tmp_path: Path) -> None:
    methods = load_methods(METHODS)
    a, b = (setting(tmp_path, {}, name) for name in "ab")
    given = {"a": {"if_explicit": {"damping": 7}, "grad_cos": None}, "b": {"magic": {}}}
    asked = parse_config(
        {"settings": ["a", "b"], "methods": ["if_explicit", "magic"], "grids": given}
    )
    assert select_methods(asked, methods, a) == [
        methods["if_explicit"].model_copy(update={"grid": ({"damping": 7.0},)}),
        methods["magic"],
    ]
    assert select_methods(asked, methods, b) == [methods["if_explicit"], methods["magic"]]
    odd = parse_config({"settings": ["a"], "grids": {"a": {"if_explicit": {"dampnig": 1}}}})
    with pytest.raises(ConfigError, match=r"grids: a: if_explicit\.dampnig: unknown key; did you"):
        select_methods(odd, methods, a)
    odd = parse_config({"settings": ["b"], "grids": {"a": {"if_gc": {}}}})
    with pytest.raises(ConfigError, match="grids: a: unknown method 'if_gc'; did you mean 'if_cg'"):
        select_methods(odd, methods, b)


def test_a_setting_has_grids_that_a_configuration_replaces(tmp_path: Path) -> None:
    methods = load_methods(METHODS)
    grids = {"if_explicit": {"damping": 7}, "rps_l2": {"l2": "1e-1"}, "magic": None}
    a, b = setting(tmp_path, {"grids": grids}, "a"), setting(tmp_path, {}, "b")
    names = ["if_explicit", "rps_l2", "magic"]

    def grid_of(of: Setting, **values: Any) -> list[Any]:
        found = select_methods(parse_config({"settings": ["a", "b"], **values}), methods, of)
        return [{m.name: m for m in found}[name].grid for name in names]

    whole = [methods[name].grid for name in names]
    own = [({"damping": 7.0},), ({"l2": 0.1},), methods["magic"].grid]
    assert grid_of(a) == grid_of(a, methods=names) == own
    assert grid_of(b) == whole
    given = dict.fromkeys(names) | {"if_explicit": {"damping": 5}}
    assert grid_of(a, methods=given) == [({"damping": 5.0},), *own[1:]]
    named = {"a": {"if_explicit": {"damping": 3}}}
    assert grid_of(a, methods=given, grids=named) == [({"damping": 3.0},), *own[1:]]
    for wrong, expected in (
        ({"if_gc": {}}, r"odd: grids: unknown method 'if_gc'; did you mean 'if_cg'"),
        ({"if_cg": {"dampnig": 1}}, r"odd: grids: if_cg\.dampnig: unknown key; did you mean 'damp"),
        ({"if_explicit": 5}, r"odd: grids: if_explicit: expected hyper-parameters, got 5"),
    ):
        odd = setting(tmp_path, {"grids": wrong}, "odd")
        with pytest.raises(ConfigError, match=expected):
            select_methods(parse_config({"settings": ["odd"]}), methods, odd)


@pytest.mark.parametrize("layer", LAYERS)
def test_grids_change_no_training(tmp_path: Path, layer: Layer) -> None:
    keys = []
    for grids in ({}, {"if_explicit": {"damping": 7}}):
        made = setting(tmp_path, {"grids": grids})
        keys.append([train_key(made, layer, name) for name in items.chunks(made, layer)])
    assert keys[0] == keys[1]


NO_NAMES = [
    "a;touch pwned;b/digits_lr",
    "../settings/digits_lr",
    "./digits_lr",
    "/a",
    "A",
    "",
    "a b",
]


@pytest.mark.parametrize("name", [*NO_NAMES, "a\n", "\N{LATIN SMALL LETTER A WITH ACUTE}", "1a"])
@pytest.mark.parametrize(
    "key", ["settings", "grids", "methods", "compare", "show", "brittleness", "name", "mapping"]
)
def test_names_that_would_not_do_in_paths_and_commands(name: str, key: str) -> None:
    values: dict[str, Any] = {"settings": ["a"]}
    values |= {
        "settings": {"settings": ["b", name]},
        "mapping": {"settings": {"b": None, name: ["lds"]}},
        "grids": {"grids": {name: {}}},
        "compare": {"compare": ["b", name]},
        "name": {"name": name},
    }.get(key, {key: [name]})
    with pytest.raises(
        ConfigError, match="a name has lower-case letters, digits and _ only"
    ) as told:
        parse_config(values)
    where = "settings" if key == "mapping" else key
    assert str(told.value).startswith(f"config: {where}: {name!r} is no name")


@pytest.mark.parametrize(
    "key", ["settings", "methods", "show", "brittleness", "compare", "metrics"]
)
def test_a_name_given_twice(key: str) -> None:
    with pytest.raises(ConfigError, match=f"config: {key}: lds, lds: a name stands there twice"):
        parse_config({"settings": ["a"], key: ["lds", "lds"]})


def test_a_configuration_is_named_by_no_folder_of_results(tmp_path: Path) -> None:
    assert parse_config({"settings": ["a"]}).name is None
    assert parse_config({"settings": ["a"], "name": "b2"}).name == "b2"
    for name in ("figures", "pages"):
        with pytest.raises(ConfigError, match=f"config: name: results/{name} is there already"):
            parse_config({"settings": ["a"], "name": name})
        with pytest.raises(ConfigError, match=rf"{name}\.yaml: results/{name} is there already"):
            setting(tmp_path, {}, name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"if_gc": None}, "methods: unknown method 'if_gc'; did you mean 'if_cg'"),
        ({"if_cg": {"dampnig": 1}}, "methods: if_cg.dampnig: unknown key; did you mean 'damping'"),
        ({"if_cg": {"damping": 1}}, "methods: if_cg.iterations: missing"),
        ({"if_explicit": {"damping": "soft"}}, "methods: if_explicit.damping: expected float"),
        ({"if_explicit": {"damping": []}}, "methods: if_explicit: the grid is empty"),
        ({"if_explicit": 5}, "methods: if_explicit: expected hyper-parameters, got 5"),
        ({"if_explicit": {"module": "x"}}, "methods: if_explicit.module: unknown key"),
        ({"if_explicit": {"damping": 0.12345678}}, "damping=0.123457 is not quite what was given"),
        (["if_cg", "if_cg"], "methods: if_cg, if_cg: a name stands there twice"),
        ("al", "methods: unknown value 'al'; did you mean 'all'"),
        (5, "methods: Input should be a valid tuple (got 5)"),
    ],
)
def test_a_configuration_with_bad_methods(given: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select_methods(parse_config({"settings": ["a"], "methods": given}), load_methods(METHODS))
    assert str(caught.value).startswith("config: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["damping=0.03+iterations=7", "damping=1e+06+iterations=1"])
def test_a_label_off_the_grid_is_read_back(text: str) -> None:
    method = load_methods(METHODS)["if_cg"]
    point = grid_point(method, text)
    assert label(point) == text
    assert [type(value) for value in point.values()] == [float, int]


def test_a_label_of_the_grid_is_its_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path, monkeypatch, "own_labels", OWN.format(needs=""))
    text = "mine: {module: own_labels, steps: [1, 2], kind: [a, b.c], fast: [true, false]}"
    method = methods(tmp_path, text)["mine"]
    for point in method.grid:
        assert grid_point(method, label(point)) is point
        assert grid_point(method.model_copy(update={"grid": ()}), label(point)) == point


# methods and grids


def methods(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "methods.yaml"
    path.write_text(text)
    return load_methods(path)


@pytest.mark.parametrize("value", ["a,b", "a b", "a/b", "a'b", "$HOME"])
def test_a_value_that_no_cluster_command_could_carry(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "worded.py").write_text("def attribute(task, *, word: str = 'a'): ...\n")
    assert methods(tmp_path, "worded: {module: worded, word: [a-b, a.b]}")["worded"].grid
    with pytest.raises(ConfigError, match=r"worded: .word=.* is to be part of a file's name"):
        methods(tmp_path, f'worded: {{module: worded, word: "{value}"}}')


def test_a_grid_is_every_combination_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = methods(tmp_path, "if_cg: {damping: [1, 1e-3, 0.5], iterations: [10, 20]}")["if_cg"]
    assert [tuple(point.values()) for point in found.grid] == [
        (d, i) for d in (1.0, 0.001, 0.5) for i in (10, 20)
    ]
    assert {type(v) for p in found.grid for v in (p["damping"],)} == {float}
    assert label(found.grid[3]) == "damping=0.001+iterations=20"
    assert found.module == "leaveout.attribution.if_cg"
    assert found.needs == ("full",)


def test_a_method_without_parameters_has_one_point(tmp_path: Path) -> None:
    found = methods(tmp_path, "grad_dot:\ngrad_cos: {}\n")
    assert [m.grid for m in found.values()] == [({},), ({},)]
    assert label({}) == "default"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "if_cg: {dampnig: 1, iterations: 10}",
            "if_cg.dampnig: unknown key; did you mean 'damping",
        ),
        ("if_cg: {damping: 1}", "if_cg.iterations: missing"),
        ("if_cg: {damping: 1, iterations: 1.5}", "if_cg.iterations: expected int, got 1.5"),
        ("if_cg: {damping: 1, iterations: .inf}", "if_cg.iterations: expected int, got inf"),
        ("if_cg: {damping: soft, iterations: 1}", "if_cg.damping: expected float, got 'soft'"),
        ("if_cg: {damping: .nan, iterations: 1}", "if_cg.damping: expected float, got nan"),
        ("if_cg: {damping: true, iterations: 1}", "if_cg.damping: expected float, got True"),
        ("if_cg: {damping: [[1]], iterations: 1}", "if_cg.damping: expected float, got [1]"),
        ("if_cg: {damping: {a: 1}, iterations: 1}", "if_cg.damping: expected float"),
        ("if_cg: {damping: , iterations: 1}", "if_cg.damping: expected float, got None"),
        ("if_explicit: {damping: []}", "if_explicit: the grid is empty or repeats a value"),
        ("if_explicit: {damping: [1, 1.0]}", "if_explicit: the grid is empty or repeats a value"),
        ("if_explicit: {damping: [1e-3, 0.001]}", "if_explicit: the grid is empty or repeats a va"),
        ("grad_dto:", "grad_dto: no module leaveout.attribution.grad_dto; did you mean 'grad_dot'"),
        ("rum:", "rum: no module leaveout.attribution.rum"),
        ("grad_dot: {module: leaveout.nowhere}", "grad_dot: no module leaveout.nowhere"),
        ("grad_dot: {module: no.where.at_all}", "grad_dot: no module no.where.at_all"),
        ("grad_dot: {module: ''}", "grad_dot: no module "),
        ("grad_dot: {module: 5}", "grad_dot: no module 5"),
        ("grad_dot: {module: .x}", "grad_dot: no module .x"),
        ("grad_dot: 5", "grad_dot: expected hyper-parameters, got 5"),
        ("grad_dot: [a]", "grad_dot: expected hyper-parameters, got ['a']"),
        ("grad_dot: {1: 2}", "grad_dot.1: unknown key"),
        ("Grad: ", "Grad: a method's name has lower-case letters"),
        ("3: ", "3: a method's name has lower-case letters"),
    ],
)
def test_bad_methods(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        methods(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'methods.yaml'}: {expected}")


def test_no_helper_module_is_offered_as_a_method(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        methods(tmp_path, "tusk:")
    valid = str(caught.value).rpartition("Valid: ")[2].split(", ")
    modules = {method.module.rpartition(".")[2] for method in load_methods(METHODS).values()}
    assert valid == sorted(modules)


OWN = '''
from leaveout.attribution.task import Task

{needs}

def attribute(task: Task, *, steps: int, kind: str = "a", fast: bool = False):
    """Score."""
'''


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ("", ("full",)),
        ('NEEDS = ("full", "half")', ("full", "half")),
        ('NEEDS: tuple[str, ...] = ("half",)', ("half",)),
    ],
)
def test_a_method_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: str, expected: tuple[str, ...]
) -> None:
    module = f"own_method_{len(needs)}"
    own(tmp_path, monkeypatch, module, OWN.format(needs=needs))
    found = methods(tmp_path, f"mine: {{module: {module}, steps: 3, fast: [true, false]}}")["mine"]
    assert found.needs == expected
    assert found.version == 1
    assert found.grid == ({"steps": 3, "fast": True}, {"steps": 3, "fast": False})
    assert module not in sys.modules  # read, never run


@pytest.mark.parametrize("line", ["VERSION = 3", "VERSION: int = 3", "VERSION = 2\nVERSION = 3"])
def test_a_method_has_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    own(tmp_path, monkeypatch, f"versioned{len(line)}", OWN.format(needs=line))
    text = f"mine: {{module: versioned{len(line)}, steps: 3}}"
    assert methods(tmp_path, text)["mine"].version == 3


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("own_empty", "x = 1", "own_empty.py: defines no function 'attribute'"),
        ("own_broken", "def attribute(:", "own_broken.py: line 1: "),
        ("own_typo", OWN.format(needs='NEEDS = ("halves",)'), "own_typo.py: NEEDS: unknown .*halv"),
        ("own_word", OWN.format(needs='NEEDS = "full"'), "own_word.py: NEEDS: unknown 'full'"),
        (
            "own_sum",
            OWN.format(needs="VERSION = 1 + 1"),
            "own_sum.py: VERSION: a whole number from",
        ),
        (
            "own_none",
            OWN.format(needs="VERSION = 0"),
            "own_none.py: VERSION: a whole number from 1",
        ),
        ("own_true", OWN.format(needs="VERSION = True"), "own_true.py: VERSION: a whole number fr"),
    ],
)
def test_a_broken_method_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: str
) -> None:
    own(tmp_path, monkeypatch, name, text)
    with pytest.raises(ConfigError, match=expected):
        methods(tmp_path, f"mine: {{module: {name}, steps: 3}}")


# what ships


def test_every_setting_stands_in_the_table_of_settings() -> None:
    table = (ROOT / "docs" / "settings.md").read_text().partition("## A setting of")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    named: list[str] = []
    for cell in cells:
        for name in re.findall(r"`(\w+)`", cell):
            ending = name.rpartition("_")[2]  # `_drop` is of the family of the name before it
            named.append(named[-1].rpartition("_")[0] + f"_{ending}" if name[0] == "_" else name)
    assert sorted(named) == [path.stem for path in SETTINGS]


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [
        ("mnist_lr_noise10", "mnist_lr"),
        ("mnist_mlp_noise10", "mnist_mlp"),
        ("fashion2_mlp_noise10", "fashion2_mlp"),
    ],
)
def test_settings_with_noise_are_the_clean_ones_but_for_sizes(noisy: str, clean: str) -> None:
    one, other = (load_setting(ROOT / f"config/settings/{name}.yaml") for name in (noisy, clean))
    assert one.dataset.label_noise is not None
    assert one.dataset.model_copy(update={"label_noise": None}) == other.dataset
    for section in ("seed", "model", "recipe", "full", "half", "lds"):
        assert getattr(one, section) == getattr(other, section)


def test_noisy_settings_on_mnist_share_the_prepared_samples() -> None:
    names = ("mnist_lr_noise10", "mnist_mlp_noise10", "mnist_lr")
    first, second, clean = (load_setting(ROOT / f"config/settings/{n}.yaml") for n in names)
    assert data_identity(first) == data_identity(second) != data_identity(clean)


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_shipped_settings_load_and_fit_the_editors_schema(path: Path) -> None:
    assert load_setting(path).name == path.stem
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    values = yaml.safe_load(path.read_text())
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "sede": 1}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "lds": {"ratio": -0.5}}, schema)
    assert "$schema=../../workflow/schemas/setting.schema.json" in path.read_text().splitlines()[0]


CONFIGURATIONS = sorted({*(ROOT / "config").glob("*.yaml")} - {ROOT / "config" / "causes.yaml"})


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: p.stem)
def test_shipped_configurations_load(path: Path) -> None:
    if path == METHODS:
        assert set(load_methods(path)) >= {
            "random",
            "grad_dot",
            "grad_cos",
            "tracin",
            "tracin_cp",
            "if_explicit",
            "if_cg",
        }
        return
    config = parse_config(yaml.safe_load(path.read_text()), path)
    # `make results PANEL=NAME` runs config/NAME.yaml, whose tables go to results/NAME
    assert config.name == (None if path.stem == "config" else path.stem)
    header = path.read_text().split("\n\n")[0]
    assert "make results" + (f" PANEL={config.name}" if config.name else " ") in header
    for name in config.settings:
        chosen = load_setting(ROOT / "config" / "settings" / f"{name}.yaml")
        assert select_methods(config, load_methods(METHODS), chosen)


def test_the_whole_is_the_published_panels() -> None:
    """Each published panel has a configuration of its own, and `all` has them side by side."""
    every, *panels = (
        parse_config(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text()))
        for name in ("all", "config", "mnist_mlp", "mnist_lr_noise10", "mnist_mlp_noise10")
    )
    asked = {name: panel.metrics_of(name) for panel in panels for name in panel.settings}
    assert asked == {name: every.metrics_of(name) for name in every.settings}
    for panel in panels:
        assert (panel.methods, panel.grids) == (every.methods, every.grids) == ("all", {})
        assert (panel.bootstrap, panel.device) == (every.bootstrap, every.device)


def test_panels_stay_themselves_over_the_default_configuration() -> None:
    """Snakemake merges mappings of a --configfile into those of config/config.yaml."""
    default = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    for path in CONFIGURATIONS:
        if path == METHODS:
            continue
        merged = json.loads(json.dumps(default))
        alone = yaml.safe_load(path.read_text())
        update_config(merged, alone)
        wanted = parse_config(alone)
        found = parse_config(merged)
        assert found.name == wanted.name
        assert [*found.settings] == [*wanted.settings]
        assert [found.metrics_of(n) for n in found.settings] == [
            wanted.metrics_of(n) for n in wanted.settings
        ]


def test_the_shipped_schema_is_the_commands_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leaveout", "schema"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == SCHEMA.read_text()


def test_the_published_setting_is_the_papers() -> None:
    found = load_setting(ROOT / "config" / "settings" / "mnist_lr.yaml")
    assert (found.dataset.n_train, found.dataset.n_test) == (5000, 500)
    assert (found.full.runs, found.half.runs, found.lds.subsets, found.lds.runs) == (10, 50, 100, 2)
    assert found.removed("loo")[0] == tuple(range(5000))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("seed: 0\nrecipe: {epochs: 2, epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml: .*'epochs' is given twice"):
        load_setting(path)


def test_a_setting_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"settings: a, a: a name stands there twice"):
        parse_config({"settings": ["a", "a"]})
