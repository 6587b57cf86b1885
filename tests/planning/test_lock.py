"""Versions of code in keys, and the lock that guards them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from leaveout.config import Method
from leaveout.workflow import lock

Own = Any  # see conftest.py


def code(own: Own) -> str:
    """Return what stands for the code in a key, as a new process finds it."""
    lock.look_again()
    return str(json.loads(own.job().key)["code"])


def confirm(own: Own, *methods: Method) -> None:
    entries = {method.module: lock.method_entry(method) for method in methods}
    lock.write({"steps": {"own": lock.step_entry(own.step)}, "methods": entries})


def test_without_a_lock_a_key_has_version_and_digest(own: Own) -> None:
    assert code(own) == f"1+{lock.step_entry(own.step)['code']}"


def test_confirmed_code_is_its_version_alone_until_it_is_edited(own: Own) -> None:
    confirm(own)
    assert code(own) == "1"
    own.edit("import numpy", "# a comment\nimport numpy")
    assert code(own) == "1"
    own.edit("* factor", "/ factor")
    digest = lock.step_entry(own.step)["code"]
    assert code(own) == f"1+{digest}"
    own.edit("/ factor", "* 2 * factor")
    assert code(own) not in ("1", f"1+{digest}")
    own.edit("* 2 * factor", "* factor")
    assert code(own) == "1"  # what was made before is good again
    own.edit("* factor", "/ factor")
    confirm(own)
    assert code(own) == "1"


def test_another_version_is_another_key_edited_or_not(own: Own) -> None:
    confirm(own)
    assert code(own) == "1"
    own.step = replace(own.step, version=2)
    assert code(own) == f"2+{lock.step_entry(own.step)['code']}"
    confirm(own)
    assert code(own) == "2"


def test_a_key_is_found_once_for_a_plan(own: Own) -> None:
    confirm(own)
    assert code(own) == "1"
    own.edit("* factor", "/ factor")
    assert json.loads(own.job().key)["code"] == "1"
    lock.look_again()
    assert json.loads(own.job().key)["code"] != "1"


def test_a_method_has_a_version_of_its_own(own: Own) -> None:
    method = Method(name="m", module="own_step", grid=({},))

    def version(method: Method) -> str:
        lock.look_again()
        return lock.method_version(method)

    digest = lock.method_entry(method)["code"]
    assert version(method) == f"1+{digest}"
    confirm(own, method)
    assert version(method) == "1"
    assert version(method.model_copy(update={"version": 2})) == f"2+{digest}"
    assert version(method.model_copy(update={"name": "the same code"})) == "1"
    own.edit("* factor", "/ factor")
    assert version(method).startswith("1+")
    assert version(method) != f"1+{digest}"


def test_only_steps_that_run_a_method_have_its_version(own: Own) -> None:
    method = Method(name="m", module="own_step", grid=({},))
    assert "method_code" not in json.loads(own.job().key)
    runs = replace(own.job(), step=replace(own.step, uses_method=True), method=method)
    assert json.loads(runs.key)["method_code"] == lock.method_version(method)


def test_the_lock_is_easy_to_compare(own: Own) -> None:
    entries = {name: {"version": 1, "code": name} for name in ("b", "a")}
    written = {"steps": entries, "methods": {}, "sample": "0"}
    lock.write(written)
    assert lock.locked() == written
    lines = lock.LOCK.read_text().splitlines()
    assert [line for line in lines if '"code"' in line] == [
        '  "a": {"version": 1, "code": "a"},',
        '  "b": {"version": 1, "code": "b"}',
    ]


def test_every_step_and_method_has_an_entry() -> None:
    from leaveout.workflow.confirm import _methods
    from leaveout.workflow.steps import STEPS

    methods = _methods()
    found = lock.entries(STEPS.values(), methods)
    assert found["steps"].keys() == STEPS.keys()
    assert found["methods"].keys() == {method.module for method in methods}
    for entry in (*found["steps"].values(), *found["methods"].values()):
        assert entry["version"] >= 1
        assert len(entry["code"]) == 16
