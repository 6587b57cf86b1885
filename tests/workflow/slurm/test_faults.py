"""What goes wrong on a cluster, done to a real one: nothing is lost, and nothing that was finished
is done again.

Each run makes the two chunks of LDS of the tiny setting and the ground truth below them; one of the
chunks is held back, so that the fault finds it running and the other one finished.
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

Agrees = Callable[[Any], None]

pytestmark = pytest.mark.slow

TRUTH = "results/tiny/truth/lds.safetensors"
FIRST, SECOND = (f"results/tiny/retrain/lds/{i}.safetensors" for i in (0, 1))
DATA = "results/tiny/data.safetensors"
ALL_ONCE = {DATA: 1, FIRST: 1, SECOND: 1, TRUTH: 1}


def wait_until(done: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until something holds, or fail saying what never did."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


@pytest.fixture
def halfway(run: Any) -> Any:
    """A run under way: the data and the first chunk done, the second one held."""
    run.hold("lds-1")
    run.process = run.start(TRUTH)
    run.wait_for("began", SECOND)
    run.wait_for("ended", FIRST)
    run.held = run.job("retrain_lds_wildcards_tiny_1")
    return run


@pytest.fixture
def agrees(finished: Path, contents: Callable[..., dict[str, bytes]]) -> Agrees:
    """Return a function that holds a run's results to those of an undisturbed local run."""

    def agrees(run: Any) -> None:
        made = contents(run.clone)
        expected = contents(finished)
        assert set(made) == set(ALL_ONCE)
        assert made == {name: expected[name] for name in made}
        assert "Nothing to be done" in run.finish(TRUTH, "--dry-run")

    return agrees


def test_a_cancelled_job_is_tried_again(halfway: Any, agrees: Agrees) -> None:
    halfway.cluster.call("scancel", halfway.held)
    halfway.release()
    assert halfway.process.wait(timeout=120) == 0, halfway.output
    assert f"SLURM-job '{halfway.held}' failed, SLURM status is: 'CANCELLED'" in halfway.output
    assert Counter(halfway.outs("ended")) == ALL_ONCE
    agrees(halfway)


def test_a_job_out_of_memory_is_tried_again_with_twice_as_much(run: Any, agrees: Agrees) -> None:
    # In earnest: the job takes 3 GB, is given 2, and Slurm kills it for that. (By sampling, as
    # there are no cgroups here; with them the job's state would be OUT_OF_MEMORY, and the plugin
    # does the same at either.)
    (run.notes / "hungry-lds-1").touch()
    output = run.finish(TRUTH)
    assert len(re.findall(r"SLURM-job '\d+' failed", output)) == 1
    (slurm_log,) = (run.clone / "logs/slurm/rule_retrain_lds/tiny_1").glob("*.log")
    assert "memory limit" in slurm_log.read_text()
    assert re.search(r"chunk=1\n.*mem_mb=4000\b.*runtime=120\b", output)
    assert Counter(run.outs("began")) == {**ALL_ONCE, SECOND: 2}
    assert Counter(run.outs("ended")) == ALL_ONCE
    agrees(run)


def test_a_job_out_of_time_is_tried_again_with_twice_as_much(halfway: Any, agrees: Agrees) -> None:
    # Limits are whole minutes: rather than let one pass, this moves the job's end to now.
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    halfway.cluster.call("scontrol", "update", f"jobid={halfway.held}", f"EndTime={now}")
    wait_until(lambda: halfway.state(halfway.held) == "TIMEOUT", "the job times out")
    halfway.release()
    assert halfway.process.wait(timeout=120) == 0, halfway.output
    assert f"SLURM-job '{halfway.held}' failed, SLURM status is: 'TIMEOUT'" in halfway.output
    assert re.search(r"chunk=1\n.*runtime=120\b", halfway.output)
    assert Counter(halfway.outs("ended")) == ALL_ONCE
    agrees(halfway)


def test_a_drained_node_ends_its_jobs_and_gets_new_ones_when_it_is_back(
    halfway: Any, agrees: Agrees
) -> None:
    cluster = halfway.cluster
    cluster.call("scontrol", "update", f"nodename={cluster.host}", "state=drain", "reason=test")
    try:
        assert cluster.node() == "drng"
        halfway.release()
        halfway.wait_for("ended", SECOND)
        wait_until(lambda: [j["state"] for j in cluster.jobs()] == ["PENDING"], "the truth waits")
        assert not (halfway.clone / TRUTH).exists()
    finally:
        cluster.call("scontrol", "update", f"nodename={cluster.host}", "state=resume")
    assert halfway.process.wait(timeout=120) == 0, halfway.output
    assert Counter(halfway.outs("began")) == ALL_ONCE
    agrees(halfway)


def test_the_controller_is_away_for_a_while(halfway: Any, agrees: Agrees) -> None:
    # long enough for Snakemake to ask for the state of its jobs in vain, again and again
    cluster = halfway.cluster
    cluster.stop("slurmctld")
    try:
        halfway.release()
        halfway.wait_for("ended", SECOND)
        time.sleep(25)
        assert halfway.process.poll() is None
    finally:
        cluster.start_controller()
    assert halfway.process.wait(timeout=120) == 0, halfway.output
    assert Counter(halfway.outs("began")) == ALL_ONCE
    agrees(halfway)


def test_an_interrupted_run_cancels_its_jobs_and_the_same_command_goes_on(
    halfway: Any, agrees: Agrees
) -> None:
    halfway.process.send_signal(signal.SIGINT)
    assert halfway.process.wait(timeout=60) == 1
    wait_until(lambda: not halfway.cluster.jobs(), "the jobs are cancelled", 20)
    halfway.release()
    halfway.finish(TRUTH)
    assert Counter(halfway.outs("ended")) == ALL_ONCE
    agrees(halfway)


def test_a_killed_run_is_started_again_with_its_jobs_still_in_the_queue(
    halfway: Any, agrees: Agrees
) -> None:
    halfway.process.kill()
    halfway.process.wait()
    assert halfway.state(halfway.held) == "RUNNING"
    process = halfway.start(TRUTH)
    wait_until(lambda: halfway.state(halfway.held) == "CANCELLED", "the old job is cancelled")
    halfway.wait_for("began", SECOND, times=2)
    halfway.release()
    assert process.wait(timeout=120) == 0, halfway.output
    assert f"Cancelled Slurm jobs of an earlier, killed run: {halfway.held}" in halfway.output
    assert Counter(halfway.outs("ended")) == ALL_ONCE
    agrees(halfway)
