"""What a job asks a scheduler for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leaveout.config import load_yaml
from leaveout.errors import LeaveoutError
from leaveout.workflow import costs, resources
from leaveout.workflow.plan import Plan
from leaveout.workflow.review import STALE_MARK
from leaveout.workflow.rules import Rules
from leaveout.workflow.steps import STEPS, load_plan

CONFIG = Path(__file__).parents[2] / "config"
TAKING = sorted(name for name, step in STEPS.items() if step.takes is not None)


@pytest.fixture(scope="module")
def plan() -> Plan:
    values = load_yaml(CONFIG / "digits.yaml") | {
        "settings": {"digits_lr": None, "digits_cnn": None, "mnist_lr_noise10": ["auc"]},
        "compare": ["if_explicit", "grad_dot"],
    }
    return load_plan(values, CONFIG)


@pytest.fixture(scope="module")
def rules(plan: Plan) -> Rules:
    return Rules(plan, (), lambda: (), "0123456789abcdef")


def wild(**names: str) -> Any:
    """Return names as Snakemake gives them."""
    return SimpleNamespace(items=names.items, **names)


@pytest.mark.parametrize("step", TAKING)
def test_each_attempt_asks_for_twice_as_much(step: str, plan: Plan, rules: Rules) -> None:
    names = wild(**plan.names(step)[0])
    asked = rules.asks(step)
    for name in ("mem_mb", "runtime"):
        first, second, third = (asked[name](names, attempt) for attempt in (1, 2, 3))
        assert first > 0
        assert (second, third) == (2 * first, 4 * first)


def test_the_estimate_and_a_margin_are_asked_for() -> None:
    large = costs.Job(seconds=3600, memory=10e9, disk=0)
    assert (resources.mem_mb(large, 1), resources.minutes(large, 1)) == (15_000, 180)
    tiny = costs.Job(seconds=1, memory=1e6, disk=0)
    assert (resources.mem_mb(tiny, 1), resources.minutes(tiny, 1)) == (1000, 15)


def test_each_step_asks_for_its_own(plan: Plan) -> None:
    setting = plan.settings["digits_cnn"]
    work = costs.workload(setting)
    expected = {
        "prepare": costs.data_job(work),
        "train": costs.chunk_job(setting, "full", "0"),
        "retrain_lds": costs.chunk_job(setting, "lds", "0-0"),
        "retrain_loo": costs.chunk_job(setting, "loo", "0-0"),
        "merge_truth": costs.truth_job(work, "loo"),
        "attribute": costs.score_job(work, plan.methods["if_explicit"], {"damping": 0.01}),
    }
    names = {
        "setting": "digits_cnn", "kind": "full", "truth": "loo", "method": "if_explicit",
        "params": "damping=0.01",
    }  # fmt: skip
    found = {}
    for step in expected:
        chunk = {"chunk": "0" if step == "train" else "0-0"}
        takes = STEPS[step].takes
        assert takes is not None
        found[step] = takes(plan.job(step, {**names, **chunk}))
    assert found == expected
    assert len({*expected.values()}) == len(expected)


def test_self_influence_takes_no_less_than_scores(plan: Plan) -> None:
    for names in plan.names("self_influence"):
        own, scores = (STEPS[step].takes for step in ("self_influence", "attribute"))
        assert own is not None
        assert scores is not None
        job = plan.job("self_influence", names)
        assert resources.minutes(own(job), 1) >= resources.minutes(scores(job), 1)


def test_a_gpu_is_asked_for_by_steps_that_compute_with_torch(plan: Plan, rules: Rules) -> None:
    assert {rules.asks(step)["gpu"] for step in TAKING} == {0}
    config = plan.config.model_copy(update={"device": "cuda"})
    gpu = Rules(Plan(config, plan.settings, plan.grids, plan.steps), (), lambda: (), "")
    assert {step for step in TAKING if gpu.asks(step)["gpu"]} == {
        name for name, step in STEPS.items() if step.device
    }


def test_a_stale_output_gives_its_job_one_more_input(plan: Plan) -> None:
    path = "results/digits_lr/data.safetensors"
    inputs = Rules(plan, {path}, lambda: (), "").reads("prepare")
    assert inputs(wild(setting="digits_lr"))["stale"] == [STALE_MARK]
    assert inputs(wild(setting="digits_cnn"))["stale"] == []


def test_a_job_with_nothing_to_do_asks_for_what_is_there(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = plan.names("merge_truth", setting="digits_lr", truth="loo")[0]
    job = plan.job("merge_truth", names)
    one = Path(job.reads[0])
    one.parent.mkdir(parents=True)
    one.touch()
    for settled, expected in (((), [*job.reads]), ((job.makes[0],), [str(one)])):
        inputs = Rules(plan, (), lambda settled=settled: settled, "").reads("merge_truth", "chunks")
        assert [*inputs(wild(**names))["chunks"]] == expected


def test_a_rule_that_names_other_inputs_than_its_step_is_refused(rules: Rules) -> None:
    with pytest.raises(
        LeaveoutError, match=r"rule train: it says that it reads .*; the step reads data"
    ):
        rules.reads("train", "data", "full")


def test_a_rule_s_command_is_the_job_s(plan: Plan, rules: Rules) -> None:
    for step in ("train", "table"):
        names = plan.names(step)[0]
        line = rules.command(step)(wild(**names), threads=2)
        more = " --threads 2" if step == "train" else ""
        assert line == f"{plan.job(step, names).line}{more} --plan 0123456789abcdef"
