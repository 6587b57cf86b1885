"""Nothing that decides a number lies outside what a job's key covers.

Real jobs run under a profiler. Each module of the package whose functions ran must be among those
that the job's key has a digest of, or be left out for a reason; and of the modules left out because
what they return is in the key, only functions listed here may run.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from leaveout.config import load_yaml
from leaveout.problem.randomness import preserved
from leaveout.workflow import confirm, digest, lock, run
from leaveout.workflow.step import Job
from leaveout.workflow.steps import STEPS, load_plan

ROOT = Path(digest.__file__).parents[2]
Functions = set[tuple[str, str]]
Ran = list[tuple[Job, Functions]]

IN_THE_KEY = {
    "leaveout.config.defaults": {"resolved"},
    "leaveout.config.loading": {"load_yaml", "construct_mapping"},  # an input file's contents
    "leaveout.config.methods": {"label", "grid_point", "_text"},  # params
    "leaveout.config.metric_names": {"truth_of"},  # metric, and the truth's own kind
    "leaveout.config.own": {"identity"},  # module and keywords
    "leaveout.config.problem": {  # dataset, model, objective
        "n_classes",
        "model_identity",
        "objective_identity",
        "_form",
        "_kind",
    },
    "leaveout.config.sections": {"own", "count", "spaced", "identity"},  # items, kept, recipe
    "leaveout.config.setting": {"checkpoint_epochs", "removed", "_pool", "__hash__"},  # items
    "leaveout.config.subset_file": {"subset_size"},  # ratio, with the size
    "leaveout.data.identity": {"data_identity"},
    "leaveout.retraining.items": {"items", "chunk", "chunks", "base_chunk"},
}
"""Functions of modules left out, that ran, by what of them the key has."""
WRITES = ("leaveout.store.stamps", "leaveout.workflow", "leaveout.errors")
"""Left out too: what they do decides no content of a file but who made it."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Return jobs of the sample and the functions of the package that each ran."""
    values = load_yaml(confirm.SAMPLE / "config.yaml")
    values |= {
        "settings": {"sample_lr": ["lds", "loo", "pbrf", "auc", "brittleness", "loo_topk"]},
        "methods": ["random", "grad_dot", "if_explicit"],
        "brittleness": ["random", "if_explicit"],
        "compare": ["if_explicit", "grad_dot"],
    }
    plan = load_plan(values, confirm.SAMPLE)
    found: Ran = []
    current: Functions = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{ROOT}/leaveout/"):
            parts = Path(code.co_filename).relative_to(ROOT).with_suffix("").parts
            current.add((".".join(parts).removesuffix(".__init__"), code.co_name))

    def profiled(job: Job) -> Callable[..., Any]:
        compute = function(job)

        def call(**arguments: Any) -> Any:
            sys.setprofile(note)  # until all is written: streams are computed while they are
            return compute(**arguments)

        return call

    function = run.function
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.chdir(tmp_path_factory.mktemp("covered"))
        patch.setattr(run, "function", profiled)
        for job in plan.jobs:
            with preserved():
                try:
                    run.run(job, {name: Path(path) for name, path in job.outputs.items()})
                finally:
                    sys.setprofile(None)
            found.append((job, set(current)))
            current.clear()
    return found


def behind(job: Job) -> set[str]:
    """Return the modules that a job's key has digests of."""
    compute = job.step.compute.partition(":")[0]
    own = [job.scored.module] if job.step.uses_method else []
    return {
        *digest.modules_behind(compute, job.step.call.__module__, "leaveout.workflow.run", *own)
    }


def outside(functions: Functions, covered: set[str]) -> list[str]:
    """Return the modules that ran, that no digest covers, and that nobody left out."""
    modules = {module for module, _ in functions}
    return sorted(m for m in modules if m not in covered and not digest.left_out(m))


def test_all_steps_ran(ran: Ran) -> None:
    assert {job.step.name for job, _ in ran} == {*STEPS}
    assert all(len(functions) > 5 for _, functions in ran)


def test_what_a_job_runs_is_in_its_key_s_digests_or_left_out_for_a_reason(ran: Ran) -> None:
    for job, functions in ran:
        assert outside(functions, behind(job)) == [], job.line


def test_the_key_has_the_digests_that_are_looked_at_here(ran: Ran) -> None:
    for job, _ in ran:
        compute = job.step.compute.partition(":")[0]
        modules = (compute, job.step.call.__module__, "leaveout.workflow.run")
        assert lock.step_entry(job.step)["code"] == digest.code_digest(*modules)
        if job.step.uses_method:
            code = digest.code_digest(job.scored.module)
            assert lock.method_entry(job.scored)["code"] == code


def test_of_what_the_key_has_itself_only_known_functions_run(ran: Ran) -> None:
    """Configuration is left out for the values that a step reads are in its key: see that so."""
    unknown: dict[str, set[str]] = {}
    for job, functions in ran:
        for module, name in functions:
            known = name in IN_THE_KEY.get(module, ()) or name.startswith("<")
            if digest.left_out(module) and not digest._below(module, WRITES) and not known:
                unknown.setdefault(f"{module}.{name}", set()).add(job.step.name)
    assert unknown == {}


def test_a_module_that_nobody_covers_is_found(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = next((j, f) for j, f in ran if j.step.name == "retrain_lds")
    assert outside(trained[1], behind(trained[0]) - {"leaveout.training.losses"}) == [
        "leaveout.training.losses"
    ]
    covered = [(functions, behind(job)) for job, functions in ran]
    monkeypatch.delitem(digest.LEFT_OUT, "leaveout.config")
    missing = {module for functions, modules in covered for module in outside(functions, modules)}
    assert "leaveout.config.subset_file" in missing


def test_how_large_a_random_subset_is_decides_its_key(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one function of the configuration says of a ratio is in no digest, so it is a value."""
    jobs = [job for job, _ in ran if job.step.name in ("retrain_lds", "damping")]
    jobs += [job for job, _ in ran if job.names.get("kind") == "half"]
    before = [job.key for job in jobs]
    for room in (sys.modules[job.step.decides.__module__] for job in jobs):
        if hasattr(room, "subset_size"):
            monkeypatch.setattr(room, "subset_size", lambda n, ratio: n - 1)
    for job in jobs:
        del job.__dict__["key"]
    assert not {*before} & {job.key for job in jobs}
