from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from leaveout import artefacts
from leaveout.errors import LeaveoutError
from leaveout.metrics.draws import best, read_draws, spans, write_draws

STAMP = {"key": "k", "inputs": {}, "spec": "s"}


def test_the_first_of_equals_is_best_and_nan_only_if_all_are() -> None:
    nan = math.nan
    assert best([0.1, 0.3, 0.3]) == 1
    assert best([nan, -0.5, nan]) == 1
    assert best([nan, nan]) == 0
    assert best([-math.inf, nan]) == 0


def test_trainings_are_named_in_short() -> None:
    full = [f"full:{k}" for k in range(10)]
    halves = [f"half:{k} on 9f86d081884c" for k in (0, 1, 2, 7, 9)]
    assert spans([*full, *halves]) == "full:0-9 half:0-2,7,9"
    assert spans(["full:3 in order", "lds:17:1 on 9f86d081884c", "lds:17:0 on 9f86d081884c"]) == (
        "full:3 lds:17"
    )
    assert spans(reversed(full)) == "full:0-9"
    assert spans(["theirs", "full:1"]) == "theirs full:1"
    assert spans([]) == ""


@pytest.fixture
def made(tmp_path):
    """A metric's CSV of two grid points, and the score files behind it."""
    rows = [
        ("toy", "lds", "if_cg", params, truth, half, value)
        for params, values in (("d=1", (0.2, 0.9)), ("d=2", (0.4, 0.1)))
        for truth in ("mean", "single")
        for half, value in zip(("select", "report"), values, strict=True)
    ]
    path = tmp_path / "if_cg.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("setting", "metric", "method", "params", "truth", "half", "value"))
        writer.writerows(rows)
    headers = {
        "d=1": {
            "seed": 3, "commit": "0123456789abcdef0123", "trainings": {"models": ["full:0"]},
            "key": json.dumps({"code": "aa", "method_code": "bb"}),
        },
        "d=2": {"seed": 3, "commit": "0123456789abcdef0123-dirty", "key": json.dumps({})},
    }  # fmt: skip
    scores = []
    for label, header in headers.items():
        scores.append(tmp_path / f"{label}.safetensors")
        artefacts.write(scores[-1], "score", {}, {}, {"label": label, **header})
    return path, scores


def test_the_chosen_points_replicates_are_kept_and_where_scores_come_from(made, tmp_path) -> None:
    path, scores = made
    drawn = {"d=1": np.linspace(0, 1, 5), "d=2": np.array([0.25, math.nan, 0.5])}
    write_draws(path, scores, drawn, STAMP)
    found = read_draws(tmp_path / "if_cg.draws.safetensors")
    # chosen on the select half, whatever the other says
    assert (found.setting, found.metric, found.method, found.label) == (
        "toy",
        "lds",
        "if_cg",
        "d=2",
    )
    np.testing.assert_array_equal(found.replicates, drawn["d=2"])
    assert found.points == {
        "d=1": {"seed": "3", "models": "full:0", "commit": "0123456789ab", "code": "aa+bb"},
        "d=2": {"seed": "3", "models": "", "commit": "0123456789ab-dirty", "code": ""},
    }
    meta = artefacts.read(tmp_path / "if_cg.draws.safetensors").meta
    assert {name: meta[name] for name in STAMP} == STAMP


def test_a_metric_may_have_no_replicates(made, tmp_path) -> None:
    path, scores = made
    write_draws(path, scores, None, STAMP)
    assert read_draws(tmp_path / "if_cg.draws.safetensors").replicates.shape == (0,)


def test_a_file_that_holds_no_draws_is_named(made, tmp_path) -> None:
    path, scores = made
    with pytest.raises(LeaveoutError, match=r"if_cg\.draws\.safetensors: no such file"):
        read_draws(tmp_path / "if_cg.draws.safetensors")
    with pytest.raises(LeaveoutError, match=r"d=1\.safetensors.*score"):
        read_draws(scores[0])
    artefacts.write(tmp_path / "x.safetensors", "draws", {}, {}, {"setting": "a"})
    with pytest.raises(LeaveoutError, match=r"x\.safetensors.*'metric'"):
        read_draws(tmp_path / "x.safetensors")
    with pytest.raises(LeaveoutError, match="gone"):
        write_draws(path, [tmp_path / "gone.safetensors"], None, STAMP)
