"""Doing one job: refuse what was not planned, compute, and write with what it was made from.

What a job is to make is fixed when a run is planned. So a job looks twice whether code,
configuration and inputs are still those: before it computes, and before its file takes its place.
Nothing that was edited meanwhile is ever stamped as if it had been there from the start.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from leaveout.errors import LeaveoutError
from leaveout.store import stamps
from leaveout.store.contents import Arrays, Contents, save
from leaveout.workflow import lock
from leaveout.workflow.planned import Planned
from leaveout.workflow.provenance import provenance
from leaveout.workflow.review import difference
from leaveout.workflow.step import Job


def run(
    job: Job,
    outputs: Mapping[str, Path],
    planned: Planned | None = None,
    again: Callable[[], Job] | None = None,
) -> None:
    """Do a job.

    Args:
        job: What to do; its inputs are there.
        outputs: Where to write, by the outputs' names; what is not named is not written.
        planned: What the run that the job belongs to was planned with, if it belongs to one.
        again: Returns the job anew, from the configuration as it is by then.

    Raises:
        LeaveoutError: Code, configuration or an input is not what was planned, or was edited while
            the job ran; an input is missing, damaged, or was altered after it was made; or the
            step's function refuses.
    """
    key = job.key
    sources = stamps.sources(job.reads)
    if planned is not None:
        planned.check(next(iter(outputs.values())), key, sources)

    def still_so() -> None:
        lock.look_again()
        _refuse_edits(again() if again else replace(job), key, sources)

    found = function(job)(**job.step.call(job))
    several = isinstance(found, Mapping)
    made: Mapping[str, Contents] = dict(found) if several else {"out": found}
    names = dict(zip(made, job.step.outputs, strict=True))
    for own, contents in made.items():
        path = outputs.get(names[own])
        if path is None:
            continue
        if isinstance(contents, Arrays):
            header = provenance(job.setting, key, sources, job.device)
            save(path, contents, header, still_so)
        else:
            save(path, contents, check=still_so)
            stamps.write(path, key, sources)


def function(job: Job) -> Any:
    """Return the function that does a job."""
    module, _, name = job.step.compute.partition(":")
    return getattr(importlib.import_module(module), name)


def _refuse_edits(fresh: Job, key: str, sources: Mapping[str, stamps.Source]) -> None:
    """Look again, now that the result is there.

    Raises:
        LeaveoutError: Code, configuration or an input is another than when the job began.
    """
    made = ", ".join(fresh.makes)
    if fresh.key != key:
        raise LeaveoutError(
            f"{made}: edited while this job ran ({difference(key, fresh.key)}), so nothing was "
            "written. Run the same command again."
        )
    for path, source in stamps.sources(fresh.reads).items():
        if source != sources[path]:
            raise LeaveoutError(
                f"{path}: replaced while a job read it, so {made} was not written. Run the same "
                "command again."
            )
