"""What a run was planned with, where its jobs find it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaveout.errors import LeaveoutError
from leaveout.store import stamps
from leaveout.workflow import planned
from leaveout.workflow.planned import Planned, load
from leaveout.workflow.step import Job

Own = Any  # see conftest.py


def kept() -> list[str]:
    return sorted(path.name for path in planned.FOLDER.iterdir())


def below(job: Job) -> Job:
    """Return a job that reads what another one makes."""
    return replace(
        job, inputs={"given": ("tiny/out.safetensors",)}, outputs={"out": "tiny/last.csv"}
    )


def test_it_has_the_key_of_every_file_and_the_spec_of_sources_too(own: Own) -> None:
    job = own.job()
    found = Planned.of([job, below(job)])
    assert found.keys == dict.fromkeys(["tiny/out.safetensors", "tiny/beside.csv"], job.key) | {
        "tiny/last.csv": below(job).key
    }
    given = stamps.source("given.csv").spec
    first = stamps.spec_of(job.key, [given])
    last = stamps.spec_of(below(job).key, [first])
    specs = {"given.csv": given, "tiny/last.csv": last}
    assert found.specs == {**dict.fromkeys(job.makes, first), **specs}


def test_what_is_kept_is_loaded_by_its_digest(own: Own) -> None:
    found = Planned.of([own.job()])
    found.keep()
    assert load(found.digest()) == found
    found.keep()  # as a second run with the same plan does
    assert kept() == [f"plan-{found.digest()}.json"]


def test_one_plan_replaces_another(own: Own) -> None:
    first = Planned.of([own.job()])
    first.keep()
    own.factor = 3.0
    second = Planned.of([own.job()])
    second.keep()
    assert load(first.digest()) == first  # a run that is under way still needs it
    second.forget_others()
    assert kept() == [f"plan-{second.digest()}.json"]
    assert load(second.digest()) == second
    with pytest.raises(LeaveoutError, match=r"Another run may have begun .*Run the same command"):
        load(first.digest())


@pytest.mark.parametrize("text", ["", "{", '{"keys": '])
def test_what_can_t_be_read_is_said(own: Own, text: str) -> None:
    found = Planned.of([own.job()])
    found.keep()
    (planned.FOLDER / f"plan-{found.digest()}.json").write_text(text)
    with pytest.raises(LeaveoutError, match=f"plan-{found.digest()}.json: .* can't be read"):
        load(found.digest())


def test_a_job_is_checked_against_its_plan(own: Own) -> None:
    job = own.job()
    found = Planned.of([job])
    sources = stamps.sources(job.reads)
    path = Path(job.makes[0])
    found.check(path, job.key, sources)
    with pytest.raises(LeaveoutError, match="not planned to make it"):
        found.check(Path("other.csv"), job.key, sources)
    own.factor = 3.0
    with pytest.raises(LeaveoutError, match=r"edited since .* \(factor: 2.0 -> 3.0\)"):
        found.check(path, own.job().key, sources)
    Path("given.csv").write_text("7")
    with pytest.raises(LeaveoutError, match=r"given.csv: not what this run was planned with"):
        found.check(path, job.key, stamps.sources(job.reads))


def test_an_input_is_what_was_planned_by_its_specification(own: Own) -> None:
    """Made again elsewhere, it differs in its last bits, and is as good."""
    job = below(own.job())
    found = Planned.of([own.job(), job])
    spec = found.specs["tiny/out.safetensors"]
    for contents in ("one", "another"):
        found.check(
            Path("tiny/last.csv"), job.key, {"tiny/out.safetensors": stamps.Source(spec, contents)}
        )
