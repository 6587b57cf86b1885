"""The digits panel through Slurm, to the table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def test_the_digits_panel_runs_through_slurm_to_the_table(
    run: Any,
) -> None:
    # One setting and a few of the methods: each of its jobs takes some 3 s. That the files are the
    # same as without Slurm, to the last byte, test_faults.py shows on a smaller one.
    for name in ("config", "results", "logs", ".snakemake"):
        shutil.rmtree(run.clone / name)
    shutil.copytree(ROOT / "config", run.clone / "config")
    values = yaml.safe_load((ROOT / "config" / "digits.yaml").read_text())
    del values["name"]  # what has one goes to a folder of its own
    few = {name: values["methods"][name] for name in ("random", "grad_dot", "trak_1")}
    values |= {
        "settings": ["digits_lr"],
        "methods": few | {"if_explicit": {"damping": [0.1, 0.01]}},
    }
    (run.clone / "config" / "config.yaml").write_text(yaml.safe_dump(values))

    output = run.finish("results/lds_table.csv")

    assert output.count("has been submitted with SLURM jobid") == 19
    assert len(run.outs("ended")) == len(set(run.outs("began"))) == 19
    assert "Nothing to be done" in run.finish("results/lds_table.csv", "--dry-run")
    assert not list((run.clone / "logs" / "slurm").rglob("*.log"))
