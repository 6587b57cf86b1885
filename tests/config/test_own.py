from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from leaveout.config import ConfigError, Setting, load_setting
from leaveout.config.defaults import resolved
from leaveout.config.own import source_of
from leaveout.workflow.steps import load_plan

RECIPE = {"learning_rate": 0.1, "epochs": 10, "batch_size": 8}
MODULE = """
raise SystemExit("this module must not be run")

def data(n_train, n_test, side: int = 8, *, noise: float = 0.1, more=None):
    ...

def model(width: int, input_shape=None, **more):
    ...

def objective(kind="a"):
    ...
"""

Load = Callable[..., Setting]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Give a function that loads a setting, with a module `lab.concrete` beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "concrete.py").write_text(MODULE)

    def made(**sections: Any) -> Setting:
        base: dict[str, Any] = {
            "dataset": {"module": "lab.concrete", "n_train": 30, "n_test": 6},
            "model": {"module": "lab.concrete", "width": 3},
            "recipe": RECIPE,
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**base, **sections}))
        return load_setting(path)

    yield made
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]


def message(load: Load, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(**sections)
    return str(caught.value).partition("tiny.yaml: ")[2]


def data(**more: Any) -> dict[str, Any]:
    return {"module": "lab.concrete", "n_train": 30, "n_test": 6, **more}


def test_a_module_is_found_where_the_command_is_run_and_not_imported(load: Load) -> None:
    found = load(dataset=data(side=5, noise="1e-3", more=[1, {"a": None}]))
    assert found.dataset.keywords == {"side": 5, "noise": 0.001, "more": [1, {"a": None}]}
    assert (found.dataset.name, found.dataset.function) == ("lab.concrete", "data")
    assert (found.dataset.n_train, found.dataset.n_test) == (30, 6)
    assert found.model.keywords == {"width": 3}
    assert "lab.concrete" not in sys.modules
    assert resolved(found)["dataset"]["side"] == 5


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"dataset": data(sied=3)}, "dataset: sied: unknown key, lab.concrete.data does not take "),
        ({"dataset": data(sied=3)}, "; did you mean 'side'? Valid: side, noise, more"),
        ({"dataset": data(noise="loud")}, "dataset: noise: expected float, got 'loud'"),
        ({"dataset": data(more=float("nan"))}, "dataset: more: nan is no plain, finite value"),
        ({"dataset": {"module": "lab.concrete", "n_test": 6}}, "dataset.n_train: Field required"),
        ({"dataset": data(n_train=1)}, "dataset.n_train: Input should be greater than 1"),
        ({"dataset": data(module="lab.concerte")}, "dataset: module: no Python file is found for "),
        ({"dataset": data(module="lab.concerte")}, "PYTHONPATH"),
        (
            {"dataset": data(module="../lab")},
            "dataset: module: no Python file is found for '../lab",
        ),
        ({"dataset": data(module=3)}, "dataset.module: "),
        ({"dataset": {"n_train": 30, "n_test": 6}}, "dataset.name: "),
        ({"model": {"module": "lab.concrete"}}, "model: width: missing, lab.concrete.model needs"),
        ({"model": {}}, "model: expected a `name`, or a `module` of yours"),
        (
            {"model": {"name": "resnet"}},
            "model.name: unknown value 'resnet'; did you mean 'resnet9'",
        ),
        ({"objective": {"module": "lab.concrete", "knid": 1}}, "did you mean 'kind'"),
        ({"objective": {"name": "cross_entropi"}}, "did you mean 'cross_entropy'"),
        (
            {"objective": {"name": "cross_entropy", "wieght": [1]}},
            "objective.wieght: unknown key; did",
        ),
        ({"objective": {"name": "squared_error", "weight": [1]}}, "Valid: name"),
        (
            {"objective": {"name": "cross_entropy", "measure": "los"}},
            "objective.measure: unknown val",
        ),
    ],
)
def test_what_is_wrong_names_key_and_remedy(
    load: Load, sections: dict[str, Any], expected: str
) -> None:
    assert expected in message(load, **sections)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def daat(): ...", "defines no function `data`; define it there"),
        ("def data(:", "line 1: "),
        ("data: int", "defines no function `data`"),
        ("class data: ...", ""),
        ("from elsewhere import make as data", ""),
        ("data = print", ""),
        ("def data(*, n_train, **more): ...", ""),
    ],
)
def test_a_module_defines_the_function(load: Load, text: str, expected: str) -> None:
    Path("lab/other.py").write_text(text)
    dataset = data(module="lab.other", anything=1)
    if not expected:
        assert load(dataset=dataset).dataset.name == "lab.other"
    else:
        assert expected in message(load, dataset=dataset)


def test_a_loss_alone_is_an_objective(load: Load) -> None:
    Path("lab/other.py").write_text("def loss(outputs, targets, power: int = 2): ...")
    found = load(objective={"module": "lab.other", "power": 3}).objective
    assert (found.function, found.keywords) == ("loss", {"power": 3})
    assert "outputs: unknown key" not in message(load, objective={"module": "lab.other", "x": 3})
    Path("lab/other.py").write_text("def loss(a, b, power): ...")
    assert "power: missing" in message(load, objective={"module": "lab.other"})


