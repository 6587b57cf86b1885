"""What goes wrong on a cluster, done to a real one: nothing is lost, and nothing that was finished
is done again.

A chunk of the tiny setting is held back, so that the fault finds its job running.
"""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaveout.workflow.resources import LEAST_MB, LEAST_MINUTES

pytestmark = pytest.mark.slow

FIRST, SECOND = (f"results/tiny/retrain/lds/{i}-0.safetensors" for i in (0, 1))
LOO = "results/tiny/retrain/loo/0-0.safetensors"
TRUTH = "results/tiny/truth/lds.safetensors"


@pytest.fixture
def begin(run: Any) -> Callable[..., None]:
    """Return a function that starts a run in which files are missing, and one chunk is held."""

    def begin(*targets: str) -> None:
        for target in targets:
            (run.clone / target).unlink()
        run.targets = targets
        run.hold("lds-1-0")
        run.process = run.start(*targets)
        run.wait_for("began", SECOND)
        run.held = run.job("retrain_lds_wildcards_tiny_1")

    return begin


@pytest.fixture
def halfway(run: Any, begin: Callable[..., None]) -> Any:
    """A run with the first of two chunks done and the second one held."""
    begin(FIRST, SECOND)
    run.wait_until(lambda: len(run.cluster.jobs()) == 1, "the first chunk's job is over")
    assert (run.clone / FIRST).exists()
    return run


@pytest.fixture
def agrees(finished: Path, contents: Callable[..., dict[str, str]]) -> Callable[[Any], None]:
    """Return a function that holds a run to have finished each job once, and to have made what
    an undisturbed run without Slurm makes."""

    def agrees(run: Any) -> None:
        assert Counter(run.outs("ended")) == Counter(run.targets)
        assert contents(run.clone) == contents(finished)
        assert "Nothing to be done" in run.finish("--dry-run")

    return agrees


def test_failed_jobs_are_tried_again_with_twice_as_much(
    run: Any, begin: Callable[..., None], agrees: Callable[[Any], None]
) -> None:
    # Out of memory, in earnest: the job takes 3 GB and is given 1. (Slurm finds out by sampling, as
    # there are no cgroups here. With them the state is OUT_OF_MEMORY; the plugin does the same.)
    (run.notes / "hungry-lds-0-0").touch()
    run.hold("loo-0-0")
    begin(FIRST, SECOND, LOO)
    run.wait_for("began", LOO)
    late = run.job("retrain_loo_wildcards_tiny_0")
    run.cluster.call("scancel", run.held)
    # Out of time: a limit is whole minutes, so this one is moved up.
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    run.cluster.call("scontrol", "update", f"jobid={late}", f"EndTime={now}")
    run.wait_until(lambda: run.state(late) == "TIMEOUT", "the job times out")
    run.release()
    assert run.process.wait(timeout=400) == 0, run.output

    (slurm_log,) = (run.clone / "logs/slurm/rule_retrain_lds/tiny_0-0").glob("*.log")
    assert "memory limit" in slurm_log.read_text()
    for job, state in ((slurm_log.stem, "FAILED"), (run.held, "CANCELLED"), (late, "TIMEOUT")):
        assert f"SLURM-job '{job}' failed, SLURM status is: '{state}'" in run.output
    asked = re.findall(r"^    resources: .*mem_mb=(\d+),.*runtime=(\d+)", run.output, re.M)
    # so small a setting asks for the least there is
    first, second = ((str(LEAST_MB * n), str(LEAST_MINUTES * n)) for n in (1, 2))
    assert Counter(asked) == {first: 3, second: 3}
    assert Counter(run.outs("began")) == {FIRST: 2, SECOND: 2, LOO: 2}
    agrees(run)


def test_a_drained_node_gets_jobs_again_when_it_is_back(
    run: Any, begin: Callable[..., None], agrees: Callable[[Any], None]
) -> None:
    begin(SECOND, TRUTH)
    run.cluster.call(
        "scontrol", "update", f"nodename={run.cluster.host}", "state=drain", "reason=x"
    )
    try:
        assert run.cluster.node() == "drng"
        run.release()
        run.wait_until(lambda: "merge_truth" in str(run.cluster.jobs()), "the next job is there")
        assert {job["state"] for job in run.cluster.jobs()} == {"PENDING"}
    finally:
        run.cluster.call("scontrol", "update", f"nodename={run.cluster.host}", "state=resume")
    assert run.process.wait(timeout=400) == 0, run.output
    assert Counter(run.outs("began")) == Counter(run.targets)
    agrees(run)


def test_the_controller_is_away_for_a_while(halfway: Any, agrees: Callable[[Any], None]) -> None:
    # Long enough for Snakemake to ask in vain: it gives up on `scontrol` after 10 s.
    said = len(halfway.output)
    halfway.cluster.stop("slurmctld")
    try:
        halfway.release()
        halfway.wait_until(
            lambda: "Falling back to 'sacct'" in halfway.output[said:], "Snakemake asks"
        )
        time.sleep(5)
        assert halfway.process.poll() is None
    finally:
        halfway.cluster.start_controller()
    assert halfway.process.wait(timeout=400) == 0, halfway.output
    assert Counter(halfway.outs("began")) == Counter(halfway.targets)
    agrees(halfway)


def test_an_interrupted_run_cancels_its_jobs_and_the_same_command_goes_on(
    halfway: Any, agrees: Callable[[Any], None]
) -> None:
    halfway.process.send_signal(signal.SIGINT)
    assert halfway.process.wait(timeout=400) == 1
    halfway.wait_until(lambda: not halfway.cluster.jobs(), "the jobs are cancelled")
    halfway.release()
    halfway.finish(*halfway.targets)
    agrees(halfway)


def test_a_killed_run_is_started_again_with_its_jobs_still_in_the_queue(
    halfway: Any, agrees: Callable[[Any], None]
) -> None:
    halfway.process.kill()
    halfway.process.wait()
    assert halfway.state(halfway.held) == "RUNNING"
    process = halfway.start(*halfway.targets)
    halfway.wait_for("began", SECOND, times=2)
    assert halfway.state(halfway.held) == "CANCELLED"
    halfway.release()
    assert process.wait(timeout=400) == 0, halfway.output
    assert f"Cancelled Slurm jobs of an earlier, killed run: {halfway.held}" in halfway.output
    agrees(halfway)
