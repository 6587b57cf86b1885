from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from leaveout.metrics.ranking import compare
from leaveout.reporting.ranks import RANK_COLUMNS, rank_table
from leaveout.reporting.tables import Row, read_csv
from leaveout.store.contents import save

Measured = Callable[..., tuple[Path, Path]]
DRAWS = 300


def table(tmp_path: Path, *made: tuple[Path, Path]) -> list[Row]:
    csvs, draws = zip(*made, strict=True)
    save(tmp_path / "rank.csv", rank_table(csvs, draws))
    rows = read_csv(tmp_path / "rank.csv", RANK_COLUMNS)
    assert tuple(rows[0]) == RANK_COLUMNS
    return rows


def cell(value: float) -> dict[str, dict[tuple[str, str], float]]:
    return {"d=1": {("mean", "select"): 0.9, ("mean", "report"): value}}


def test_methods_stand_by_rank_with_their_paired_differences(
    measured: Measured, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=DRAWS)
    values = {"if_cg": 0.70, "random": 0.01, "magic": 0.71, "tracin": 0.30}
    replicates = {
        name: value + 0.1 * common + 0.02 * rng.normal(size=DRAWS) for name, value in values.items()
    }
    rows = table(tmp_path, *(measured(m, cell(v), replicates[m]) for m, v in values.items()))
    assert [row["method"] for row in rows] == ["magic", "if_cg", "tracin", "random"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["groups"] for row in rows] == ["1", "1", "2", "3"]
    assert [row["tied_with_best"] for row in rows] == ["yes", "yes", "no", "no"]
    ranks = [(row["rank_best"], row["rank_worst"]) for row in rows]
    assert ranks == [("1", "2"), ("1", "2"), ("3", "3"), ("4", "4")]
    assert [row["next"] for row in rows] == ["if_cg", "tracin", "random", ""]
    assert {row["best"] for row in rows} == {"magic"}
    names = [row["method"] for row in rows]
    found = compare(
        np.array([values[name] for name in names]),
        np.array([replicates[name] for name in names], dtype=np.float32).astype(float),
    )
    for k, row in enumerate(rows):
        assert (row["n_methods"], row["n_settings"], row["n_draws"]) == ("4", "1", str(DRAWS))
        assert row["value"] == f"{values[names[k]]:.4f}"
        assert row["p_to_best"] == f"{found.p[k, 0]:.3g}"
        for end, array in (("", found.difference), ("_low", found.low), ("_high", found.high)):
            assert math.isclose(float(row[f"difference_to_best{end}"]), array[k, 0], abs_tol=6e-5)
            if k < 3:
                wanted = array[k, k + 1]
                assert math.isclose(float(row[f"difference_to_next{end}"]), wanted, abs_tol=6e-5)
    assert rows[0]["difference_to_best"] == rows[0]["difference_to_best_low"] == "0.0000"
    assert rows[3]["difference_to_next"] == rows[3]["p_to_next"] == ""


def test_a_method_without_a_value_is_not_ranked_and_it_says_why(
    measured: Measured, tmp_path: Path
) -> None:
    drawn = np.linspace(0.3, 0.4, DRAWS)
    nothing = {"value": "nan", "ci_low": "nan", "ci_high": "nan"}
    gone = np.full(DRAWS, math.nan)
    rows = table(
        tmp_path,
        measured("if_explicit", cell(0.0), gone, not_computed="memory: 96 GB", **nothing),
        measured("rps_l2", cell(0.0), gone, **nothing),
        measured("brittle", cell(0.4)),
        measured("grad_dot", cell(0.35), drawn),
    )
    assert [(row["method"], row["rank"], row["not_ranked"]) for row in rows] == [
        ("grad_dot", "1", ""),
        ("if_explicit", "", "memory: 96 GB"),
        ("rps_l2", "", "no value"),
        ("brittle", "", "no bootstrap replicates"),
    ]
    assert rows[0]["n_methods"] == "1"
    assert {row["value"] for row in rows[1:]} == {""}


def test_over_settings_stand_mean_ranks_of_methods_that_all_have(
    measured: Measured, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    values = {
        "one": {"a": 0.9, "b": 0.8, "c": 0.7, "only": 0.95},
        "two": {"a": 0.3, "b": 0.6, "c": 0.1},
    }
    made = [
        measured(m, cell(v), v + 0.001 * rng.normal(size=DRAWS), setting=setting)
        for setting, methods in values.items()
        for m, v in methods.items()
    ]
    made.append(measured("a", cell(0.5), np.full(DRAWS, 0.5), setting="one", metric="loo"))
    rows = table(tmp_path, *made)
    cells = [(row["setting"], row["metric"], row["method"]) for row in rows]
    assert cells[:5] == [
        *(("one", "lds", method) for method in ("only", "a", "b", "c")),
        ("one", "loo", "a"),
    ]
    assert cells[5:8] == [("two", "lds", method) for method in ("b", "a", "c")]
    assert cells[8:] == [("all", "lds", method) for method in ("a", "b", "c", "only")]
    # without `only`: a is 1st and 2nd, b 2nd and 1st
    over = rows[8:]
    assert [row["rank"] for row in over] == ["1.50", "1.50", "3.00", ""]
    assert [(row["rank_low"], row["rank_high"]) for row in over[:2]] == [("1.50", "1.50")] * 2
    assert over[3]["not_ranked"] == "no value in: two"
    assert {row["n_settings"] for row in over} == {"2"}
    assert {row["best"] for row in over} == {""}
