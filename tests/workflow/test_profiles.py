"""What the profiles make of a run: at home, on a cluster, and after a kill.

A toy workflow under the project's own profiles; Slurm is a set of stubs that write down what they
are called with and run the job at once.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "workflow" / "profiles"

SNAKEFILE = """
from leaveout.workflow.runlock import acquire

onstart:
    acquire()

rule results:
    input: "results/table.csv"

rule chunk:
    output: "results/chunk{i}.txt"
    threads: 1000
    resources: gpu=1, mem_mb=777
    shell: "echo {wildcards.i} >> results/started; "
           "while test -e results/hold{wildcards.i}; do sleep 0.05; done; "
           "echo {threads} > {output}"

rule plain:
    output: "results/plain.txt"
    shell: "touch {output}"

rule table:
    input: "results/chunk0.txt", "results/chunk1.txt"
    output: "results/table.csv"
    shell: "cat {input} > {output}"
"""


def profile(name: str) -> dict[str, object]:
    """Return the keys of a profile, as they are without a template engine."""
    loaded = yaml.safe_load((PROFILES / name / "config.yaml").read_text())
    assert isinstance(loaded, dict)
    return {key: value for key, value in loaded.items() if not key.startswith("__")}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder laid out as the repository is, with a toy for a workflow."""
    shutil.copytree(PROFILES, tmp_path / "workflow" / "profiles")
    (tmp_path / "workflow" / "Snakefile").write_text(SNAKEFILE)
    for name in ("slurm", "gpu"):
        (tmp_path / name).symlink_to((ROOT / name).readlink())
    (tmp_path / "results").mkdir()
    return tmp_path


def environment(clone: Path, *paths: Path) -> dict[str, str]:
    """Return this process's environment without a profile of the user's own."""
    env = {k: v for k, v in os.environ.items() if k != "SNAKEMAKE_PROFILE"}
    env["PATH"] = os.pathsep.join([*map(str, paths), env["PATH"]])
    env["SLURM_STUB"] = str(clone / "stub")
    return env


def start(clone: Path, *arguments: str, stubs: Path | None = None) -> subprocess.Popen[str]:
    """Start Snakemake in the clone, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=clone,
        env=environment(clone, *([stubs] if stubs else [])),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(clone: Path, *arguments: str, stubs: Path | None = None) -> tuple[int, str]:
    """Run Snakemake to its end; return its exit status and what it said."""
    process = start(clone, *arguments, stubs=stubs)
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def wait_for(path: Path, content: set[str]) -> None:
    """Wait until a file has these lines."""
    for _ in range(600):
        if path.exists() and content <= set(path.read_text().split()):
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} never had {content}")


@pytest.fixture
def stubs(clone: Path, slurm_stubs: Callable[[Path], Path]) -> Path:
    """Programs of Slurm's names that run jobs at once."""
    return slurm_stubs(clone)


