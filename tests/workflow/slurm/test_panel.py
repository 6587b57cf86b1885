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
    run: Any, snakemake: Callable[..., tuple[int, str]], contents: Callable[..., dict[str, str]]
) -> None:
    # All methods of the panel on one of its settings, with two dampings of the seven. (All of it is
    # 93 jobs, each of which takes some 3 s.)
    for name in ("config", "results", "logs", "benchmarks", ".snakemake"):
        shutil.rmtree(run.clone / name)
    shutil.copytree(ROOT / "config", run.clone / "config")
    (run.clone / "config" / "config.yaml").write_text(
        (ROOT / "config" / "digits.yaml").read_text().replace(", digits_mlp, digits_cnn", "")
    )
    methods = run.clone / "config" / "methods.yaml"
    dampings = "[1, 1e-1, 1e-2, 5e-3, 1e-3, 1e-4, 1e-5]"
    assert methods.read_text().count(dampings) == 2
    methods.write_text(methods.read_text().replace(dampings, "[1e-1, 1e-2]"))
    home = run.clone.with_name("home")
    shutil.copytree(run.clone, home, symlinks=True)

    output = run.finish("results/lds_table.csv")

    assert output.count("has been submitted with SLURM jobid") == 24
    assert len(run.outs("ended")) == len(set(run.outs("began"))) == 24
    assert "Nothing to be done" in run.finish("results/lds_table.csv", "--dry-run")
    assert not list((run.clone / "logs" / "slurm").rglob("*.log"))
    # the same, to the last byte, as without Slurm
    status, output = snakemake(home, "results/lds_table.csv")
    assert status == 0, output
    assert contents(run.clone) == contents(home)
