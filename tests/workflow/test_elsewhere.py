"""Other configurations beside the default one, and clones in other places."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

Snakemake = Callable[..., tuple[int, str]]
Planned = Callable[..., set[str]]
Edit = Callable[[Path, str, str], None]

CONFIG = "config/config.yaml"
TABLE = "lds_table.csv"
DATA = "results/tiny/data.safetensors"


def everything(clone: Path) -> dict[Path, tuple[bytes, int]]:
    """Return contents and times of all results."""
    files = [path for path in (clone / "results").rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_another_configuration_touches_no_file_of_the_default_one(
    clone: Path, planned: Planned, dry_run: Planned, snakemake: Snakemake
) -> None:
    assert planned(clone) == set()  # times are right now
    before = everything(clone)
    values = yaml.safe_load((clone / CONFIG).read_text())
    other = values | {"name": "other", "methods": ["grad_dot", "tracin_cp"], "metrics": ["lds"]}
    (clone / "config/other.yaml").write_text(yaml.safe_dump(other))
    given = ("--configfile", "config/other.yaml")
    status, output = snakemake(clone, f"results/other/{TABLE}", *given)
    assert status == 0, output
    after = everything(clone)
    assert {path: after[path] for path in before} == before
    rows = (clone / "results/other" / TABLE).read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["method", "grad_dot", "tracin_cp"]
    # what it scored lies with the others' scores, and its tables apart
    new = {path.relative_to(clone / "results").parts[0] for path in after.keys() - before.keys()}
    assert new == {"other", "tiny"}
    assert planned(clone) == set()
    assert dry_run(clone, f"results/other/{TABLE}", *given) == set()


def test_values_on_the_command_line_make_a_trial(
    clone: Path, planned: Planned, dry_run: Planned, snakemake: Snakemake
) -> None:
    assert planned(clone) == set()
    before = everything(clone)
    assert all(
        path.startswith("results/trial/") for path in dry_run(clone, "--config", "bootstrap=30")
    )
    table = f"results/trial/{TABLE}"
    status, output = snakemake(clone, table, "--config", "bootstrap=30")
    assert status == 0, output
    after = everything(clone)
    assert {path: after[path] for path in before} == before
    assert (clone / table).is_file()
    assert planned(clone) == set()


def test_neither_device_nor_a_name_makes_a_trial(clone: Path, dry_run: Planned) -> None:
    assert dry_run(clone, "--config", "device=cuda") == set()


@pytest.mark.parametrize("name", ["a {brace} 'and' \"quotes\"", "{}{{x}}$HOME `ls`; #%"])
def test_a_folder_of_any_name(
    name: str, tmp_path: Path, clone_repository: Callable[[Path], None], snakemake: Snakemake
) -> None:
    clone = tmp_path / name
    clone_repository(clone)
    status, output = snakemake(clone, DATA)
    assert status == 0, output
    assert (clone / DATA).exists()
    elsewhere = tmp_path / f"else {name}"
    elsewhere.mkdir()
    given = ("--configfile", str(clone / CONFIG))
    status, output = snakemake(clone, "--directory", str(elsewhere), DATA, *given)
    assert status == 0, output
    assert (elsewhere / DATA).exists()


def test_the_workflow_can_be_run_from_another_folder(
    fresh: Path, tmp_path: Path, snakemake: Snakemake
) -> None:
    (tmp_path / "elsewhere").mkdir()
    status, output = snakemake(
        fresh, "--directory", str(tmp_path / "elsewhere"), DATA, "--configfile", CONFIG
    )
    assert status == 0, output
    assert (tmp_path / "elsewhere" / DATA).exists()
    assert not (fresh / "results").exists()


MODULE = """\
configfile: "mine.yaml"


module lo:
    snakefile:
        "{snakefile}"
    config:
        config


use rule * from lo


rule all:
    default_target: True
    input:
        "{target}",
    output:
        "report.txt",
    shell:
        "cp {{input}} {{output}}"
"""


def test_it_can_be_a_module_of_another_workflow(
    fresh: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    caller = tmp_path / "caller"
    caller.mkdir()
    (caller / "mine.yaml").write_text((fresh / CONFIG).read_text())
    text = MODULE.format(snakefile=fresh / "workflow/Snakefile", target=DATA)
    (caller / "Snakefile").write_text(text)
    (caller / "src").symlink_to(fresh / "src")
    process = start(caller, "--cores", "1", "--rerun-triggers", "mtime")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert (caller / DATA).exists()
    assert (caller / "report.txt").exists()
    assert not (fresh / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--configfile", "nope.yaml"), "nope.yaml"),
        (("results/ldss_table.csv",), "results/lds_table.csv"),
        (("results/tiny/scores/grad_dto/default.safetensors",), "grad_dot"),
        (("--configfile", "config/othr.yaml"), "other"),
    ],
)
def test_what_is_not_there_is_named_in_few_lines(
    arguments: tuple[str, ...], said: str, fresh: Path, snakemake: Snakemake
) -> None:
    (fresh / "config/other.yaml").write_text((fresh / CONFIG).read_text())
    status, output = snakemake(fresh, *arguments)
    assert status == 1
    assert said in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 25, output


@pytest.fixture
def read_only(fresh: Path) -> Iterator[Path]:
    """A clone that can't be written, not even by root."""
    bound = ["mount", "--bind", str(fresh), str(fresh)]
    try:
        done = subprocess.run(bound, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(fresh)], check=True)
    try:
        yield fresh
    finally:
        subprocess.run(["umount", "--lazy", str(fresh)], check=True)


def test_a_read_only_clone_says_what_is_wrong(read_only: Path, snakemake: Snakemake) -> None:
    status, output = snakemake(read_only, DATA)
    assert status == 1
    assert "read-only" in output.lower()
    assert "Traceback" not in output
    assert len(output.splitlines()) < 25, output
