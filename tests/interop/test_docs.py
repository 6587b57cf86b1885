"""The commands of docs/peers.md run as they stand; its Python runs in tests/peers."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import pytest

from leaveout.cli import program as cli
from leaveout.store import artefacts

DOCS = Path(__file__).parents[2] / "docs" / "peers.md"


def test_the_commands_run_and_lose_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(root)
    monkeypatch.setattr(cli, "CONFIG", Path("config"))
    blocks = re.findall(r"^```bash\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "leaveout"
        assert cli.main(words) == 0, command

    again = "--setting mnist_lr --metric lds --method grad_dot --out build/ours.csv"
    scores = "results/mnist_lr/scores/grad_dot/default.safetensors"
    truth = "results/mnist_lr/truth/lds.safetensors"
    assert cli.main(f"evaluate {again} --truth {truth} --scores {scores}".split()) == 0
    tables = []
    for name in ("grad_dot", "ours"):
        with Path(f"build/{name}.csv").open(newline="") as file:
            tables.append([row for row in csv.DictReader(file) if row["truth"] == "mean"])
    for theirs, ours in zip(*tables, strict=True):
        # six decimals, and the mean of two runs rounded to float32 may tie two subsets
        assert float(theirs["value"]) == pytest.approx(float(ours["value"]), abs=1e-5)
        assert theirs["ceiling_note"].startswith("one run of each subset")
    first, second = (artefacts.read(f"build/{name}.safetensors") for name in ("lds", "lds2"))
    assert first.sha256 == second.sha256
