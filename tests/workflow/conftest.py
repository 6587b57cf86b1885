"""The real workflow on a tiny configuration, in a folder laid out as a clone is.

The package is copied too, and found before the installed one: tests can edit it, and no one who
edits the repository meanwhile changes a run under way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "bundled")

# Two chunks of every kind of retraining, and methods with one grid point and with two.
SETTING = """\
seed: 0
dataset: {name: digits, n_train: 60, n_test: 12}
model: {name: linear}
recipe: {learning_rate: 0.05, epochs: 3, batch_size: 20}
full: {runs: 2, checkpoints: 1}
lds: {subsets: 8, runs: 2, chunk: 8}
loo: {ids: {first: 6}, replicate: 4, chunk: 6}
pbrf: {ids: {spaced: 6}, replicate: 4, chunk: 6, damping: 1e-1}
"""
METHODS = """\
grad_dot:
if_explicit: {damping: [1, 1e-2]}
tracin_cp:
"""
CONFIG = """\
settings: [tiny]
methods: [grad_dot, if_explicit]
metrics: [lds, loo, pbrf]
bootstrap: 20
"""

FINAL = {
    "results/lds_table.csv",
    "results/loo_table.csv",
    "results/pbrf_table.csv",
    "results/cost_table.csv",
    "results/tidy.csv",
    "results/rank_table.csv",
    "results/published_table.csv",
    "results/figures/lds.svg",
    "results/figures/loo.svg",
    "results/figures/pbrf.svg",
    "results/figures/damping_lds.svg",
    "results/figures/lds_grids.svg",
    "results/figures/loo_grids.svg",
    "results/figures/pbrf_grids.svg",
    "results/figures/quality_cost_lds.svg",
    "results/figures/quality_cost_loo.svg",
    "results/figures/quality_cost_pbrf.svg",
    "results/figures/tiny_examples.svg",
    "results/pages/lds.html",
    "results/pages/loo.html",
    "results/pages/pbrf.html",
    "results/pages/cost.html",
    "results/pages/rank.html",
    "results/pages/published.html",
    "results/pages/start.html",
    "results/pages/setup.html",
}
OF_ALL = {
    "results/cost_table.csv",
    "results/tidy.csv",
    "results/rank_table.csv",
    "results/published_table.csv",
    "results/pages/cost.html",
    "results/pages/rank.html",
    "results/pages/published.html",
    "results/pages/setup.html",  # it reads the table of costs
    "results/figures/quality_cost_lds.svg",  # so do these
    "results/figures/quality_cost_loo.svg",
    "results/figures/quality_cost_pbrf.svg",
}
SCORES = {
    "results/tiny/scores/grad_dot/default.safetensors",
    "results/tiny/scores/if_explicit/damping=1.safetensors",
    "results/tiny/scores/if_explicit/damping=0.01.safetensors",
}

ENVIRONMENT = {
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "Somebody",
    "GIT_AUTHOR_EMAIL": "somebody@example.org",
    "GIT_COMMITTER_NAME": "Somebody",
    "GIT_COMMITTER_EMAIL": "somebody@example.org",
}

# times, and the stamp of what was made from them
VOLATILE = (
    r"cost(\.json|_table\.csv|\.html)(\.stamp)?$|setup\.html\.stamp$"
    r"|quality_cost_\w+\.svg(\.stamp)?$"
)

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def start() -> Start:
    """Return a function that starts Snakemake in a clone, in a process group of its own."""

    def start(clone: Path, *arguments: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if k != "SNAKEMAKE_PROFILE"}
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=clone,
            env={**env, "PYTHONPATH": str(clone / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="session")
def snakemake(start: Start) -> Run:
    """Return a function that runs Snakemake to its end: exit status, and what it said."""

    def run(clone: Path, *arguments: str) -> tuple[int, str]:
        process = start(clone, *arguments)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    return run


@pytest.fixture(scope="session")
def planned_and_said(snakemake: Run) -> Callable[..., tuple[set[str], str]]:
    """Return a function that says what a run would make, and what it says before it plans."""

    def planned_and_said(clone: Path, *arguments: str) -> tuple[set[str], str]:
        status, output = snakemake(clone, "--dry-run", *arguments)
        assert status == 0, output
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)*)", output, re.M)
        made = set()
        for rule, block in jobs:
            if rule == "results":  # makes nothing of its own
                continue
            paths = re.search(r"^ {4}output: (.*)$", block, re.M)
            assert paths, f"{rule}:\n{block}"
            made.add(paths[1].split(", ")[0])
        assert bool(made) != ("Nothing to be done" in output), output
        return made, output.split("Building DAG")[0]

    return planned_and_said


@pytest.fixture(scope="session")
def planned(planned_and_said: Callable[..., tuple[set[str], str]]) -> Callable[..., set[str]]:
    """Return a function that says what a run would make: the first output of every job."""
    return lambda clone, *arguments: planned_and_said(clone, *arguments)[0]


@pytest.fixture(scope="session")
def clone_repository() -> Callable[[Path], None]:
    """Return a function that lays out a clone with the tiny configuration as its default."""

    def clone_repository(folder: Path) -> None:
        for name in ("workflow", "src"):
            shutil.copytree(ROOT / name, folder / name, ignore=COPIED)
        for name in ("slurm", "gpu"):
            (folder / name).symlink_to((ROOT / name).readlink())
        (folder / "config" / "settings").mkdir(parents=True)
        for name in ("published.csv", "causes.yaml"):
            shutil.copy2(ROOT / "config" / name, folder / "config")
        (folder / "config" / "config.yaml").write_text(CONFIG)
        (folder / "config" / "methods.yaml").write_text(METHODS)
        (folder / "config" / "settings" / "tiny.yaml").write_text(SETTING)

    return clone_repository


@pytest.fixture
def fresh(tmp_path: Path, clone_repository: Callable[[Path], None]) -> Path:
    """A clone in which nothing has run."""
    clone_repository(tmp_path / "fresh")
    return tmp_path / "fresh"


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    clone_repository: Callable[[Path], None],
    snakemake: Run,
) -> Path:
    """A clone after one whole, undisturbed run: to be looked at, not changed.

    Tests that run side by side share it: whoever comes first makes it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder in one of all
        shared = shared.parent
    done, folder = shared / "finished.done", shared / "finished" / "clone"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what is left where it failed
            clone_repository(folder)
            status, output = snakemake(folder)
            assert status == 0, output
            done.touch()
    return folder


