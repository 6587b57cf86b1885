"""The digits panel through Slurm, to the table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def test_the_digits_panel_runs_through_slurm_to_the_table(
    run: Any, snakemake: Callable[..., tuple[int, str]], contents: Callable[..., dict[str, bytes]]
) -> None:
    # All methods of the panel on one of its settings. (The three are 93 jobs, of some 3 s each.)
    for name in ("config", "results", "logs", "benchmarks", ".snakemake"):
        shutil.rmtree(run.clone / name)
    shutil.copytree(ROOT / "config", run.clone / "config")
    (run.clone / "config" / "config.yaml").write_text(
        (ROOT / "config" / "digits.yaml").read_text().replace(", digits_mlp, digits_cnn", "")
    )
    home = run.clone.with_name("home")
    shutil.copytree(run.clone, home, symlinks=True)

    output = run.finish("results/lds_table.csv")

    assert output.count("has been submitted with SLURM jobid") == 32
    assert len(run.outs("ended")) == len(set(run.outs("began"))) == 32
    assert "Nothing to be done" in run.finish("results/lds_table.csv", "--dry-run")
    assert not list((run.clone / "logs" / "slurm").rglob("*.log"))
    # the same, to the last byte, as without Slurm
    status, output = snakemake(home, "results/lds_table.csv")
    assert status == 0, output
    assert contents(run.clone) == contents(home)
