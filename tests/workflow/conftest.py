"""The real workflow on a tiny configuration, in a folder laid out as a clone is.

The package is copied too, and found before the installed one: tests can edit it, and no one who
edits the repository meanwhile changes a run under way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from leaveout.config import load_methods
from leaveout.store import artefacts
from leaveout.workflow import confirm, lock
from leaveout.workflow.steps import STEPS

ROOT = Path(__file__).parents[2]
LOCK = Path("src/leaveout/workflow/steps.lock")
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

# the environment's programs, activated or not
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

# Slurm, as a set of programs that write down what they are called with and run a job at once.
# What a file `meanwhile` beside them says is done between a job's submission and its start.
STUBS = {
    "sbatch": """\
echo "$@" >> "$SLURM_STUB/sbatch"
for last; do :; done
job=$(wc -l < "$SLURM_STUB/sbatch")
state=COMPLETED
[[ ! -e "$SLURM_STUB/meanwhile" ]] || bash "$SLURM_STUB/meanwhile"
bash -c "${last#--wrap=}" > "$SLURM_STUB/$job.out" 2>&1 || state=FAILED
echo "$job|$state" >> "$SLURM_STUB/states"
echo "$job"
""",
    "squeue": 'cat "$SLURM_STUB/states"',
    "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "MinJobAge               = 300 sec"',
    "sacct": 'echo "Slurm accounting storage is disabled" >&2; exit 1',
    "sacctmgr": "echo my_account",
    "sshare": "exit 1",
    "sinfo": "exit 1",
    "scancel": "",
}

# times, and what shows them
VOLATILE = r"costs?\.json$|cost_table\.csv$|pages/cost\.html$|quality_cost_\w+\.svg$"

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., tuple[int, str]]
Once = Callable[[str, Callable[[Path], None]], Path]


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
def dry_run(snakemake: Run) -> Callable[..., set[str]]:
    """Return a function that asks Snakemake what it would make: the first output of every job."""

    def dry_run(clone: Path, *arguments: str) -> set[str]:
        status, output = snakemake(clone, "--dry-run", *arguments)
        assert status == 0, output
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)*)", output, re.M)
        made = set()
        for rule, block in jobs:
            if rule in ("results", "models", "truths", "scores", "tables"):  # of others' files
                continue
            paths = re.search(r"^ {4}output: (.*)$", block, re.M)
            assert paths, f"{rule}:\n{block}"
            made.add(paths[1].split(", ")[0])
        assert bool(made) != ("Nothing to be done" in output), output
        return made

    return dry_run


def look(*targets: str) -> tuple[list[str], str]:
    """Say which jobs are due in this folder, by their first outputs, and why.

    It imports what it needs: its text is also run by itself, with a clone's own code.
    """
    from pathlib import Path

    from leaveout.config import load_yaml
    from leaveout.workflow.due import due
    from leaveout.workflow.review import describe, review
    from leaveout.workflow.steps import load_plan

    plan = load_plan(load_yaml(Path("config/config.yaml")), "config")
    found = review(plan.jobs, plan.config.exact)
    jobs = due(plan.jobs, found, targets or plan.shown())
    return [job.makes[0] for job in jobs], describe(found.stale)


@pytest.fixture(scope="session")
def planned_and_said() -> Callable[..., tuple[set[str], str]]:
    """Return a function that says what a run would make, and why: without starting a program.

    The code is that of this process, confirmed as in the clone: what was edited there is not seen.
    """

    def planned_and_said(clone: Path, *targets: str) -> tuple[set[str], str]:
        with contextlib.chdir(clone), pytest.MonkeyPatch.context() as patch:
            patch.setattr(lock, "LOCK", clone / LOCK)
            lock.look_again()
            made, said = look(*targets)
        lock.look_again()
        return set(made), said

    return planned_and_said


@pytest.fixture(scope="session")
def planned(planned_and_said: Callable[..., tuple[set[str], str]]) -> Callable[..., set[str]]:
    """Return a function that says what a run would make: the first output of every job."""
    return lambda clone, *targets: planned_and_said(clone, *targets)[0]


@pytest.fixture(scope="session")
def planned_by_its_code(run: Callable[..., str]) -> Callable[..., set[str]]:
    """Return a function that says what a run would make, by the clone's own code."""
    code = f"import json, sys\n{inspect.getsource(look)}\nprint(json.dumps(look(*sys.argv[1:])[0]))"
    code = f"from __future__ import annotations\n{code}"

    def planned_by_its_code(clone: Path, *targets: str) -> set[str]:
        return set(json.loads(run(clone, sys.executable, "-c", code, *targets)))

    return planned_by_its_code


