"""What is wrong, where, and what to do about it, as a user of the workflow reads it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]
Contents = Callable[..., dict[str, str]]

SETTING = "config/settings/tiny.yaml"
CHUNK = "results/tiny/retrain/lds/1-0.safetensors"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (SETTING, "learning_rate", "learning_rat",
         [f"{SETTING}: recipe.learning_rat: unknown key; did you mean 'learning_rate'?"]),
        (SETTING, "lds: {", "lds: {ratio: -0.5, ", [f"{SETTING}: lds.ratio: ", "-0.5"]),
        (SETTING, "{first: 6}", "[3, 60]", [f"{SETTING}: loo.ids: [60] ", "0..59", "remove them"]),
        (SETTING, "{spaced: 6}", "{sapced: 6}", [f"{SETTING}: pbrf.ids"]),
        (SETTING, "damping: 1e-1", "damping: -1", [f"{SETTING}: pbrf.damping: ", "(got -1)"]),
        (SETTING, "subsets: 8, runs: 2, chunk: 8", "subsets: 9000, runs: 2, chunk: 4",
         ["lds.chunk: 18000 in chunks of 4 need 4500 jobs", "set lds.chunk to at least 10"]),
        ("config/config.yaml", "bootstrap", "botstrap",
         ["botstrap: unknown key; did you mean 'bootstrap'?"]),
        ("config/config.yaml", "grad_dot", "grad_dto",
         ["unknown method 'grad_dto'; did you mean 'grad_dot'?"]),
        ("config/methods.yaml", "damping", "dampening",
         ["if_explicit.dampening: unknown key; did you mean 'damping'?"]),
        (SETTING, "seed: 0", "seed: [", [SETTING, "not valid YAML"]),
    ],
)  # fmt: skip
def test_a_fault_of_the_configuration_is_named_before_anything_runs(
    fresh: Path, snakemake: Run, file: str, old: str, new: str, said: list[str]
) -> None:
    text = (fresh / file).read_text()
    assert old in text
    (fresh / file).write_text(text.replace(old, new))
    status, output = snakemake(fresh)
    assert status == 1
    for part in said:
        assert part in output
    # nothing of our code's insides, and few lines
    assert "Traceback" not in output
    assert "src/leaveout" not in output
    assert len(output.splitlines()) < 12, output
    assert not (fresh / "results").exists()


def test_a_missing_gpu_is_named(clone: Path, snakemake: Run) -> None:
    env = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        (clone / CHUNK).unlink()
        status, output = snakemake(clone, CHUNK, "--config", "device=cuda")
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if env is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = env
    assert status == 1
    assert "device: cuda was asked for, but torch finds no GPU here. Set `device: cpu`" in output
    assert "Traceback" not in output
    assert not (clone / CHUNK).exists()


@pytest.fixture
def small_disk(clone: Path) -> Iterator[Path]:
    """A clone whose chunks of LDS lie on a disk of their own, with room for none."""
    folder = clone / "results/tiny/retrain/lds"
    for path in folder.iterdir():
        path.unlink()
    options = ["-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named_and_leaves_no_half_file(
    small_disk: Path, clone: Path, snakemake: Run
) -> None:
    (small_disk / "filler").write_bytes(bytes(4096))
    status, output = snakemake(clone, CHUNK)
    assert status == 1
    assert f"could not write {CHUNK}: the disk is full: free some space" in output
    assert "Traceback" not in output
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_a_read_only_disk_is_named(small_disk: Path, clone: Path, snakemake: Run) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, output = snakemake(clone, CHUNK)
    assert status == 1
    # Snakemake makes way for the output before the job starts, and is stopped first
    assert "Read-only file system" in output
    assert CHUNK in output
