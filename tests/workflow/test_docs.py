"""The commands of docs/damping.md and docs/methods.md do what is said there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def command(page: str) -> str:
    (block,) = re.findall(r"^```bash\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    return block  # type: ignore[no-any-return]


def test_the_panel_of_flipped_labels_needs_no_retraining(
    fresh: Path, planned: Callable[..., set[str]]
) -> None:
    name, *words = shlex.split(command("methods.md"))
    assert name == "snakemake"
    shutil.copytree(ROOT / "config", fresh / "config", dirs_exist_ok=True)
    jobs = planned(fresh, *words)
    assert "results/auc_table.csv" in jobs
    assert not any("/retrain/" in job or "/truth/" in job for job in jobs)


def test_dampings_by_hand_are_the_workflow_s(clone: Path) -> None:
    """On a smaller setting."""
    block = command("damping.md")
    # the installed script is this module; the clone's own copy of the package is used
    script = block.replace("mnist_lr", "tiny").replace(
        "leaveout ", f"PYTHONPATH=src {sys.executable} -m leaveout.cli "
    )
    subprocess.run(["bash", "-euc", script], cwd=clone, check=True, capture_output=True)
    ours, workflows = (
        (clone / path).read_text().splitlines()
        for path in ("build/damping.csv", "results/tiny/damping/lds/if_explicit.csv")
    )
    assert sorted(ours) == sorted(workflows)  # a shell sorts the grid by name
    assert (clone / "build" / "damping.svg").stat().st_size > 1000
