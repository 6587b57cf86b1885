"""What is timed against other libraries are the same scores."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.peers


def test_peers_give_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peers_python: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speed = importlib.import_module("speed_attribution")
    monkeypatch.setattr(speed, "ENOUGH_S", 0)  # one round
    speed.prepare("mnist_lr", True, tmp_path)
    speed.ask_versions(str(peers_python), tmp_path / "versions.json")
    found = {}
    for case in speed.CASES:
        if (case.method, case.peer) in {("tracin_cp", "captum"), ("knn_shapley", "dattri")}:
            row = speed.time_case(case, tmp_path, str(peers_python), 300.0)
            found[case.function] = float(row.agreement)
            assert row.rounds == 1
            assert float(row.ratio) > 0
            assert row.peer_version
    assert found.keys() == {"tracin_cp", "tracin_cp_fast", "knn_shapley"}
    assert min(found.values()) > 0.999  # all are exact but for float32
