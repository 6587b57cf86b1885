"""A whole run on a tiny setting, made by the commands that the plan names, in this process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from leaveout.cli import program as cli
from leaveout.explain import explain
from leaveout.store import stamps
from leaveout.workflow.step import Job
from leaveout.workflow.steps import load_plan

ROOT = Path(__file__).parents[2]
SETTING = """\
seed: 3
dataset: {name: digits, n_train: 60, n_test: 12, label_noise: {fraction: 0.2}}
model: {name: linear}
recipe: {learning_rate: 0.05, epochs: 2, batch_size: 20}
full: {runs: 2, checkpoints: 1}
half: {runs: 2}
lds: {subsets: 8, runs: 2, chunk: 4}
loo: {ids: {first: 6}, replicate: 3, chunk: 6}
pbrf: {ids: {spaced: 4}, replicate: 3, damping: 1e-1}
"""
METHODS = """\
grad_dot:
if_explicit: {damping: [1, 1e-2]}
trak_1: {module: leaveout.attribution.trak, models: 1, projection: 8}
"""
CONFIG = """\
settings: [tiny]
methods: all
metrics: [lds, loo, pbrf, auc]
compare: [if_explicit, grad_dot]
bootstrap: 20
"""
Explain = Callable[..., dict[str, Any]]


def jobs(config: Path) -> list[Job]:
    """Return today's jobs in the working folder."""
    return load_plan(yaml.safe_load(config.read_text()), Path("config")).jobs


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all results, pictures aside: to be looked at, not changed."""
    folder = tmp_path_factory.mktemp("explain") / "run"
    (folder / "config" / "settings").mkdir(parents=True)
    for source in ("published.csv", "causes.yaml"):  # what tables are made from, beside results
        if (ROOT / "config" / source).is_file():
            shutil.copy2(ROOT / "config" / source, folder / "config")
    (folder / "config" / "config.yaml").write_text(CONFIG)
    (folder / "config" / "methods.yaml").write_text(METHODS)
    (folder / "config" / "settings" / "tiny.yaml").write_text(SETTING)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for job in jobs(Path("config/config.yaml")):
            if Path(job.makes[0]).suffix in (".safetensors", ".csv"):
                assert cli.main(job.command()[1:]) == 0, job.line
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, as the working folder: not to be changed."""
    monkeypatch.chdir(run)
    return run


@pytest.fixture
def copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, as the working folder, to be changed."""
    shutil.copytree(run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def told() -> Explain:
    """Return a function that explains a number of the working folder."""

    def told(table: str, row: str | None, column: str | None = None, **more: Any) -> dict[str, Any]:
        answer = explain(Path(table), row, column, folder=Path("config"), **more)
        assert json.loads(json.dumps(answer)) == answer
        return answer

    return told


@pytest.fixture
def make() -> Callable[[Path, str], None]:
    """Return a function that makes a file of a configuration, and what is missing for it."""

    def make(config: Path, wanted: str) -> None:
        makers = {path: job for job in jobs(config) for path in job.makes}

        def visit(path: str) -> None:
            if path in makers and not Path(path).is_file():
                for name in makers[path].reads:
                    visit(name)
                assert cli.main(makers[path].command()[1:]) == 0, makers[path].line

        visit(wanted)

    return make


@pytest.fixture
def rewrite() -> Callable[[str, str, str], None]:
    """Return a function that replaces a text in a file, and gives it a stamp that fits."""

    def rewrite(path: str, old: str, new: str) -> None:
        stamp = stamps.read(path)
        assert stamp is not None
        text = Path(path).read_text()
        assert old in text
        Path(path).write_text(text.replace(old, new, 1))
        stamps.write(path, stamp.key, stamp.inputs)

    return rewrite