@pytest.fixture(scope="session")
def clone_repository() -> Callable[[Path], None]:
    """Return a function that lays out a clone with the tiny configuration as its default.

    Its code counts as confirmed, whatever is being edited here.
    """

    methods = load_methods(confirm.SAMPLE / "methods.yaml").values()
    confirmed = json.dumps({**lock.locked(), **lock.entries(STEPS.values(), methods)})

    def clone_repository(folder: Path) -> None:
        for name in ("workflow", "src"):
            shutil.copytree(ROOT / name, folder / name, ignore=COPIED)
        for name in ("slurm", "gpu"):
            (folder / name).symlink_to((ROOT / name).readlink())
        (folder / LOCK).write_text(confirmed)
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
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Return a function that makes a folder once in a session.

    Tests that run side by side share it: whoever comes first makes it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder in one of all
        shared = shared.parent

    def once(name: str, make: Callable[[Path], None]) -> Path:
        done, folder = shared / f"{name}.done", shared / name / "clone"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what is left where it failed
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def finished(once: Once, clone_repository: Callable[[Path], None], snakemake: Run) -> Path:
    """A clone after one whole, undisturbed run: to be looked at, not changed."""

    def make(folder: Path) -> None:
        clone_repository(folder)
        status, output = snakemake(folder)
        assert status == 0, output

    return once("finished", make)


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


def unlike_clocks(path: Path) -> bytes:
    """Return what a file holds, apart from the digests of inputs that hold times.

    A metric's files name the costs of the scores they were made from, and what is made from them
    names them in turn.
    """
    if path.suffix == ".stamp":
        stamp = json.loads(path.read_text())
        if re.search(VOLATILE, path.with_suffix("").as_posix()):
            del stamp["sha256"]
    elif path.name.endswith(".draws.safetensors"):
        found = artefacts.read(path)
        stamp = dict(found.meta)
        held = {name: values.tobytes() for name, values in found.tensors.items()}
        stamp["held"] = {name: hashlib.sha256(held[name]).hexdigest() for name in sorted(held)}
    else:
        return path.read_bytes()
    for name, source in stamp["inputs"].items():
        if re.search(VOLATILE, name) or name.endswith(".draws.safetensors"):
            del source["sha256"]
    return json.dumps(stamp).encode()