@pytest.fixture
def held(clone: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run with chunk 0 done and chunk 1 under way until its hold file is removed."""
    (clone / "results" / "hold1").touch()
    process = start(clone, "results", "--cores", "2", "--set-threads", "chunk=1")
    try:
        wait_for(clone / "results" / "started", {"0", "1"})
        wait_for(clone / "results" / "chunk0.txt", {"1"})
        yield process, clone
    finally:
        (clone / "results" / "hold1").unlink(missing_ok=True)
        process.communicate(timeout=400)


@pytest.mark.parametrize("name", ["slurm", "gpu"])
def test_no_key_stands_in_both_profiles(name: str) -> None:
    # Snakemake lets the default profile override the other one
    assert not profile("default").keys() & profile(name).keys()


def test_every_key_has_its_reason() -> None:
    for name in ("default", "slurm", "gpu"):
        text = (PROFILES / name / "config.yaml").read_text()
        for key in profile(name).keys() - {"executor"}:
            block = re.split(r"\n\n", text[: text.index(f"\n{key}:")])[-1]
            assert "# " in block, f"{name}: {key}"


def test_a_run_here_needs_no_options(clone: Path) -> None:
    status, output = run(clone, "results/table.csv")
    assert status == 0, output
    cores = str(len(os.sched_getaffinity(0)))
    assert (clone / "results" / "table.csv").read_text().split() == [cores, cores]


def test_slurm_resolves_from_the_root_of_the_repository(clone: Path) -> None:
    assert (ROOT / "slurm" / "config.yaml").samefile(PROFILES / "slurm" / "config.yaml")
    status, output = run(clone, "--profile", "slurm", "results/table.csv", "--dry-run")
    assert status == 0, output
    assert re.search(r"^total +3$", output, re.M)


@pytest.mark.slow
def test_slurm_gets_what_rule_and_profile_ask_for(clone: Path, stubs: Path) -> None:
    # as a user edits it for a cluster
    path = clone / "workflow" / "profiles" / "slurm" / "config.yaml"
    text = path.read_text()
    for key in ("slurm_partition: cpu", "slurm_account: my_account"):
        assert f"  # {key}" in text
        text = text.replace(f"  # {key}", f"  {key}")
    path.write_text(text)

    targets = "results/chunk0.txt", "results/plain.txt"
    options = "--slurm-init-seconds-before-status-checks=1", "--latency-wait=5"
    status, output = run(clone, "--profile", "slurm", *targets, *options, stubs=stubs)

    assert status == 0, output
    submitted = (clone / "stub" / "sbatch").read_text().splitlines()
    chunk, plain = sorted(submitted, key=lambda line: "--comment rule_plain" in line)
    site = ("-p cpu", "-A my_account", "-t 60")
    # the rule's threads, though this machine has fewer
    for flag in (*site, "--mem 777", "--gpus=1", "--cpus-per-task=1000", "--requeue"):
        assert f" {flag} " in chunk.replace("'", "")
    for flag in (*site, "--mem 4000", "--cpus-per-task=1"):
        assert f" {flag} " in plain.replace("'", "")
    assert "--gpus" not in plain


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        ('echo "7|RUNNING"', "7|RUNNING"),  # there is accounting: its answer
        ("exit 1", "12|COMPLETED"),  # there is none: squeue's
    ],
)
def test_sacct_is_answered_with_and_without_accounting(
    real: str, expected: str, clone: Path, stubs: Path
) -> None:
    (stubs / "sacct").write_text(f"#!/usr/bin/env bash\n{real}\n")
    (stubs / "squeue").write_text(
        '#!/usr/bin/env bash\n[[ $* == *--name\\ run1 ]] && echo "12|COMPLETED"\n'
    )
    env = environment(clone, PROFILES / "slurm" / "bin", stubs)
    command = ["sacct", "-X", "--parsable2", "--format=JobIdRaw,State", "--name", "run1"]
    assert subprocess.check_output(command, env=env, text=True).split() == [expected]
    # what Snakemake asks it about accounts is not for squeue
    other = subprocess.run(["sacct", "-nu", "me"], env=env, capture_output=True, text=True)
    assert (other.stdout.strip() or "none") == (expected if real != "exit 1" else "none")
    assert other.returncode == (real == "exit 1")


def test_jobs_on_a_workstation_take_a_gpu_each_and_wait_for_one(clone: Path) -> None:
    # six jobs for two GPUs, which are not there: each writes down which one it has, and when
    (clone / "job.py").write_text(
        "import os, sys, time; from leaveout.devices import claim\n"
        "claimed = claim(os.environ); began = time.monotonic(); time.sleep(0.5)\n"
        "print(claimed, began, time.monotonic(), file=open(sys.argv[1], 'w'))\n"
    )
    (clone / "workflow" / "Snakefile").write_text(
        'rule all:\n    input: expand("results/{i}.txt", i=range(6))\n\n'
        'rule one:\n    output: "results/{i}.txt"\n    resources: gpu=1\n'
        f'    shell: "{sys.executable} job.py {{output}}"\n'
    )
    gpus = {"LEAVEOUT_GPUS": "4,7", "TMPDIR": str(clone)}
    command = [sys.executable, "-m", "snakemake", "--profile", "gpu", "--cores", "6"]
    done = subprocess.run(
        command, cwd=clone, env=environment(clone) | gpus, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Execute 2 jobs..." in done.stderr
    jobs = [(clone / "results" / f"{i}.txt").read_text().split() for i in range(6)]
    assert {gpu for gpu, _, _ in jobs} == {"4", "7"}
    for gpu in ("4", "7"):
        times = sorted((float(began), float(ended)) for g, began, ended in jobs if g == gpu)
        assert all(before[1] <= after[0] for before, after in pairwise(times))


def test_a_second_run_in_the_same_folder_is_refused(
    held: tuple[subprocess.Popen[str], Path],
) -> None:
    process, clone = held
    status, output = run(clone, "results/chunk1.txt")
    assert status == 1
    assert f"another run (pid {process.pid} on host " in output
    # looking is allowed
    assert run(clone, "results", "--dry-run")[0] == 0
    (clone / "results" / "hold1").unlink()
    assert process.wait(timeout=400) == 0
    assert (clone / "results" / "table.csv").exists()


@pytest.mark.parametrize("whom", ["snakemake", "job", "both"])
def test_after_a_kill_the_same_command_redoes_what_was_not_finished(
    held: tuple[subprocess.Popen[str], Path], whom: str
) -> None:
    process, clone = held
    if whom == "snakemake":
        os.kill(process.pid, signal.SIGKILL)
    elif whom == "both":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        jobs = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
            and int(entry.name) != process.pid
            and os.getpgid(int(entry.name)) == process.pid
        ]
        assert jobs
        for job in jobs:
            os.kill(job, signal.SIGKILL)
    (clone / "results" / "hold1").unlink()
    assert process.wait(timeout=400) != 0
    if whom == "snakemake":  # its job lives on, and what it finishes is finished
        wait_for(clone / "results" / "chunk1.txt", {"1"})
    assert not (clone / "results" / "table.csv").exists()

    status, output = run(clone, "results", "--cores", "2", "--set-threads", "chunk=1")

    assert status == 0, output
    started = (clone / "results" / "started").read_text().split()
    assert sorted(started) == ["0", "1"] + ["1"] * (whom != "snakemake")
    assert "Nothing to be done" in run(clone, "results")[1]