def test_a_package_on_the_path_goes_before_the_working_folder(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib" / "lab2").mkdir(parents=True)
    (tmp_path / "lib" / "lab2" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "lib" / "lab2" / "nets.py").write_text("def model(): ...")
    (tmp_path / "lab2.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    assert source_of("lab2.nets") == tmp_path / "lib" / "lab2" / "nets.py"
    assert source_of("lab2") == tmp_path / "lib" / "lab2" / "__init__.py"
    assert load(model={"module": "lab2.nets"}).model.name == "lab2.nets"


@pytest.mark.parametrize("name", ["numpy", "json.decoder", "sys", "lab", "lab.nothing", "a b", ""])
def test_files_of_modules(load: Load, name: str) -> None:
    found = source_of(name)
    assert (found is not None) == (name in ("numpy", "json.decoder"))


@pytest.mark.parametrize(
    ("dataset", "objective", "expected"),
    [
        (
            "diabetes",
            None,
            "objective: cross_entropy takes classes, and the targets of diabetes are",
        ),
        ("diabetes", {"name": "squared_error"}, ""),
        ("wine", {"name": "binary_cross_entropy"}, "takes two classes, wine has 3"),
        ("breast_cancer", {"name": "binary_cross_entropy"}, ""),
        ("digits", {"name": "multi_label"}, "takes several targets a sample, digits has one"),
        ("wine", {"name": "token_cross_entropy"}, "takes several targets a sample"),
        ("wine", {"name": "cross_entropy", "weight": [1, 2]}, "2 weights for 3 classes"),
        ("wine", {"name": "cross_entropy", "weight": [1, 2, 3]}, ""),
        ("wine", {"name": "cross_entropy", "weight": [1, -2, 3]}, "objective.weight.1: "),
    ],
)
def test_objectives_fit_the_targets(
    load: Load, dataset: str, objective: Any, expected: str
) -> None:
    sections: dict[str, Any] = {"dataset": {"name": dataset, "n_train": 30, "n_test": 6}}
    sections |= {"model": {"name": "linear"}} | ({"objective": objective} if objective else {})
    if expected:
        assert expected in message(load, **sections)
    else:
        assert load(**sections).objective.name == objective["name"]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"name": "diabetes", "classes": [0, 1]}, "dataset.classes: diabetes has none"),
        (
            {"name": "diabetes", "label_noise": {"fraction": 0.5}},
            "label_noise: diabetes has no lab",
        ),
        ({"name": "wine", "mean": 0.5}, "mean: wine is standardised already"),
        ({"name": "wine", "source": "hub"}, "wine has no source 'hub'"),
        ({"name": "wine", "classes": [0, 3]}, "wine has no class 3"),
    ],
)
def test_tables_have_keys_of_their_own(load: Load, dataset: Any, expected: str) -> None:
    found = message(
        load,
        dataset={"n_train": 30, "n_test": 6, **dataset},
        model={"name": "linear"},
        objective={"name": "squared_error"},
    )
    assert expected in found


def test_planning_six_problems_loads_neither_torch_nor_a_users_module() -> None:
    code = """
import sys
from pathlib import Path
from leaveout.config import load_yaml
from leaveout.workflow.steps import load_plan
for name in ("problems", "problems_bert"):
    plan = load_plan(load_yaml(Path(f"config/{name}.yaml")), "config")
    assert all(job.key for job in plan.jobs)
print(sorted({"torch", "examples", "transformers", "sklearn"} & {*sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("squared_error", "samples of squared_error have none; remove it"), ("cross_entropy", "")],
)
def test_flips_are_of_classes(load: Load, name: str, expected: str) -> None:
    sections = {"objective": {"name": name}, "brittleness": {"k": [2], "runs": 1}}
    if expected:
        assert expected in message(load, **sections)
    else:
        assert load(**sections).has_classes
    assert load(objective={"module": "lab.concrete"}).has_classes  # as far as is known


def test_subgroups_are_of_classes(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config" / "settings").mkdir(parents=True)
    (tmp_path / "config" / "methods.yaml").write_text("grad_dot:\n")
    for name, objective in (("one", "squared_error"), ("two", "cross_entropy")):
        load(objective={"name": objective})
        Path("tiny.yaml").rename(tmp_path / "config" / "settings" / f"{name}.yaml")
    plan = load_plan({"settings": ["one", "two"], "subgroups": True}, "config")
    assert (plan.grouped("one"), plan.grouped("two")) == ([], ["lds", "loo"])
    with pytest.raises(ConfigError, match=r"subgroups: they are classes .* have none: one"):
        load_plan({"settings": ["one"], "subgroups": True}, "config")


@pytest.mark.parametrize(
    ("setting", "module"),
    [
        ("colour_resnet", "colour"),
        ("characters_gpt", "characters"),
        ("text_bert", "bert"),
        ("digits_labels", "several_labels"),
        ("diabetes_mlp", None),
        ("cancer_logistic", None),
    ],
)
def test_a_problem_takes_thirty_lines(setting: str, module: str | None) -> None:
    root = Path(__file__).parents[2]
    files = [root / "config" / "settings" / f"{setting}.yaml"]
    files += [root / "examples" / f"{module}.py"] if module else []
    lines = [line.strip() for file in files for line in file.read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith(("#", '"""'))]) <= 30
