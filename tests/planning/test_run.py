"""What a job refuses, before it computes and before it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaveout.errors import LeaveoutError
from leaveout.store import artefacts, stamps
from leaveout.workflow import lock
from leaveout.workflow.planned import Planned
from leaveout.workflow.run import run

Own = Any  # see conftest.py
OUT, BESIDE = Path("tiny/out.safetensors"), Path("tiny/beside.csv")
BOTH = {"out": OUT, "beside": BESIDE}


@pytest.fixture
def old(own: Own) -> dict[str, bytes]:
    """Give the files as an earlier run made them, and forget that it computed."""
    run(own.job(), BOTH)
    own.module.CALLS.clear()
    return files()


def files() -> dict[str, bytes]:
    """Return what lies in the job's folder."""
    return {path.name: path.read_bytes() for path in sorted(Path("tiny").iterdir())}


def planned(own: Own) -> Planned:
    return Planned.of([own.job()])


def test_outputs_say_what_they_were_made_from(own: Own) -> None:
    run(own.job(), BOTH, planned(own), own.job)
    job = own.job()
    source = stamps.source("given.csv")
    for path in BOTH.values():
        stamp = stamps.read(path)
        assert stamp is not None
        assert (stamp.key, dict(stamp.inputs)) == (job.key, {"given.csv": source})
        assert stamp.spec == stamps.spec_of(job.key, [source.spec])
    made = artefacts.read(OUT, "score")
    np.testing.assert_array_equal(made.tensors["scores"], [2.0, 4.0, 6.0])
    assert made.meta["label"] == "own"
    assert (made.meta["setting"], made.meta["seed"]) == ("tiny", 3)
    assert BESIDE.read_text() == "12.0\n"
    assert files().keys() == {"out.safetensors", "beside.csv", "beside.csv.stamp"}


def test_what_is_not_asked_for_is_not_written(own: Own) -> None:
    run(own.job(), {"out": OUT})
    assert files().keys() == {"out.safetensors"}


def test_the_same_job_writes_the_same_bytes(own: Own, old: dict[str, bytes]) -> None:
    run(own.job(), BOTH)
    assert files() == old


def edit_code(own: Own) -> None:
    own.edit("* factor", "/ factor")


def edit_option(own: Own) -> None:
    own.factor = 3.0


def edit_setting(own: Own) -> None:
    own.setting = own.setting.model_copy(update={"seed": 4})


def edit_input(own: Own) -> None:
    Path("given.csv").write_text("1 2 4")


EDITS = [
    (edit_code, "edited code"),
    (edit_option, "factor: 2.0 -> 3.0"),
    (edit_setting, "seed: 3 -> 4"),
]


@pytest.mark.parametrize(
    ("edit", "words"),
    [(edit, rf"out.safetensors: edited since this run was planned \({why}\)" )
     for edit, why in EDITS]
    + [(edit_input, "given.csv: not what this run was planned with, so .*out.safetensors")],
)  # fmt: skip
def test_what_was_not_planned_is_refused_before_it_computes(
    own: Own, old: dict[str, bytes], edit: Callable[[Own], None], words: str
) -> None:
    wanted = planned(own)
    edit(own)
    lock.look_again()  # a job is a process of its own
    with pytest.raises(LeaveoutError, match=f"{words}.*Run the same command again"):
        run(own.job(), BOTH, wanted, own.job)
    assert own.module.CALLS == []
    assert files() == old


def test_a_file_that_was_not_planned_is_refused(own: Own) -> None:
    with pytest.raises(LeaveoutError, match=r"elsewhere.csv: this run was not planned to make it"):
        run(own.job(), {"out": Path("elsewhere.csv")}, planned(own), own.job)
    assert own.module.CALLS == []


@pytest.mark.parametrize("as_planned", [True, False], ids=["planned", "by hand"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [(edit, rf"edited while this job ran \({why}\), so nothing was written")
     for edit, why in EDITS]
    + [(edit_input, "given.csv: replaced while a job read it, so .* was not written"),
       (lambda own: Path("given.csv").unlink(), "given.csv: no such file")],
)  # fmt: skip
def test_what_is_edited_while_it_runs_is_refused_before_it_writes(
    own: Own, old: dict[str, bytes], edit: Callable[[Own], None], words: str, as_planned: bool
) -> None:
    wanted = planned(own) if as_planned else None
    own.module.MEANWHILE = lambda: edit(own)
    with pytest.raises(LeaveoutError, match=words):
        run(own.job(), BOTH, wanted, own.job)
    assert len(own.module.CALLS) == 1
    assert files() == old


def test_an_edit_that_changes_nothing_is_no_edit(own: Own) -> None:
    own.module.MEANWHILE = lambda: own.edit("import numpy", "# a comment\nimport numpy")
    run(own.job(), BOTH, planned(own), own.job)
    assert files().keys() == {"out.safetensors", "beside.csv", "beside.csv.stamp"}


def test_what_cannot_be_computed_becomes_a_file_that_says_so(own: Own) -> None:
    own.module.REFUSE = True
    run(own.job(), BOTH, planned(own), own.job)
    made = artefacts.read(OUT, "score")
    assert made.meta["not_computed"] == {"reason": "memory", "detail": "too large"}
    assert made.tensors.keys() == {"id"}
    stamp = stamps.read(OUT)
    assert stamp is not None
    assert stamp.key == own.job().key


def test_what_cannot_be_computed_any_more_is_refused_too(own: Own, old: dict[str, bytes]) -> None:
    own.module.REFUSE = True
    own.module.MEANWHILE = lambda: edit_code(own)
    with pytest.raises(LeaveoutError, match="edited while this job ran"):
        run(own.job(), BOTH, planned(own), own.job)
    assert files() == old


def test_an_input_that_was_altered_or_is_not_there_is_refused(
    own: Own, old: dict[str, bytes]
) -> None:
    stamps.write("given.csv", "{}", {})
    edit_input(own)
    with pytest.raises(LeaveoutError, match=r"given.csv: it was altered after it was made"):
        run(own.job(), BOTH)
    Path("given.csv").unlink()
    with pytest.raises(LeaveoutError, match=r"given.csv: no such file"):
        run(own.job(), BOTH)
    assert own.module.CALLS == []
    assert files() == old


def test_a_function_that_refuses_or_fails_leaves_what_was_there(
    own: Own, old: dict[str, bytes]
) -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    own.module.MEANWHILE = fail
    with pytest.raises(RuntimeError, match="no memory"):
        run(own.job(), BOTH)
    assert files() == old


def test_a_function_gives_as_many_outputs_as_its_step_has(own: Own) -> None:
    step = replace(own.step, outputs={"out": "tiny/out.safetensors"})
    with pytest.raises(ValueError, match="zip"):
        run(replace(own.job(), step=step), {"out": OUT})
    assert files() == {}
