from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(name="speed", scope="module")
def _speed() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(BENCHMARKS)
        module = importlib.import_module("speed_attribution")
        # one round, of the smaller model
        monkeypatch.setattr(module, "SETTINGS", ("mnist_lr",))
        monkeypatch.setattr(module, "ENOUGH_S", 0)
        monkeypatch.setattr(module, "RUNS", 2)
        yield module


@pytest.fixture(name="folder", scope="module")
def _folder(speed: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    speed.prepare("mnist_lr", True, folder)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_our_side_runs_alone_and_fills_the_table(speed: ModuleType, tmp_path: Path) -> None:
    case = speed.Case("grad_cos", {}, "dattri", "tracin", {})
    speed.compare(None, True, 60, tmp_path / "table.csv", [case])
    (row,) = rows(tmp_path / "table.csv")
    assert row["method"] == "grad_cos"
    assert (row["n_train"], row["n_test"]) == ("600", "20")
    assert float(row["ours_s"]) > 0
    assert float(row["ours_peak_mb"]) > 10
    assert row["ratio"] == row["peer_s"] == row["agreement"] == ""


def test_fewer_test_samples_are_scored_where_a_case_says_so(
    speed: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = speed.Case("grad_dot", {}, "dattri", "tracin", {}, few=("mnist_lr",))
    monkeypatch.setattr(speed, "FEW", 7)
    found = speed.time_case(case, folder, None, 60)
    assert (found.n_train, found.n_test) == (600, 7)
    assert np.load(folder / "ours.npy").shape == (600, 7)
    monkeypatch.setattr(speed, "FEW", 500)
    assert speed.time_case(case, folder, None, 60).n_test == 20  # as many as there are
    elsewhere = speed.Case("grad_dot", {}, "dattri", "tracin", {}, few=("mnist_mlp",))
    monkeypatch.setattr(speed, "FEW", 7)
    assert speed.time_case(elsewhere, folder, None, 60).n_test == 20


def test_both_sides_get_the_same_weights(speed: ModuleType, folder: Path) -> None:
    own = load_file(folder / "full-0.safetensors")["state.linear.weight"]
    with np.load(folder / "models.npz") as found:
        assert np.array_equal(found["full/linear.weight"][0], own[0])
        assert found["half/linear.bias"].shape == (2, 1, 10)
        assert len(found["rates"]) == 10


def test_what_grows_is_scored_with_all_samples(speed: ModuleType, folder: Path) -> None:
    found = speed.growth("mnist_lr", "grad_dot", {}, 1200, 20, folder)
    assert found.n_train == 1200
    assert float(found.seconds) > 0
    assert found.data_mb == f"{1200 * 784 * 4 / 2**20:.0f}"
    assert float(found.peak_mb) > float(found.beside_mb) >= 0


def fake(folder: Path, body: str) -> list[str]:
    """Return the command of a worker that does ``body`` when asked for scores."""
    script = folder / "worker.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import time\nfrom speed_protocol import serve, limit_memory\n"
        f"def score(worker):\n    {body}\n"
        "serve({'score': score})\n"
    )
    return [sys.executable, str(script)]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("time.sleep(600)", "time"),
        ("limit_memory(0.2); return {'seconds': len(bytearray(10**9))}", "memory"),
        ("raise ValueError('no such thing')", "error"),
    ],
)
def test_a_peer_that_does_not_answer_says_why(
    speed: ModuleType, tmp_path: Path, body: str, why: str
) -> None:
    side = speed.Side()
    with speed.Workers(fake(tmp_path, body), 1, 1, tmp_path / "log") as workers:
        speed.call(workers, side, 1.0 if why == "time" else 60.0)
    assert side.stopped == why
    assert side.seconds == []


def test_a_lower_bound_is_marked_as_one(speed: ModuleType, folder: Path) -> None:
    setting = speed.load_setting(BENCHMARKS.parent / "config/settings/mnist_lr.yaml")
    ours, late = speed.Side([2.0, 1.0, 4.0], 9.0), speed.Side(stopped="time")
    case = speed.CASES[0]
    found = speed.row(case, setting, ours, late, 50.0, folder)
    assert (found.peer_s, found.ratio, found.ratio_max) == ("> 50", "> 25", "")
    full = speed.row(case, setting, ours, speed.Side(stopped="memory"), 50.0, folder)
    assert (full.peer_s, full.ratio) == ("", "")
    assert full.note == "asked for more than 16 GiB"


def test_ratios_are_taken_within_a_round(speed: ModuleType) -> None:
    assert speed.paired([1.0, 2.0], [3.0, 8.0]) == [3, 4]
    assert speed.paired([1.0, 2.0, 4.0], [8.0]) == [8, 4, 2]
    assert speed.paired([4.0], [4.0, 8.0]) == [1, 2]
    assert speed.paired([4.0], []) == []


def test_a_side_that_takes_long_is_called_once(
    speed: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = speed.Case("grad_dot", {}, "dattri", "tracin", {})
    assert speed.time_case(case, folder, None, 60).rounds == 1  # no second counts as long
    monkeypatch.setattr(speed, "ENOUGH_S", 60)
    assert speed.time_case(case, folder, None, 60).rounds == speed.MOST_ROUNDS


def test_agreement_is_the_correlation_of_all_scores(speed: ModuleType) -> None:
    rng = np.random.default_rng(0)
    ours, noise = rng.standard_normal((2, 50, 4))
    found, note = speed.agree(ours, 3 * ours + noise)
    assert float(found) == pytest.approx(3 / np.sqrt(10), abs=0.05)  # 200 draws
    assert note == ""
    partly = np.where(np.arange(4) == 1, np.nan, -ours)
    assert speed.agree(ours, partly) == ("-1.0000", "25% of the peer's scores are no numbers")
    assert speed.agree(ours, np.full_like(ours, np.nan))[0] == ""
    assert speed.agree(ours, ours.T)[0] == ""


def test_ratios_are_averaged_as_factors(speed: ModuleType) -> None:
    assert speed.geometric_mean(["4", "> 100", "2.5"]) == pytest.approx(10)


def test_each_case_names_arguments_that_the_method_has(speed: ModuleType) -> None:
    for case in speed.CASES:
        method = importlib.import_module(f"leaveout.attribution.{case.method}").attribute
        assert set(case.params) <= set(method.__kwdefaults__ or {}) | set(method.__annotations__)
        json.dumps(case.peer_params)
