"""What is due, as found without Snakemake, is what Snakemake would do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from leaveout.config import load_yaml
from leaveout.errors import LeaveoutError
from leaveout.workflow.due import due
from leaveout.workflow.review import Review
from leaveout.workflow.steps import load_plan

Snakemake = Callable[..., tuple[int, str]]
Planned = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

SCORES = "results/tiny/scores"
CHUNK = "results/tiny/retrain/lds/1-0.safetensors"


@pytest.fixture
def situation(request: pytest.FixtureRequest, edit: Edit) -> tuple[Path, list[str]]:
    """A clone in some state, and what is asked for."""
    name = request.param
    clone: Path = request.getfixturevalue("fresh" if name.startswith("fresh") else "clone")
    targets = {
        "fresh: one table": ["results/lds_table.csv"],
        "all but metrics gone": ["results/lds_table.csv"],
        "a lost draw": ["results/tiny/metrics/lds/grad_dot.csv"],
        "no score of an old method": ["results/lds_table.csv", "results/loo_table.csv"],
    }
    if name == "a stale chunk":  # and a chunk that nobody needs
        edit(clone / "config/settings/tiny.yaml", "subsets: 8, runs: 2", "subsets: 8, runs: 3")
        edit(clone / "config/settings/tiny.yaml", "damping: 1e-1", "damping: 2e-1")
    elif name == "no score of an old method":  # a new one needs data and models, and they are gone
        for path in clone.glob(f"{SCORES}/*/*.safetensors"):
            path.unlink()
        (clone / "results/tiny/data.safetensors").unlink()
        (clone / "results/tiny/models/full/0.safetensors").unlink()
        edit(clone / "config/config.yaml", "if_explicit]", "if_explicit, tracin_cp]")
    elif name == "a score is due and the costs of others are there":
        (clone / SCORES / "grad_dot/default.safetensors").unlink()
        edit(clone / "config/config.yaml", "bootstrap: 20", "bootstrap: 30")
    elif name == "all but metrics gone":
        for layer in ("scores", "truth", "retrain", "models"):
            for path in (clone / "results/tiny" / layer).rglob("*.safetensors"):
                path.unlink()
        (clone / "results/lds_table.csv").unlink()
    elif name == "a lost table":
        (clone / "results/loo_table.csv").unlink()
    elif name == "a lost draw":
        (clone / "results/tiny/metrics/lds/grad_dot.draws.safetensors").unlink()
    elif name == "an altered file":
        with (clone / "results/tiny/metrics/lds/grad_dot.csv").open("a") as file:
            file.write("\n")
        (clone / "results/tiny/metrics/loo/grad_dot.csv.stamp").unlink()
    return clone, targets.get(name, [])


@pytest.mark.parametrize(
    "situation",
    [
        "fresh",
        "fresh: one table",
        "all good",
        "a stale chunk",
        "no score of an old method",
        "a score is due and the costs of others are there",
        "all but metrics gone",
        "a lost table",
        "a lost draw",
        "an altered file",
    ],
    indirect=True,
)
def test_it_is_what_snakemake_would_do(
    situation: tuple[Path, list[str]], planned: Planned, dry_run: Planned
) -> None:
    clone, targets = situation
    found = planned(clone, *targets)
    assert dry_run(clone, *targets) == found
    assert planned(clone, *targets) == found


def test_a_forced_job_takes_what_follows_with_it(clone: Path, dry_run: Planned) -> None:
    """Forcing is Snakemake's own: then no file counts as settled."""
    (clone / SCORES / "grad_dot/default.safetensors").unlink()
    with contextlib.chdir(clone):
        plan = load_plan(load_yaml(Path("config/config.yaml")), "config")
        forced = {job.makes[0]: "" for job in plan.jobs if job.step.name == "merge_truth"}
        jobs = due(plan.jobs, Review(forced, frozenset(), frozenset()), plan.shown())
    assert dry_run(clone, "--forcerun", "merge_truth") == {job.makes[0] for job in jobs}


def test_the_rules_are_the_steps(fresh: Path, snakemake: Snakemake, edit: Edit) -> None:
    """What is reviewed must be what Snakemake follows: every file that a job reads and makes."""
    config = fresh / "config/config.yaml"
    edit(config, "bootstrap: 20", "bootstrap: 20\ncompare: [if_explicit, grad_dot]")
    status, output = snakemake(fresh, "--dry-run", "--forceall", "results", "models")
    assert status == 0, output
    found = set()
    for rule, block in re.findall(r"^rule (\w+):\n((?: {4}.*\n)*)", output, re.M):
        fields = dict(re.findall(r"^ {4}(input|output): (.*)$", block, re.M))
        if "output" not in fields:  # it only names others
            continue
        reads = fields["input"].split(", ") if "input" in fields else []
        found.add((rule, frozenset(reads), tuple(fields["output"].split(", "))))
    with contextlib.chdir(fresh):
        plan = load_plan(load_yaml(Path("config/config.yaml")), "config")
    jobs = {(job.step.name, frozenset(job.reads), job.makes) for job in plan.jobs}
    assert found == jobs


def test_an_unknown_target_is_named(fresh: Path, planned: Planned) -> None:
    with pytest.raises(LeaveoutError, match=r"^results/ldss_table.csv: no job makes it$"):
        planned(fresh, "results/ldss_table.csv")
