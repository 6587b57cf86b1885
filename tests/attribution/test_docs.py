"""docs/methods.md lists what there is, and its numbers are what is computed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.config import load_methods
from leaveout.errors import NotComputableError
from leaveout.problem.objective import Objective

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
METHODS = load_methods(ROOT / "config" / "methods.yaml")
SMALL = {"runs": 2, "models": 2, "projection": 8, "depth": 5, "batch": 8, "iterations": 5}
# What each problem of the tests lacks, by the first words of the table's rows.
LACKS = {
    "regression": ("a class", "the log odds", "plain", "dropout"),
    "one_logit": ("plain", "dropout"),
    "multi_label": ("a class", "plain", "dropout"),
    "weighted": ("plain", "dropout"),
    "tokens": ("a class", "plain", "a last", "steps"),
    "residual": ("dropout",),
    "named": ("dropout",),
    "frozen": ("dropout",),
    "own": ("a class", "the log odds", "plain", "the loss's curvature", "dropout"),
}


def test_every_entry_is_in_the_table() -> None:
    (table,) = re.findall(r"^\| family.*?\n\n", TEXT, re.M | re.S)
    rows = [row.split("|")[2] for row in table.splitlines()[2:] if row]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(load_methods(ROOT / "config" / "methods.yaml"))


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 5
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


def needs() -> dict[str, list[str]]:
    """Return the entries of each row of the table of needs."""
    (table,) = re.findall(r"^\| it needs.*?\n\n", TEXT, re.M | re.S)
    rows = [row.split("|") for row in table.splitlines()[2:] if row]
    return {row[1].strip(): re.findall(r"`(\w+)`", row[2]) for row in rows}


def undefined(task: Task, name: str) -> bool:
    method = METHODS[name]
    point = {key: min(value, SMALL.get(key, value)) for key, value in method.grid[0].items()}  # type: ignore[type-var]
    try:
        found: Any = importlib.import_module(method.module).attribute(task, **point)
        found = found if isinstance(found, Tensor) else torch.cat([*found])
    except NotComputableError as error:
        return error.reason == "undefined"
    assert found.isfinite().all()
    return False


@pytest.mark.parametrize("name", LACKS)
def test_a_method_is_undefined_where_the_table_says_so(
    name: str, make_problem: Callable[..., Any]
) -> None:
    task: Task = make_problem("regression" if name == "own" else name).task
    if name == "own":
        own = Objective("own", task.objective.losses)
        task = replace(task, objective=own, train=task.train.asked(own), test=task.test.asked(own))
    lacking = [entries for need, entries in needs().items() if need.startswith(LACKS[name])]
    assert len(lacking) == len(LACKS[name])
    expected = {entry for entries in lacking for entry in entries}
    assert {entry for entry in METHODS if undefined(task, entry)} == expected
