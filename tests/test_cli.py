from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leaveout.cli import program as cli
from leaveout.store import artefacts
from leaveout.workflow.steps import STEPS

ROOT = Path(__file__).parents[1]
OTHERS = ("restore", "publish", "plan", "confirm", "explain", "export", "import", "schema")
COMMANDS = (*(step.command for step in STEPS.values()), *OTHERS)

SETTING = """
dataset: {name: digits, n_train: 30, n_test: 6}
model: {name: linear}
recipe: {learning_rate: 0.1, epochs: 3, batch_size: 8}
full: {runs: 2, checkpoints: 2}
lds: {subsets: 4, runs: 2, chunk: 4}
loo: {ids: {first: 4}, replicate: 2, chunk: 2}
pbrf: {ids: {first: 4}, replicate: 2, chunk: 4, damping: 0.1}
brittleness: {n_test: 3, k: [2, 5], runs: 2}
"""

Main = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = tmp_path / "config"
    (config / "settings").mkdir(parents=True)
    (config / "settings" / "tiny.yaml").write_text(SETTING)
    (tmp_path / "published.csv").write_text("panel,setting,metric,method,value,source\n")
    (config / "methods.yaml").write_text("grad_dot:\nif_explicit: {damping: [1, 0.1]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "CONFIG", config)
    return tmp_path


@pytest.fixture
def main(folder: Path, capsys: pytest.CaptureFixture[str]) -> Main:
    """Return a function that runs one command line: (status, standard error)."""

    def run(line: str) -> tuple[int, str]:
        status = cli.main(line.split())
        return status, capsys.readouterr().err

    return run


@pytest.fixture
def prepared(main: Main) -> Main:
    assert main("prepare --setting tiny --out data.safetensors")[0] == 0
    return main


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


TRAIN = "--setting tiny --data data.safetensors"


FULL, LDS = "--full full.safetensors", "--truth lds.safetensors --bootstrap 20"


def test_the_steps_one_after_the_other(folder: Path, prepared: Main) -> None:
    for line in (
        f"train {TRAIN} --kind full --chunk 0 --out full.safetensors",
        f"retrain-lds {TRAIN} --chunk 0-0 --out lds0.safetensors",
        f"retrain-lds {TRAIN} --chunk 1-0 --out lds1.safetensors --threads 2",
        "merge-truth --setting tiny --truth lds --out lds.safetensors --chunks lds0.safetensors "
        "lds1.safetensors",
        f"attribute {TRAIN} {FULL} --method if_explicit --params damping=0.1 "
        "--out s.safetensors --cost s.json",
        f"attribute {TRAIN} {FULL} --method grad_dot --out d.safetensors --cost d.json",
        f"retrain-pbrf {TRAIN} {FULL} --chunk 0-0 --out pbrf0.safetensors",
        f"retrain-pbrf {TRAIN} {FULL} --chunk 1-0 --out pbrf1.safetensors",
        "merge-truth --setting tiny --truth pbrf --out pbrf.safetensors --chunks pbrf0.safetensors "
        "pbrf1.safetensors",
        "evaluate --setting tiny --metric pbrf --method if_explicit --truth pbrf.safetensors "
        "--out pbrf.csv --bootstrap 20 --scores s.safetensors",
        f"evaluate --setting tiny --metric lds --method if_explicit {LDS} --out lds.csv "
        "--draws lds.draws.safetensors --scores s.safetensors",
        f"evaluate --setting tiny --metric lds_variance --method if_explicit {LDS} "
        "--out variance.csv --scores s.safetensors",
        f"evaluate --setting tiny --metric lds_kendall --method if_explicit {LDS} "
        "--out kendall.csv --scores s.safetensors",
        f"predict {TRAIN} {FULL} --out predictions.safetensors",
        f"retrain-brittleness {TRAIN} --method grad_dot --predictions predictions.safetensors "
        "--out b.safetensors --scores d.safetensors",
        "evaluate-brittleness --setting tiny --method grad_dot --bootstrap 20 --out b.csv "
        "--retrained b.safetensors",
        "brittleness-table --out flips.csv --csvs b.csv",
        "brittleness-figure --out flips.svg --csvs b.csv",
        f"subgroups --setting tiny --metric lds {LDS} --data data.safetensors --predictions "
        "predictions.safetensors --out groups.csv --csvs lds.csv --scores s.safetensors "
        "--methods if_explicit",
        "subgroups-table --out subgroups.csv --csvs groups.csv",
        f"lds-width --setting tiny {LDS} --compare grad_dot if_explicit --out width.csv "
        "--scores s.safetensors d.safetensors",
        "width-figure --setting tiny --table width.csv --out width.svg",
        f"damping {TRAIN} {FULL} --metric lds --method if_explicit --out damping.csv "
        "--scores s.safetensors",
        "damping-figure --metric lds --out damping.svg --csvs lds.csv --dampings damping.csv",
        "table --metric lds --published published.csv --out table.csv --csvs lds.csv "
        "--dampings damping.csv --draws lds.draws.safetensors",
        f"attribute {TRAIN} {FULL} --method if_explicit --params damping=1 "
        "--out t.safetensors --cost t.json",
        f"evaluate --setting tiny --metric lds --method if_explicit {LDS} --out both.csv "
        "--scores t.safetensors s.safetensors --cost t.json s.json --costs both.json",
        "grid-figure --metric lds --out grids.svg --csvs both.csv",
        "cost-table --out cost.csv --costs both.json --quality both.csv",
        "quality-figure --metric lds --table table.csv --costs cost.csv --out quality.svg",
        f"examples-figure {TRAIN} --truth pbrf.safetensors --out examples.svg --csvs both.csv "
        "--scores s.safetensors t.safetensors",
    ):
        status, errors = prepared(line)
        assert status == 0, errors
    assert artefacts.read("s.safetensors", "score").meta["params"] == {"damping": 0.1}
    assert artefacts.read("d.safetensors", "score").meta["label"] == "default"
    assert "if_explicit" in (folder / "lds.csv").read_text()
    assert (folder / "damping.csv").read_text().endswith(",6,yes\n")
    assert "surrogate_params" in (folder / "table.csv").read_text()
    assert ">if_explicit</text>" in (folder / "examples.svg").read_text()
    assert artefacts.read("b.safetensors", "brittleness").meta["chosen_by"] == "only one"
    assert (folder / "flips.csv").read_text().count("tiny,brittleness,grad_dot,default") == 2
    assert (folder / "subgroups.csv").read_text().count(",confidence,") == 3


ATTRIBUTE = f"attribute {TRAIN} {FULL} --out out.safetensors --cost c.json"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (f"train {TRAIN} --kind full --chunk 9 --out out.safetensors", ["full has 1 chunks", "9"]),
        (f"train {TRAIN} --kind half --chunk -1 --out out.safetensors", ["no chunk -1"]),
        (
            f"retrain-lds {TRAIN} --chunk 0-2 --out out.safetensors",
            ["lds has 2 chunks, 0-0 to 1-0"],
        ),
        (
            f"retrain-loo {TRAIN} --chunk 2-0 --out out.safetensors",
            ["loo has 3 chunks, 0-0 to 1-0"],
        ),
        (
            f"retrain-pbrf {TRAIN} --chunk 2-0 --full full.safetensors --out out.safetensors",
            ["pbrf has 2 chunks, 0-0 to 1-0"],
        ),
        (
            f"retrain-pbrf {TRAIN} --chunk 1-0 --full gone.safetensors --out out.safetensors",
            ["gone.safetensors: no such file"],
        ),
        (
            f"retrain-pbrf {TRAIN} --chunk 1-0 --full data.safetensors --out out.safetensors",
            ["data.safetensors: it is of kind 'data', expected 'models'"],
        ),
        (
            "retrain-lds --setting tiny --data results/tiny/data.safetensors --chunk 0-0 "
            "--out out.safetensors",
            ["data.safetensors: no such file", "snakemake results/tiny/data.safetensors"],
        ),
        (
            "retrain-lds --setting tyni --data data.safetensors --chunk 0-0 --out out.safetensors",
            ["tyni.yaml: no such file", "did you mean 'tiny'"],
        ),
        (f"{ATTRIBUTE} --method grad_dto", ["unknown method 'grad_dto'", "grad_dot"]),
        (
            f"{ATTRIBUTE} --method if_explicit --params dampnig=7",
            ["if_explicit has no grid point 'dampnig=7'", "did you mean 'damping'", "damping=0.1"],
        ),
        (f"{ATTRIBUTE} --method if_explicit", ["no grid point 'default'"]),
        (f"{ATTRIBUTE} --method grad_dot", ["full.safetensors: no such file"]),
        (
            "lds-width --setting tiny --truth gone.safetensors --compare grad_dot if_explicit "
            "--out out.csv --scores data.safetensors",
            ["gone.safetensors: no such file"],
        ),
        (
            "merge-truth --setting tiny --truth lds --out out.safetensors "
            "--chunks data.safetensors",
            ["data.safetensors: it is of kind 'data', expected 'lds-chunk'"],
        ),
    ],
)
def test_a_fault_of_the_user_is_one_line_status_1_and_no_file(
    folder: Path, prepared: Main, line: str, parts: list[str]
) -> None:
    before = files(folder)
    status, errors = prepared(line)
    assert status == 1
    assert errors.startswith(f"leaveout {line.split()[0]}: ")
    assert errors.count("\n") == 1
    for part in parts:
        assert part in errors
    assert files(folder) == before