@pytest.fixture
def clone(tmp_path: Path, finished: Path) -> Path:
    """A copy of the finished clone, to be changed."""
    shutil.copytree(finished, tmp_path / "clone", symlinks=True)
    return tmp_path / "clone"


@pytest.fixture(scope="session")
def final() -> set[str]:
    """What people look at."""
    return set(FINAL)


@pytest.fixture(scope="session")
def below_truth() -> Callable[..., set[str]]:
    """Return a function that names what follows from the metrics: evaluations, tables, figures."""

    def below(*metrics: str, methods: tuple[str, ...] = ("grad_dot", "if_explicit")) -> set[str]:
        evaluated = {f"results/tiny/metrics/{m}/{name}.csv" for m in metrics for name in methods}
        shown = {f"results/{m}_table.csv" for m in metrics}
        shown |= {f"results/pages/{m}.html" for m in (*metrics, "start")}
        drawn = {f"results/figures/{m}.svg" for m in metrics}
        if methods:
            drawn |= {f"results/figures/{m}_grids.svg" for m in metrics}
        # LDS chooses the hyper-parameters shown, LOO the test samples
        if {"grad_dot", "if_explicit"} & {*methods} and {"lds", "loo"} & {*metrics}:
            drawn.add("results/figures/tiny_examples.svg")
        if "if_explicit" in methods and "lds" in metrics:
            drawn.add("results/figures/damping_lds.svg")
        return evaluated | shown | drawn | OF_ALL

    return below


@pytest.fixture(scope="session")
def contents() -> Callable[..., dict[str, str]]:
    """Return a function that digests all results of a clone that no clock has a part in."""

    def contents(clone: Path, under: str = "results") -> dict[str, str]:
        return {
            str(path.relative_to(clone)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((clone / under).rglob("*"))
            if path.is_file() and not re.search(VOLATILE, path.name)
        }

    return contents


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Return a function that runs a program in a clone, with the clone's own package."""
    ours = {"dvc": "dvc", "leaveout": "leaveout.cli"}

    def run(clone: Path, program: str, *arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", ours[program]] if program in ours else [program]
        done = subprocess.run(
            [*command, *arguments],
            cwd=clone,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(clone / "src")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def edit() -> Callable[[Path, str, str], None]:
    """Return a function that replaces a text in a file, which must be there."""

    def edit(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text, f"{path} has no {old!r}"
        path.write_text(text.replace(old, new))

    return edit


def publish(finished: Path, origin: Path, run: Callable[..., str], *more: str) -> Path:
    """Make a git repository of a finished clone, with DVC as this repository has it, and publish.

    Args:
        finished: The clone.
        origin: The repository to make.
        run: Runs a program.
        more: What is published beside what dvc.yaml names.
    """
    shutil.copytree(finished, origin, symlinks=True)
    for name in (".dvcignore", ".gitignore", ".gitattributes"):
        shutil.copy2(ROOT / name, origin)
    (origin / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy2(ROOT / ".dvc" / name, origin / ".dvc")
    # one setting, and none of what only others have
    others = re.compile(r"mnist_mlp|_noise10|/subgroups|(auc|brittleness|subgroups)_table")
    lines = (ROOT / "dvc.yaml").read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not others.search(line)).replace("mnist_lr", "tiny")
    last = "results/figures: {persist: true}"
    assert last in text
    outs = [last, *(f"{out}: {{persist: true}}" for out in more)]
    (origin / "dvc.yaml").write_text(text.replace(last, "\n      - ".join(outs)))
    run(origin, "git", "init", "--quiet")
    run(origin, "git", "add", "--all")
    run(origin, "git", "commit", "--quiet", "--message", "Lay out")
    assert "published" in run(origin, "leaveout", "publish")
    return origin


@pytest.fixture(scope="session")
def origin(
    tmp_path_factory: pytest.TempPathFactory, finished: Path, run: Callable[..., str]
) -> Path:
    """A repository with all layers published in it: to be cloned, not changed."""
    folder = tmp_path_factory.mktemp("origin") / "repository"
    more = ("data.safetensors", "models/full", "retrain", "scores")
    return publish(finished, folder, run, *(f"results/tiny/{name}" for name in more))


@pytest.fixture(scope="session")
def modest(
    tmp_path_factory: pytest.TempPathFactory, finished: Path, run: Callable[..., str]
) -> Path:
    """A repository that publishes what this one does: no data, models, scores or chunks."""
    return publish(finished, tmp_path_factory.mktemp("modest") / "repository", run)
