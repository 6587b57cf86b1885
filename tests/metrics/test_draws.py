from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from leaveout.errors import LeaveoutError
from leaveout.metrics.draws import best, make_draws, read_draws, spans
from leaveout.metrics.files import rows_text
from leaveout.store import artefacts, contents

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
    """The text of a metric's CSV of two grid points, and the scores behind it."""
    rows = [
        ("toy", "lds", "if_cg", params, truth, half, value)
        for params, values in (("d=1", (0.2, 0.9)), ("d=2", (0.4, 0.1)))
        for truth in ("mean", "single")
        for half, value in zip(("select", "report"), values, strict=True)
    ]
    columns = ("setting", "metric", "method", "params", "truth", "half", "value")
    text = rows_text(columns, rows)
    headers = {
        "d=1": {
            "seed": 3, "commit": "0123456789abcdef0123", "trainings": {"models": ["full:0"]},
            "key": json.dumps({"code": "aa", "method_code": "bb"}),
        },
        "d=2": {"seed": 3, "commit": "0123456789abcdef0123-dirty", "key": json.dumps({})},
    }  # fmt: skip
    scores = []
    for label, header in headers.items():
        path = tmp_path / f"{label}.safetensors"
        artefacts.write(path, "score", {}, {}, {"label": label, **header})
        scores.append(artefacts.read(path))
    return text, scores


def test_the_chosen_points_replicates_are_kept_and_where_scores_come_from(made, tmp_path) -> None:
    text, scores = made
    drawn = {"d=1": np.linspace(0, 1, 5), "d=2": np.array([0.25, math.nan, 0.5])}
    contents.save(tmp_path / "draws", make_draws(text, scores, drawn), STAMP)
    found = read_draws(tmp_path / "draws")
    # chosen on the select half, whatever the other says
    assert (found.setting, found.metric, found.method, found.label) == (
        "toy",
        "lds",
        "if_cg",
        "d=2",
    )
    np.testing.assert_array_equal(found.replicates, drawn["d=2"])
    assert found.points == {
        "d=1": {"seed": "3", "models": "full:0", "commit": "0123456789ab", "code": "aa/bb"},
        "d=2": {"seed": "3", "models": "", "commit": "0123456789ab-dirty", "code": ""},
    }
    meta = artefacts.read(tmp_path / "draws").meta
    assert {name: meta[name] for name in STAMP} == STAMP


def test_a_metric_may_have_no_replicates(made, tmp_path) -> None:
    text, scores = made
    contents.save(tmp_path / "draws", make_draws(text, scores, None), STAMP)
    assert read_draws(tmp_path / "draws").replicates.shape == (0,)


@pytest.mark.parametrize(
    ("key", "expected"),
    [({"code": "1", "method_code": "3"}, "1/3"), ({"code": 2, "method_code": 1}, "2/1"),
     ({"code": "1+9f86d0"}, "1+9f86d0")],
)  # fmt: skip
def test_the_code_is_what_the_key_says_as_text(made, key, expected) -> None:
    text, (score, _) = made
    versioned = replace(score, meta=score.meta | {"key": json.dumps(key)})
    assert make_draws(text, [versioned], None).facts["points"]["d=1"]["code"] == expected


def test_a_file_that_holds_no_draws_is_named(made, tmp_path) -> None:
    _, scores = made
    with pytest.raises(LeaveoutError, match=r"if_cg\.draws\.safetensors: no such file"):
        read_draws(tmp_path / "if_cg.draws.safetensors")
    with pytest.raises(LeaveoutError, match=r"d=1\.safetensors.*score"):
        read_draws(scores[0].path)
    artefacts.write(tmp_path / "x.safetensors", "draws", {}, {}, {"setting": "a"})
    with pytest.raises(LeaveoutError, match=r"x\.safetensors.*'metric'"):
        read_draws(tmp_path / "x.safetensors")
