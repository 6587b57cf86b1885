"""The commands of docs/damping.md run as they stand, on a smaller setting, and give its numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "damping.md"


def test_the_commands_give_what_the_workflow_gives(clone: Path) -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
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
