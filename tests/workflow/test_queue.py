"""Jobs in a cluster's queue do what the run was planned with, or refuse.

Each parses the workflow anew, in a process of its own; Slurm is a set of stubs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Snakemake = Callable[..., tuple[int, str]]
Edit = Callable[[Path, str, str], None]

SETTING = "config/settings/tiny.yaml"
CHUNK = "results/tiny/retrain/lds/1-0.safetensors"
OPTIONS = (
    *("--profile", "slurm", "--retries=0", "--latency-wait=5"),
    "--slurm-init-seconds-before-status-checks=1",
)

pytestmark = pytest.mark.slow


@pytest.fixture
def queued(
    clone: Path, slurm_stubs: Callable[[Path], Path], edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A finished clone on a cluster."""
    for key in ("slurm_partition: cpu", "slurm_account: my_account"):
        edit(clone / "workflow/profiles/slurm/config.yaml", f"  # {key}", f"  {key}")
    monkeypatch.setenv("PATH", f"{slurm_stubs(clone)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STUB", str(clone / "stub"))
    monkeypatch.delenv("LEAVEOUT_PLAN", raising=False)
    return clone


def test_an_edit_while_jobs_are_queued_is_refused(queued: Path, snakemake: Snakemake) -> None:
    (queued / CHUNK).unlink()
    (queued / "stub/meanwhile").write_text(f"sed -i s/0.05/0.5/ {queued / SETTING}\n")
    status, output = snakemake(queued, CHUNK, *OPTIONS)
    assert status == 1
    said = output + "".join(p.read_text() for p in (queued / "stub").glob("*.out"))
    why = "recipe.learning_rate: 0.05 -> 0.5"
    assert f"{CHUNK}: edited since this run was planned ({why}), so it is not made" in said
    assert not (queued / CHUNK).exists()


def test_values_and_files_of_the_command_line_reach_the_jobs(
    queued: Path, snakemake: Snakemake
) -> None:
    values = yaml.safe_load((queued / "config/config.yaml").read_text())
    other = values | {"name": "other", "methods": ["grad_dot"], "metrics": ["lds"]}
    (queued / "config/other.yaml").write_text(yaml.safe_dump(other))
    given = ("--configfile", "config/other.yaml", "--config", "bootstrap=30")
    table = "results/trial/lds_table.csv"
    status, output = snakemake(queued, table, *given, *OPTIONS)
    said = output + "".join(p.read_text() for p in (queued / "stub").glob("*.out"))
    assert status == 0, said
    assert (queued / table).is_file()
    assert not (queued / "results/other").exists()
    assert len((queued / "stub/sbatch").read_text().splitlines()) == 2