@pytest.fixture(scope="session")
def contents() -> Callable[..., dict[str, str]]:
    """Return a function that digests all results of a clone that no clock has a part in."""

    def contents(clone: Path, under: str = "results") -> dict[str, str]:
        return {
            str(path.relative_to(clone)): hashlib.sha256(unlike_clocks(path)).hexdigest()
            for path in sorted((clone / under).rglob("*"))
            if path.is_file() and not re.search(VOLATILE, path.as_posix())
        }

    return contents


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Return a function that runs a program in a clone, with the clone's own package."""
    ours = {"dvc": "dvc", "leaveout": "leaveout"}

    def run(clone: Path, program: str, *arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", ours[program]] if program in ours else [program]
        done = subprocess.run(
            [*command, *arguments],
            cwd=clone,
            env={**os.environ, **ENVIRONMENT, "PATH": PATH, "PYTHONPATH": str(clone / "src")},
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


def lay_out(finished: Path, origin: Path, run: Callable[..., str], *more: str) -> None:
    """Make a git repository of a finished clone, with DVC as this repository has it.

    Args:
        finished: The clone.
        origin: The repository to make.
        run: Runs a program.
        more: What is shared beside what dvc.yaml names.
    """
    shutil.copytree(finished, origin, symlinks=True)
    for name in (".dvcignore", ".gitignore", ".gitattributes"):
        shutil.copy2(ROOT / name, origin)
    (origin / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy2(ROOT / ".dvc" / name, origin / ".dvc")
    # one setting and one configuration, and none of what only others have
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    outs = stage["stages"]["results"]["outs"]
    kept = [path.replace("mnist_lr", "tiny") for out in outs for path in out]
    kept = [path for path in kept if (origin / path).exists()]
    assert len(kept) > 15
    stage["stages"]["results"]["cmd"] = "snakemake results"
    stage["stages"]["results"]["outs"] = [{path: {"persist": True}} for path in (*kept, *more)]
    (origin / "dvc.yaml").write_text(yaml.safe_dump(stage, sort_keys=False))
    run(origin, "git", "init", "--quiet")
    run(origin, "git", "add", "--all")
    run(origin, "git", "commit", "--quiet", "--message", "Lay out")


def share(origin: Path, run: Callable[..., str]) -> None:
    """Record, push and commit what lies in a repository, as it is."""
    run(origin, "dvc", "commit", "--quiet", "--force")
    run(origin, "dvc", "push", "--quiet")
    run(origin, "git", "add", "--all")
    run(origin, "git", "commit", "--quiet", "--message", "Share results")


@pytest.fixture(scope="session")
def laid_out(once: Once, finished: Path, run: Callable[..., str]) -> Path:
    """A repository with results of which none is published: to be copied, not changed."""
    return once("laid_out", lambda folder: lay_out(finished, folder, run))


@pytest.fixture(scope="session")
def origin(once: Once, finished: Path, run: Callable[..., str]) -> Path:
    """A repository with all layers published in it: to be cloned, not changed."""
    more = ("data.safetensors", "models/full", "retrain", "scores")

    def make(folder: Path) -> None:
        lay_out(finished, folder, run, *(f"results/tiny/{name}" for name in more))
        share(folder, run)

    return once("origin", make)


@pytest.fixture(scope="session")
def modest(once: Once, laid_out: Path, run: Callable[..., str]) -> Path:
    """A repository that publishes what this one does: no data, models, scores or chunks."""

    def make(folder: Path) -> None:
        shutil.copytree(laid_out, folder, symlinks=True)
        share(folder, run)

    return once("modest", make)


@pytest.fixture(scope="session")
def pull(once: Once, run: Callable[..., str]) -> Callable[[Path, Path], Path]:
    """Return a function that lays out a clone of a repository after `dvc pull`.

    The files' times are in no order at all.
    """

    def pull(origin: Path, folder: Path) -> Path:
        def make(first: Path) -> None:
            run(origin.parent, "git", "clone", "--quiet", str(origin), str(first))
            run(first, "dvc", "pull")

        shutil.copytree(once(f"{origin.parent.name}-pulled", make), folder, symlinks=True)
        clock = random.Random(0)
        for path in sorted(p for p in (folder / "results").rglob("*") if p.is_file()):
            os.utime(path, (clock.randrange(10**9), clock.randrange(10**9)))
        return folder

    return pull


@pytest.fixture
def pulled(pull: Callable[[Path, Path], Path], origin: Path, tmp_path: Path) -> Path:
    """A clone in which all layers were pulled, to be changed."""
    return pull(origin, tmp_path / "pulled")


@pytest.fixture
def cloned(run: Callable[..., str], tmp_path: Path, origin: Path) -> Path:
    """A fresh clone in another path, nothing pulled."""
    run(tmp_path, "git", "clone", "--quiet", str(origin), "somewhere-else")
    return tmp_path / "somewhere-else"


@pytest.fixture(scope="session")
def slurm_stubs() -> Callable[[Path], Path]:
    """Return a function that puts stubs of Slurm into a clone: their notes go to `stub`."""

    def slurm_stubs(clone: Path) -> Path:
        folder = clone / "bin"
        folder.mkdir()
        (clone / "stub").mkdir()
        for name, code in STUBS.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{code}\n")
            (folder / name).chmod(0o755)
        return folder

    return slurm_stubs