def test_a_method_without_a_damping_has_none_to_choose(folder: Path, prepared: Main) -> None:
    for line in (
        f"train {TRAIN} --kind full --chunk 0 --out full.safetensors",
        f"attribute {TRAIN} {FULL} --method grad_dot --out d.safetensors",
    ):
        assert prepared(line)[0] == 0
    before = files(folder)
    line = f"damping {TRAIN} {FULL} --metric lds --method grad_dot --out d.csv --scores"
    status, errors = prepared(f"{line} d.safetensors")
    assert status == 1
    assert "grad_dot has no damping to choose" in errors
    assert files(folder) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_data(folder: Path, prepared: Main, damage: str) -> None:
    path = folder / "data.safetensors"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
            "empty": b"",
        }[damage]
    )
    before = files(folder)
    status, errors = prepared(f"retrain-lds {TRAIN} --chunk 0-0 --out out.safetensors")
    assert status == 1
    assert errors.startswith("leaveout retrain-lds: data.safetensors: ")
    remedy = (
        "Expected is a file that" if damage == "empty" else "Make it anew with the command that"
    )
    assert remedy in errors
    assert errors.count("\n") == 1
    assert files(folder) == before


def test_a_missing_gpu(folder: Path, prepared: Main) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = files(folder)
    for line in (
        f"train {TRAIN} --kind full --chunk 0 --out out.safetensors --device cuda",
        f"retrain-lds {TRAIN} --chunk 0-0 --out out.safetensors --device cuda",
        f"retrain-loo {TRAIN} --chunk 0-0 --out out.safetensors --device cuda",
    ):
        status, errors = prepared(line)
        assert status == 1
        assert "torch finds no GPU here. Set `device: cpu` in config/config.yaml" in errors
        assert errors.count("\n") == 1
    assert files(folder) == before


