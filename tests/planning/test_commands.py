"""A job's command line, parsed back, is the job."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from leaveout.cli import program as cli
from leaveout.cli import steps
from leaveout.config import load_yaml
from leaveout.workflow.step import Job
from leaveout.workflow.steps import load_plan

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"


@pytest.fixture(autouse=True)
def _every_file_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load settings and methods once, where every command would."""
    monkeypatch.setattr(cli, "CONFIG", CONFIG)
    methods = steps.load_methods(CONFIG / "methods.yaml")
    settings = {path.name: steps.load_setting(path) for path in (CONFIG / "settings").glob("*")}
    monkeypatch.setattr(steps, "load_methods", lambda path: methods)
    monkeypatch.setattr(steps, "load_setting", lambda path: settings[path.name])


def parsed(job: Job, parser: argparse.ArgumentParser, *more: str) -> Job:
    """Return the job that a job's command line names."""
    args = parser.parse_args(job.command(*more)[1:])
    outputs = {
        name: args.out if k == 0 else getattr(args, name) for k, name in enumerate(job.step.outputs)
    }
    return steps._job(job.step, args, outputs, CONFIG)


@pytest.mark.parametrize("name", ["all", "digits"])
def test_every_jobs_command_names_the_job_again(name: str) -> None:
    jobs = load_plan(load_yaml(CONFIG / f"{name}.yaml"), "config").jobs
    parser = cli.parser()
    assert len(jobs) > 200
    for job in jobs:
        again = parsed(job, parser)
        assert (again.key, again.inputs, again.outputs) == (job.key, job.inputs, job.outputs)
        assert (again.names, again.options) == (job.names, job.options), job.line


def test_what_is_given_beside_is_no_part_of_the_job() -> None:
    job = next(job for job in load_plan(load_yaml(CONFIG / "digits.yaml"), "config").jobs
               if job.step.name == "retrain_lds")  # fmt: skip
    more = ("--threads", "2", "--device", "cuda", "--plan", "0123456789abcdef")
    again = parsed(job, cli.parser(), *more)
    assert again.device == "cuda"
    assert again.key == job.key


def test_how_many_samples_are_looked_at_is_part_of_the_command() -> None:
    values = {"settings": ["digits_lr"], "methods": ["random"], "metrics": ["loo_topk"], "top_k": 3}
    plan = load_plan(values, CONFIG)
    job = plan.job("evaluate", *plan.names("evaluate", metric="loo_topk"))
    args = cli.parser().parse_args(job.command()[1:])
    assert args.top_k == 3
    assert parsed(job, cli.parser()).key == job.key


def test_a_default_left_out_means_the_same_as_the_default_given() -> None:
    """``--bootstrap`` is the configuration's default, so a short command makes the same file."""
    plan = load_plan({"settings": ["digits_lr"], "methods": ["random"], "metrics": ["lds"]}, CONFIG)
    job = plan.job("evaluate", *plan.names("evaluate"))
    words = job.command()
    at = words.index("--bootstrap")
    short = cli.parser().parse_args([*words[1:at], *words[at + 2 :]])
    assert short.bootstrap == job.options["bootstrap"] == 1000
