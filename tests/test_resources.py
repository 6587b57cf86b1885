from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from leaveout import costs, resources
from leaveout.costs import Job
from leaveout.workflow import Plan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan() -> Plan:
    values = yaml.safe_load((ROOT / "config" / "digits.yaml").read_text())
    return Plan.load(values, ROOT / "config")


STEPS = ("prepare", "models", "lds", "loo", "pbrf", "truth", "attribute", "evaluate")
STEPS += ("self_influence", "damping", "predict", "brittleness")


def wild(step: str) -> Any:
    return SimpleNamespace(
        setting="digits_cnn", kind="full", chunk="0" if step == "models" else "0-0", metric="loo",
        method="if_explicit", params="damping=0.01",
    )  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_each_attempt_asks_for_twice_as_much(step: str, plan: Plan) -> None:
    for asked in (plan.mem_mb(step), plan.runtime(step)):
        first, second, third = (asked(wild(step), attempt) for attempt in (1, 2, 3))
        assert first > 0
        assert (second, third) == (2 * first, 4 * first)


def test_the_estimate_and_a_margin_are_asked_for() -> None:
    large = Job(seconds=3600, memory=10e9, disk=0)
    assert (resources.mem_mb(large, 1), resources.minutes(large, 1)) == (15_000, 180)
    tiny = Job(seconds=1, memory=1e6, disk=0)
    assert (resources.mem_mb(tiny, 1), resources.minutes(tiny, 1)) == (1000, 15)


def test_each_step_asks_for_its_own(plan: Plan) -> None:
    setting = plan.settings["digits_cnn"]
    work = costs.workload(setting)
    jobs = {
        "prepare": costs.data_job(work),
        "models": costs.chunk_job(setting, "full", "0"),
        "lds": costs.chunk_job(setting, "lds", "0-0"),
        "loo": costs.chunk_job(setting, "loo", "0-0"),
        "truth": costs.truth_job(work, "loo"),
        "attribute": costs.score_job(work, plan.methods["if_explicit"], {"damping": 0.01}),
    }
    assert {step: plan._job(step, wild(step)) for step in jobs} == jobs
    assert len(set(jobs.values())) == len(jobs)


def test_the_rules_name_every_step_and_no_other() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    for step in STEPS:
        assert f'mem_mb=PLAN.mem_mb("{step}"),\n        runtime=PLAN.runtime("{step}")' in rules
    found = set(re.findall(r'PLAN\.(?:mem_mb|runtime)\("(\w+)"\)', rules))
    assert found == set(STEPS)
    assert rules.count("PLAN.mem_mb(") == rules.count("PLAN.runtime(")
