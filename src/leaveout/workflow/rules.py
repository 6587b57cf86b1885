"""What the rules ask: inputs, logs, resources and command lines, all by the step's name.

Rule files stay thin: each shows its output's path and the names of what it reads, and everything
else comes from the step of the same name (:mod:`leaveout.workflow.steps`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaveout.errors import LeaveoutError
from leaveout.workflow import resources
from leaveout.workflow.plan import Plan
from leaveout.workflow.review import STALE_MARK
from leaveout.workflow.step import Job
from leaveout.workflow.steps import STEPS

Wildcards = Any


@dataclass(frozen=True)
class Rules:
    """Gives the directives of rules.

    Attributes:
        plan: The plan.
        stale: The files that must be made anew.
        settled: Gives the files that no job has to make anew.
        digest: Names what the run was planned with (:mod:`leaveout.workflow.planned`).
    """

    plan: Plan
    stale: Collection[str]
    settled: Callable[[], Collection[str]]
    digest: str

    def _job(self, step: str, wildcards: Wildcards) -> Job:
        return self.plan.job(step, dict(wildcards.items()))

    def reads(self, step: str, *names: str) -> Callable[[Wildcards], dict[str, list[str]]]:
        """Return the input function of a step's rule, to be unpacked.

        Snakemake makes a missing input as soon as any job needs it, and then every other job that
        reads it anew. So a job with nothing to do asks for what is there, and for no more.

        Args:
            step: The step's name.
            names: What it reads, for a reader of the rule.

        Raises:
            LeaveoutError: The step reads something else.
        """
        declared = tuple(STEPS[step].inputs)
        if names != declared:
            raise LeaveoutError(
                f"rule {step}: it says that it reads {', '.join(names) or 'nothing'}; the step "
                f"reads {', '.join(declared) or 'nothing'}"
            )

        def inputs(wildcards: Wildcards) -> dict[str, list[str]]:
            job = self._job(step, wildcards)
            at_rest = self.settled().__contains__(job.makes[0])
            found = {
                name: [path for path in paths if not at_rest or Path(path).is_file()]
                for name, paths in job.inputs.items()
            }
            # newer than any stale file: it makes the job due
            mark = [STALE_MARK] if any(path in self.stale for path in job.makes) else []
            return {**found, "stale": mark}

        return inputs

    def log(self, step: str) -> str:
        """Return the path of a step's logs."""
        jobs = "-".join(f"{{{name}}}" for name in STEPS[step].names)
        return f"logs/{step}/{jobs}.log" if jobs else f"logs/{step}.log"

    def asks(self, step: str) -> dict[str, Any]:
        """Return what a step's jobs ask a scheduler for: memory and minutes of each, and a GPU."""
        takes = STEPS[step].takes
        assert takes is not None, step

        def mem_mb(wildcards: Wildcards, attempt: int) -> int:
            return resources.mem_mb(takes(self._job(step, wildcards)), attempt)

        def runtime(wildcards: Wildcards, attempt: int) -> int:
            return resources.minutes(takes(self._job(step, wildcards)), attempt)

        gpu = int(STEPS[step].device and self.plan.config.device == "cuda")
        return {"gpu": gpu, "mem_mb": mem_mb, "runtime": runtime}

    def command(self, step: str) -> Callable[..., str]:
        """Return the parameter function for the command line of a step's jobs."""

        def line(wildcards: Wildcards, threads: int = 1) -> str:
            more = ["--threads", str(threads)] if STEPS[step].device else []
            words = self._job(step, wildcards).command(*more, "--plan", self.digest)
            return shlex.join(words)

        return line
