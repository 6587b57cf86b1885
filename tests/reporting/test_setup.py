from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from leaveout.config import Config, Setting
from leaveout.config.defaults import resolved
from leaveout.reporting.setup import setup_page
from leaveout.store import artefacts
from leaveout.workflow.plan import Plan
from leaveout.workflow.steps import STEPS

VALUES = {
    "name": "small",
    "dataset": {"name": "mnist", "n_train": 600, "n_test": 120, "mean": 0.1, "std": 0.3},
    "model": {"name": "linear"},
    "recipe": {"learning_rate": 0.1, "epochs": 10, "batch_size": 20},
}
COSTS = """\
setting,method,params,wall_s,peak_rss_mb,baseline_rss_mb,device,threads,cpu
small,if_cg,damping=1+iterations=10,1.5,300,200,cpu,1,Some <CPU>
small,if_cg,damping=0.1+iterations=10,1.7,300,200,cpu,1,Some <CPU>
other,if_cg,damping=1+iterations=10,1.5,300,200,cpu,1,Some <CPU>
small,random,default,0.1,300,200,cpu,2,Some <CPU>
"""


def made(path: Path, commit: str, torch: str) -> Path:
    meta = {"commit": commit, "device": "cpu", "versions": {"python": "3.11.7", "torch": torch}}
    artefacts.write(path, "scores", {"a": np.zeros(2)}, {"a": ("train",)}, meta)
    return path


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "costs.csv").write_text(COSTS)
    paths = [
        made(tmp_path / "one.safetensors", "0123456789abcdef0123-dirty", "2.13"),
        made(tmp_path / "two.safetensors", "0123456789abcdef0123-dirty", "2.13"),
        made(tmp_path / "three.safetensors", "fedcba9876543210fedc", "2.14"),
    ]
    page = setup_page([Setting.model_validate(VALUES)], paths, tmp_path / "costs.csv")
    return page.replace(f"{tmp_path}/", "")


def rows(page: str, table: int) -> list[list[str]]:
    body = page.split("<tbody>")[1 + table].split("</tbody>")[0]
    return [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", body)
    ]


def test_what_was_made_alike_is_one_row(page: str) -> None:
    assert rows(page, 0) == [
        ["0123456789ab-dirty", "cpu", "3.11.7", "2.13", "one.safetensors, two.safetensors"],
        ["fedcba987654", "cpu", "3.11.7", "2.14", "three.safetensors"],
    ]


def test_machines_and_grids_come_from_the_costs(page: str) -> None:
    assert rows(page, 1) == [
        ["small", "Some &lt;CPU&gt;", "cpu", "1", "2"],
        ["other", "Some &lt;CPU&gt;", "cpu", "1", "1"],
        ["small", "Some &lt;CPU&gt;", "cpu", "2", "1"],
    ]
    assert rows(page, 2) == [
        ["if_cg", "small", "damping=1, iterations=10; damping=0.1, iterations=10"],
        ["if_cg", "other", "damping=1, iterations=10"],
        ["random", "small", "default"],
    ]
    # seconds are another thing each time, and the page is not
    assert "1.5" not in page


def test_the_configuration_has_its_defaults_and_no_source(page: str) -> None:
    shown = re.search(r"<pre>(.*?)</pre>", page, re.S)
    assert shown
    values = yaml.safe_load(shown[1])
    assert values["lds"]["subsets"] == 100
    assert "source" not in values["dataset"]
    assert Setting.model_validate({"name": "small", **values}) == Setting.model_validate(VALUES)


def setup_key(setting: Setting) -> str:
    plan = Plan(
        Config(settings=(setting.name,)), {setting.name: setting}, {setting.name: {}}, STEPS
    )
    return plan.job("setup_page", {}).key


def test_the_key_is_what_is_shown() -> None:
    key = setup_key(Setting.model_validate(VALUES))
    elsewhere = VALUES | {"dataset": {**VALUES["dataset"], "source": "hub"}}  # type: ignore[dict-item]
    assert setup_key(Setting.model_validate(elsewhere)) == key
    longer = VALUES | {"full": {"runs": 3}}
    assert setup_key(Setting.model_validate(longer)) != key


def test_a_users_own_subsets_are_named_and_not_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("1 2\n2 3\n3 4\n")
    own = VALUES | {"lds": {"subsets": str(tmp_path / "mine.txt")}}
    assert resolved(Setting.model_validate(own))["lds"]["subsets"] == "3 of mine.txt"
