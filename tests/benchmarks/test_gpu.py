"""The GPU benchmark, driven on the CPU: its parts are right before a GPU is at hand."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="gpu")
def _gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def test_one_command_measures_compares_and_writes(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.csv"
    gpu.main(["--device", "cpu", "--quick", "--out", str(out)])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["mnist_lr", "mnist_mlp", "mnist_cnn"]
    assert [r["case"] for r in rows] == [n for n in names for _ in range(4)] + ["mnist_lr"] * 2
    assert [r["kind"] for r in rows[:4]] == ["LDS", "paired LOO", "LDS", "LDS"]
    assert [r["asked"] for r in rows[:4]] == ["auto", "auto", "2", "4"]
    # a conv net is trained one model at a time on a CPU, whatever is asked for
    assert [r["stack"] for r in rows if r["asked"] == "4"] == ["4", "4", "1"]
    for row in rows:
        assert float(row["models_per_s"]) > 0
        assert float(row["fraction_of_peak"]) > 0
        assert float(row["peak_tflops"]) > 0
        assert (row["weight_difference"] != "") == (row["asked"] == "auto")
        if row["asked"] == "auto":
            off, largest = float(row["weight_difference"]), float(row["largest_weight"])
            if row["precision"] == "float32":
                assert off == 0  # the same machine, the same path
            else:
                assert 0 < off < 0.05 * largest
            assert float(row["largest_loss"]) > 1
    assert [r["precision"] for r in rows[-2:]] == ["bfloat16"] * 2
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines[0].startswith(rows[0]["date"])
    assert len(lines) == 4 + len(rows)
    assert {line.count("|") for line in lines[2:]} == {lines[2].count("|")}


def test_operations_are_those_of_the_products(gpu: ModuleType) -> None:
    with torch.random.fork_rng():
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))
        conv = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.Flatten(), nn.Linear(60, 2))
    first, second = 2 * 12 * 7, 2 * 7 * 3
    sample = torch.zeros(1, 3, 4)
    assert gpu.operations(mlp, sample) == 2 * first + 3 * second
    # nine weights for each of 5 channels, at 12 places; padding counts
    assert gpu.operations(conv, sample) == 2 * (2 * 9 * 5 * 12) + 3 * (2 * 60 * 2)


def test_subsets_are_halves_of_their_own(gpu: ModuleType) -> None:
    lds = gpu.lds_trials(gpu.gpu_cases(quick=True)[0].setting, 3)
    assert len({trial.identity for trial in lds}) == 3
    assert all(len(trial.kept) == 32 for trial in lds)
    assert not (lds[0].kept == lds[1].kept).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_models_of_a_gpu_are_the_cpus(gpu: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    gpu.main(["--device", "cuda", "--quick", "--out", str(out)])
    with out.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["asked"] == "auto"]
    for row in rows:
        if row["precision"] == "float32":
            # some tens of roundings of 6e-8
            assert float(row["weight_difference"]) < 2e-5 * max(1, float(row["largest_weight"]))