def test_a_fault_of_the_configuration(folder: Path, prepared: Main) -> None:
    path = folder / "config" / "settings" / "tiny.yaml"
    path.write_text(SETTING.replace("subsets", "subset"))
    status, errors = prepared(f"retrain-lds {TRAIN} --chunk 0-0 --out out.safetensors")
    assert status == 1
    assert errors.startswith(f"leaveout retrain-lds: {path}: lds.subset: unknown key")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"usage: leaveout {command}" in capsys.readouterr().out


def test_help_lists_every_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = [
        line.split()[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("    ") and not line.startswith("     ")
    ]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("line", ["", "unknown", "train", "prepare --setting a --out b --chunk 1"])
def test_usage_errors_are_status_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(line.split())
    assert left.value.code == 2
    assert "usage: leaveout" in capsys.readouterr().err


def leaveout(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leaveout", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_as_a_process_with_its_configuration_named_by_the_environment(folder: Path) -> None:
    config = {"LEAVEOUT_CONFIG": str(folder / "config")}
    done = leaveout("prepare", "--setting", "tiny", "--out", "data.safetensors", **config)
    assert done.returncode == 0, done.stderr
    line = f"retrain-lds {TRAIN} --chunk 7 --out out.safetensors"
    done = leaveout(*line.split(), **config)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("leaveout retrain-lds: tiny: lds has 2 chunks")
    assert "Traceback" not in done.stderr
    assert not Path("out.safetensors").exists()


def test_a_device_that_is_none_is_named(folder: Path) -> None:
    line = f"retrain-lds {TRAIN} --chunk 0-0 --out out.safetensors"
    done = leaveout(*line.split(), LEAVEOUT_DEVICE="gpu")
    assert done.returncode == 2
    assert done.stderr.endswith("argument --device: 'gpu' is neither cpu nor cuda\n")


@pytest.mark.parametrize("words", ["--help", "retrain-lds --help", "plan --help"])
def test_help_needs_no_heavy_module(words: str) -> None:
    code = (
        "import sys; from leaveout import cli\n"
        f"try: cli.main({words.split()})\n"
        "except SystemExit: print(*[m for m in ('torch', 'pandas', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_what_was_not_planned_is_one_line_and_no_file(folder: Path, prepared: Main) -> None:
    """A job of a run is told what the run was planned with, and that run is over."""
    before = files(folder)
    line = f"retrain-lds {TRAIN} --chunk 0-0 --out out.safetensors --plan 0123456789abcdef"
    status, errors = prepared(line)
    assert status == 1
    assert errors.startswith("leaveout retrain-lds: .snakemake/leaveout/plan-0123456789abcdef.json")
    assert errors.count("\n") == 1
    assert files(folder) == before
