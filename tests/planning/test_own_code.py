"""What a setting names of the user's own is in the keys of the jobs that run it, and no others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from leaveout.workflow import lock
from leaveout.workflow.digest import own_digest
from leaveout.workflow.plan import Plan
from leaveout.workflow.steps import load_plan

FILES = {
    "lab/__init__.py": "",
    "lab/clay.py": "from lab.tools import scale\ndef data(): ...\n",
    "lab/nets.py": "from .tools import scale\nfrom lab import blocks\n"
    "def model(width: int = 3): ...\n",
    "lab/losses.py": "import lab.deep.maths as maths\nfrom leaveout.problem import objectives\n"
    "def objective(power: float = 2.0): ...\n",
    "lab/tools.py": "scale = 1\n",
    "lab/blocks.py": "import unrelated_to_all, numpy.linalg\nblock = 1\n",
    "lab/deep/maths.py": "e = 2\n",  # no package: no __init__.py
    "lab/other.py": "nobody = 'reads this'\n",
}
SETTING: dict[str, Any] = {
    "dataset": {"module": "lab.clay", "n_train": 30, "n_test": 6},
    "model": {"module": "lab.nets"},
    "objective": {"module": "lab.losses"},
    "recipe": {"learning_rate": 0.1, "epochs": 10, "batch_size": 8},
    "full": {"runs": 3},
    "brittleness": {"k": [3], "runs": 1},
}
DATA = {"prepare"}
MODELS = {
    "train", "retrain_lds", "retrain_loo", "retrain_pbrf", "retrain_brittleness", "predict",
    "attribute", "damping",
}  # fmt: skip

Keys = Callable[..., dict[str, str]]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    """Give a function that plans a setting of one's own and returns all keys by file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("config/settings").mkdir(parents=True)
    Path("config/methods.yaml").write_text("grad_dot:\nif_cg: {damping: [1, 2], iterations: 3}\n")

    def found(**changes: Any) -> dict[str, str]:
        values = {k: v for k, v in {**SETTING, **changes}.items() if v is not None}
        Path("config/settings/clay.yaml").write_text(yaml.safe_dump(values))
        lock.look_again()
        metrics = ["lds", "loo", "pbrf", "brittleness"]
        plan: Plan = load_plan({"settings": ["clay"], "metrics": metrics}, "config")
        return {job.makes[0]: job.key for job in plan.jobs}

    yield found
    lock.look_again()


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Return the steps whose keys differ; all jobs of a step do, or none."""
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    steps = {json.loads(before[path])["step"] for path in changed}
    assert changed == {p for p, key in before.items() if json.loads(key)["step"] in steps}
    return steps


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("lab/clay.py", DATA),
        ("lab/nets.py", MODELS),
        ("lab/losses.py", MODELS),
        ("lab/tools.py", DATA | MODELS),
        ("lab/blocks.py", MODELS),
        ("lab/deep/maths.py", MODELS),
        ("lab/__init__.py", DATA | MODELS),  # it is run before any of them
        ("lab/other.py", set()),
    ],
)
def test_an_edit_makes_the_jobs_stale_that_read_it(
    keys: Keys, file: str, expected: set[str]
) -> None:
    before = keys()
    text = Path(file).read_text()
    Path(file).write_text("# a remark\n" + text)
    assert differing(before, keys()) == set()
    Path(file).write_text(text + "\nadded = 1\n")
    assert differing(before, keys()) == expected
    Path(file).write_text(text)
    assert keys() == before
    assert not [name for name in sys.modules if name.split(".")[0] == "lab"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": {**SETTING["dataset"], "module": "lab.clay2"}}, DATA),
        ({"model": {"module": "lab.nets", "width": 4}}, MODELS),
        ({"objective": {"module": "lab.losses", "power": 3.0}}, MODELS),
        ({"objective": {"name": "binary_cross_entropy"}}, MODELS),
        ({"objective": {"name": "cross_entropy", "measure": "margin"}}, MODELS),
        ({"objective": {"name": "cross_entropy"}}, MODELS),
    ],
)
def test_what_a_setting_says_is_in_the_keys(
    keys: Keys, changes: dict[str, Any], expected: set[str]
) -> None:
    Path("lab/clay2.py").write_text(FILES["lab/clay.py"])
    assert differing(keys(), keys(**changes)) - {"setup_page", "examples_figure", "start_page"} == (
        expected
    )


def test_what_is_measured_decides_truths_and_scores(keys: Keys) -> None:
    plain = {"name": "cross_entropy"}
    found = [keys(objective={**plain, "measure": measure}) for measure in ("margin", "logit")]
    assert differing(*found) - {"setup_page", "examples_figure", "start_page"} == MODELS


def test_plain_cross_entropy_leaves_no_trace(keys: Keys) -> None:
    named = keys(objective={"name": "cross_entropy"})
    assert named == keys(objective=None)
    assert not [key for key in named.values() if "objective" in json.loads(key)]


def test_the_digest_holds_the_users_code_alone(keys: Keys) -> None:
    keys()
    before = own_digest("lab.losses")
    assert own_digest("lab.losses", "lab.nets") != before
    Path("lab/losses.py").write_text(
        FILES["lab/losses.py"].replace("from leaveout.problem import objectives\n", "")
    )
    lock.look_again()
    assert own_digest("lab.losses") != before  # its text has changed


def test_a_module_named_in_no_setting_is_in_no_key(keys: Keys) -> None:
    found = keys(
        dataset={"name": "digits", "n_train": 30, "n_test": 6},
        model={"name": "linear"},
        objective={"name": "cross_entropy"},
    )
    assert not [key for key in found.values() if "own_code" in json.loads(key)]
