from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from leaveout.config import MLP, Linear, Recipe, Setting
from leaveout.config.problem import Dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = (
    *("case", "ours_s_per_model", "peer", "peer_version", "peer_s_per_model"),
    *("ratio", "ratio_min", "ratio_max", "cpu_ratio", "fraction_of_peak", "n_ours", "n_peer"),
    *("threads", "peer_threads", "peak_mb", "ours_us_per_sample", "machine", "torch"),
)


def setting() -> Setting:
    return Setting(
        name="tiny",
        dataset=Dataset(name="mnist", n_train=60, n_test=5, mean=0.1307, std=0.3081),
        model=Linear(name="linear"),
        recipe=Recipe(learning_rate=0.1, epochs=2, batch_size=8),
        full={"checkpoints": 1},
    )


@pytest.fixture(name="speed")
def _speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("speed_retraining")


def test_our_side_runs_alone_and_fills_the_table(speed: ModuleType, tmp_path: Path) -> None:
    case = speed.Case("tiny", setting(), ours=6, loo=8, rounds=2)
    table = speed.run([case], None, runs=0, folder=tmp_path)
    speed.write(table, tmp_path / "out" / "table.csv")
    with (tmp_path / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    modes = len(dict.fromkeys([(1, speed.cores()), (speed.cores(), 1)]))
    assert [r["case"] for r in rows] == ["tiny"] * modes + ["tiny, paired LOO"] * modes
    for row in rows:
        assert float(row["ours_s_per_model"]) > 0
        assert float(row["peak_mb"]) > 10
        assert 0 < float(row["fraction_of_peak"]) < 1
    assert int(rows[0]["n_ours"]) == 12  # 6 in each of two rounds
    assert rows[0]["ratio"] == ""  # no peer
    assert rows[-1]["peer"] == "leaveout, LDS"
    ratio = float(rows[-1]["ratio"])
    assert float(rows[-1]["ratio_min"]) <= ratio <= float(rows[-1]["ratio_max"])


def test_ratios_are_taken_within_a_round(speed: ModuleType) -> None:
    # the second round ran on a machine five times slower: that changes times, not ratios
    ours = [speed.Timing(1.0, 2.0, 0, 1), speed.Timing(5.0, 10.0, 0, 1)]
    peer = [speed.Timing(30.0, 20.0, 0, 1), speed.Timing(150.0, 100.0, 0, 1)]
    columns = speed.compare(ours, peer)
    assert columns["ratio"] == columns["ratio_min"] == columns["ratio_max"] == "30"
    assert columns["cpu_ratio"] == "10"
    assert columns["peer_s_per_model"] == "90"


def test_operations_are_those_of_the_matrix_products(speed: ModuleType, tmp_path: Path) -> None:
    mlp = setting().model_copy(update={"model": MLP(name="mlp", hidden=(7,))})
    speed.export(mlp, tmp_path)
    command = [sys.executable, str(BENCHMARKS / "own_training.py"), str(tmp_path)]
    with speed.Workers(command, 1, 1, tmp_path / "log") as own:
        work = own.ask("flops", setting=mlp.model_dump(mode="json"))[0]
    first, second = 2 * 784 * 7, 2 * 7 * 10
    assert work["samples"] == 2 * 30  # two epochs of half the samples
    assert work["flops"] == 60 * (2 * first + 3 * second)


def test_a_worker_that_fails_says_why(speed: ModuleType, tmp_path: Path) -> None:
    speed.export(setting(), tmp_path)
    command = [sys.executable, str(BENCHMARKS / "own_training.py"), str(tmp_path)]
    with (
        speed.Workers(command, 1, 1, tmp_path / "log") as own,
        pytest.raises(SystemExit, match="KeyError: 'nonsense'"),
    ):
        own.ask("nonsense")


def test_both_sides_get_the_same_samples(speed: ModuleType, tmp_path: Path) -> None:
    speed.export(setting(), tmp_path)
    tensors = speed.artefacts.read(tmp_path / "data.safetensors", "data").tensors
    with np.load(tmp_path / "data.npz") as peer:
        for name in ("train_labels", "test_labels"):
            assert np.array_equal(peer[name], tensors[name])
        theirs = peer["train_inputs"]
    images = (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert images[:16] == bytes([0, 0, 8, 3, 0, 0, 0, 60, 0, 0, 0, 28, 0, 0, 0, 28])
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(60, 1, 28, 28)
    # the inputs are float32 and reach 2.8
    prepared = (pixels / 255 - 0.1307) / 0.3081
    assert np.array_equal(pixels[:, 0], tensors["train_inputs"])
    assert np.allclose(prepared, theirs, rtol=0, atol=1e-6)
    labels = (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").read_bytes()
    assert labels == bytes([0, 0, 8, 1, 0, 0, 0, 5, *tensors["test_labels"]])
