from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from leaveout import resources
from leaveout.workflow import Plan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan() -> Plan:
    values = yaml.safe_load((ROOT / "config" / "digits.yaml").read_text())
    return Plan.load(values, ROOT / "config")


@pytest.mark.parametrize("step", list(resources.BASES))
def test_each_attempt_asks_for_twice_as_much(step: str, plan: Plan) -> None:
    nothing: Any = None
    base = resources.BASES[step]
    memory = [plan.mem_mb(step)(nothing, attempt) for attempt in (1, 2, 3)]
    minutes = [plan.runtime(step)(nothing, attempt) for attempt in (1, 2, 3)]
    assert memory == [base.mem_mb, 2 * base.mem_mb, 4 * base.mem_mb]
    assert minutes == [base.minutes, 2 * base.minutes, 4 * base.minutes]


def test_the_rules_name_every_step_and_no_other() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    for step in resources.BASES:
        assert f'mem_mb=PLAN.mem_mb("{step}"),\n        runtime=PLAN.runtime("{step}")' in rules
    assert rules.count("PLAN.mem_mb(") == rules.count("PLAN.runtime(") == len(resources.BASES)
