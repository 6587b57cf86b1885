"""The tutorial, and the commands of other pages, do what is said there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def command(page: str) -> str:
    (block,) = blocks(page, "bash")
    return block


def shell(script: str, clone: Path, status: int = 0) -> str:
    """Run commands in a clone, with its own package for the installed one; return what they say."""
    for name, module in {"leaveout": "leaveout", "snakemake": "snakemake"}.items():
        script = re.sub(rf"^{name} ", f"{sys.executable} -m {module} ", script, flags=re.M)
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone / "src")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_the_panel_of_flipped_labels_needs_no_retraining(
    fresh: Path, dry_run: Callable[..., set[str]]
) -> None:
    name, *words = shlex.split(command("methods.md"))
    assert name == "snakemake"
    shutil.copytree(ROOT / "config", fresh / "config", dirs_exist_ok=True)
    jobs = dry_run(fresh, *words)
    assert "results/mnist_lr_noise10/auc_table.csv" in jobs
    assert not any("/retrain/" in job or "/truth/" in job for job in jobs)


def test_dampings_by_hand_are_the_workflow_s(clone: Path) -> None:
    """On a smaller setting."""
    shell(command("damping.md").replace("mnist_lr", "tiny"), clone)
    ours, workflows = (
        (clone / path).read_text().splitlines()
        for path in ("build/damping.csv", "results/tiny/damping/lds/if_explicit.csv")
    )
    assert sorted(ours) == sorted(workflows)  # a shell sorts the grid by name
    assert (clone / "build" / "damping.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    "page", ["metrics.md", "mnist_lr.md", "mnist_mlp.md", "mnist60k.md", "uncertainty.md"]
)
def test_each_target_resolves(page: str, fresh: Path, dry_run: Callable[..., set[str]]) -> None:
    shutil.copytree(ROOT / "config", fresh / "config", dirs_exist_ok=True)
    line = next(
        line
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line.startswith("snakemake")
    )
    words = shlex.split(line)[1:]
    assert any("/retrain/" in job for job in dry_run(fresh, *words))


def test_settings_md_asks_for_the_same_panel() -> None:
    assert command("settings.md") == command("methods.md")


def added(page: str, clone: Path) -> str:
    """Save the method that a page shows under the name it gives; return that name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    name, code = re.findall(
        r"`src/leaveout/attribution/(\w+)\.py`:\n\n```python\n(.*?)^```", text, re.M | re.S
    )[0]
    (clone / "src" / "leaveout" / "attribution" / f"{name}.py").write_text(code)
    return name  # type: ignore[no-any-return]


def test_the_tutorial(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a smaller setting, of which the scores are there; and the method of methods.md."""
    shutil.copy2(ROOT / "config" / "settings" / "digits_lr.yaml", clone / "config" / "settings")
    setup, plan, first, second, method, setting = blocks("tutorial.md", "bash")
    table, _ = blocks("tutorial.md", "python")
    shown, no_method, no_setting = blocks("tutorial.md", "text")
    assert setup.startswith("make setup")

    assert "digits_lr" in shell(plan, clone)
    said = shell(first.replace("digits_lr", "tiny"), clone)
    assert not re.search("rule (train|retrain|prepare|attribute)", said)
    monkeypatch.chdir(clone)
    exec(compile(table, "tutorial.md", "exec"), {})
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == shown.splitlines()[0].split()
    assert [row.split()[0] for row in rows] == [row.split()[0] for row in shown.splitlines()[1:]]

    assert added("tutorial.md", clone) == "error_dot"
    assert added("methods.md", clone) == "error_dot_mean"
    with (clone / "config" / "methods.yaml").open("a") as file:
        file.write(blocks("methods.md", "yaml")[0])
    said = shell(second.replace("digits_lr", "tiny").replace("dot]", "dot, error_dot_mean]"), clone)
    assert not re.search("rule (train|retrain|prepare)", said)
    rows = pd.read_csv("results/trial/lds_table.csv").set_index("method")
    assert list(rows.index) == ["grad_dot", "if_explicit", "error_dot", "error_dot_mean"]
    assert (rows.loc[["error_dot", "error_dot_mean"], "value"] > 0).all()  # alike errors do help
    assert rows.loc["error_dot_mean", "params"] in ("runs=1", "runs=2")

    assert no_method.strip() in shell(method, clone, status=1)
    assert no_setting.strip() in shell(setting, clone, status=1)
