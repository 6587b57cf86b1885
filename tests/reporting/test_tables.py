from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import COLUMNS
from leaveout.reporting.tables import (
    COST_COLUMNS,
    PANEL_COLUMNS,
    PUBLISHED_COLUMNS,
    cost_table,
    panel_table,
    read_csv,
)
from leaveout.store import artefacts
from leaveout.store.contents import save

COMMITTED = Path(__file__).parents[2] / "config" / "published.csv"


def metric_csv(path, method, cells, *, setting="toy", metric="lds", **more):
    """Write a metric CSV; cells[label] holds values by (truth, half), .5 where none is given."""
    rows = []
    for label, values in cells.items():
        for truth in ("mean", "single"):
            for half in ("select", "report", "all"):
                value = values.get((truth, half), 0.5)
                row = {
                    "setting": setting, "metric": metric, "method": method, "params": label,
                    "truth": truth, "half": half, "value": value, "ci_low": value - 0.1,
                    "ci_high": value + 0.1, "ceiling": 0.8, "ceiling_low": 0.7,
                    "ceiling_high": 0.9, "n_test": 10, "n_nan": 0, "n_constant": 0,
                    "n_samples": 100, "n_runs": 2, "n_unconverged": 0, "ceiling_note": "",
                    "shares_models": "no", "not_computed": "",
                }  # fmt: skip
                rows.append(row | more)
    write(path, COLUMNS, rows)
    return path


def write(path, columns, rows):
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def published(tmp_path):
    rows = [
        ("toy_lds", "toy", "lds", "grad_dot", "0.55", "a paper"),
        ("toy_lds", "toy", "lds", "if_cg", "0.70", "a paper"),
        ("toy_loo", "toy", "loo", "all methods", "<=0.02", "a paper"),
        ("toy_lds_other", "toy", "lds", "grad_dot", "0.99", "another paper"),
        ("a", "toy", "lds", "ekfac", "0.1", "one"),
        ("b", "toy", "lds", "ekfac", "0.2", "two"),
    ]
    path = tmp_path / "published.csv"
    return write(
        path, PUBLISHED_COLUMNS, [dict(zip(PUBLISHED_COLUMNS, r, strict=True)) for r in rows]
    )


def table(tmp_path, published, *csvs, metric="lds"):
    out = tmp_path / "table.csv"
    save(out, panel_table(metric, csvs, published))
    rows = read_csv(out, PANEL_COLUMNS)
    assert tuple(rows[0]) == PANEL_COLUMNS
    return rows


def test_a_method_that_could_not_be_computed_has_a_row_that_says_why(tmp_path, published):
    nothing = dict.fromkeys(("value", "ci_low", "ci_high"), float("nan"))
    why = "memory: the Hessian would take 96 GB, of 8 allowed"
    a = metric_csv(tmp_path / "a.csv", "if_explicit", {"d=1": {}}, not_computed=why, **nothing)
    b = metric_csv(tmp_path / "b.csv", "grad_dot", {"default": {}})
    first, second = table(tmp_path, published, a, b)
    assert (first["value"], first["as_published_value"]) == ("nan", "nan")
    assert (first["not_computed"], second["not_computed"]) == (why, "")
    assert second["value"] == "0.5000"


def test_a_grid_point_that_could_not_be_computed_is_not_chosen(tmp_path, published):
    cells = {"d=1": {}, "d=2": {}}
    path = metric_csv(tmp_path / "a.csv", "if_explicit", cells)
    rows = [
        row | {"value": "nan", "not_computed": "time: long"} if row["params"] == "d=1" else row
        for row in read_csv(path, COLUMNS)
    ]
    (row,) = table(tmp_path, published, write(path, COLUMNS, rows))
    assert (row["params"], row["value"], row["not_computed"]) == ("d=2", "0.5000", "")


def test_held_out_is_chosen_on_one_half_and_reported_on_the_other(tmp_path, published):
    cells = {
        "damping=1": {("mean", "select"): 0.6, ("mean", "report"): 0.41},
        "damping=0.1": {("mean", "select"): 0.5, ("mean", "report"): 0.9, ("single", "all"): 0.72},
    }
    (row,) = table(tmp_path, published, metric_csv(tmp_path / "a.csv", "if_cg", cells))
    assert (row["params"], row["value"]) == ("damping=1", "0.4100")
    assert (row["ci_low"], row["ci_high"]) == ("0.3100", "0.5100")
    assert row["value_over_ceiling"] == "0.5125"
    assert (row["as_published_params"], row["as_published_value"]) == ("damping=0.1", "0.7200")
    assert (row["published"], row["difference"], row["inside_interval"]) == (
        "0.70",
        "0.0200",
        "yes",
    )
    assert row["source"] == "a paper"


@pytest.mark.parametrize("chosen", ["damping=1", "damping=0.1", ""])
def test_what_is_chosen_without_retraining_is_reported_on_the_same_half(
    tmp_path, published, chosen
):
    cells = {
        "damping=1": {("mean", "select"): 0.6, ("mean", "report"): 0.41},
        "damping=0.1": {("mean", "select"): 0.5, ("mean", "report"): 0.9},
    }
    other = metric_csv(tmp_path / "b.csv", "grad_dot", {"default": {}})
    rows = [
        dict.fromkeys(DAMPING_COLUMNS, "0")
        | {"setting": "toy", "metric": "lds", "method": "if_cg", "params": params}
        | {"chosen": "yes" if params == chosen else "no"}
        for params in cells
    ]
    dampings = write(tmp_path / "d.csv", DAMPING_COLUMNS, rows)
    out = tmp_path / "table.csv"
    csvs = [metric_csv(tmp_path / "a.csv", "if_cg", cells), other]
    save(out, panel_table("lds", csvs, published, [dampings]))
    row, plain = read_csv(out, PANEL_COLUMNS)
    assert (row["params"], row["value"]) == ("damping=1", "0.4100")  # as ever
    names = ("params", "value", "ci_low", "ci_high")
    assert [row[f"surrogate_{name}"] for name in names] == {
        "damping=1": ["damping=1", "0.4100", "0.3100", "0.5100"],
        "damping=0.1": ["damping=0.1", "0.9000", "0.8000", "1.0000"],
        "": [""] * 4,
    }[chosen]
    assert {plain[f"surrogate_{name}"] for name in names} == {""}


def test_ceilings_have_their_intervals(tmp_path, published):
    csvs = metric_csv(tmp_path / "a.csv", "grad_dot", {"default": {}})
    (row,) = table(tmp_path, published, csvs)
    for prefix in ("", "as_published_"):
        found = [row[f"{prefix}ceiling{end}"] for end in ("", "_low", "_high")]
        assert found == ["0.8000", "0.7000", "0.9000"]


def test_the_first_of_equals_is_chosen_and_nan_never_unless_alone(tmp_path, published):
    nan = float("nan")
    cells = {
        "nan": {("mean", "select"): nan, ("single", "all"): nan},
        "low": {("mean", "select"): -0.3, ("single", "all"): -0.4},
        "equal": {("mean", "select"): -0.3, ("single", "all"): -0.4},
    }
    (row,) = table(tmp_path, published, metric_csv(tmp_path / "a.csv", "m", cells))
    assert (row["params"], row["as_published_params"]) == ("low", "low")
    cells = {"x": dict.fromkeys([("mean", "select"), ("mean", "report"), ("single", "all")], nan)}
    path = metric_csv(tmp_path / "b.csv", "grad_dot", cells, n_nan=7, n_constant=3)
    (row,) = table(tmp_path, published, path)
    assert (row["params"], row["value"], row["difference"]) == ("x", "nan", "nan")
    assert (row["n_dropped"], row["dropped_why"]) == ("10", "7 NaN, 3 constant")
    assert row["inside_interval"] == "no"


def test_rows_keep_the_order_given_with_settings_together(tmp_path, published):
    given = [("s2", "z"), ("s1", "z"), ("s2", "a"), ("s1", "b")]
    paths = [metric_csv(tmp_path / f"{s}{m}.csv", m, {"default": {}}, setting=s) for s, m in given]
    rows = table(tmp_path, published, *paths)
    assert [(row["setting"], row["method"]) for row in rows] == [
        ("s2", "z"), ("s2", "a"), ("s1", "z"), ("s1", "b"),
    ]  # fmt: skip


def test_published_value_is_the_panels_own_or_all_that_there_are(tmp_path, published):
    names = ["grad_dot", "ekfac", "random"]
    rows = table(
        tmp_path, published,
        *(metric_csv(tmp_path / f"{name}.csv", name, {"default": {}}) for name in names),
    )  # fmt: skip
    assert [row["published"] for row in rows] == ["0.55", "0.1; 0.2", ""]
    assert [row["difference"] for row in rows] == ["-0.0500", "", ""]
    assert rows[1]["source"] == "one; two"


def test_a_bound_for_all_of_a_papers_methods_is_kept_as_text(tmp_path, published):
    paths = [
        metric_csv(tmp_path / f"{name}.csv", name, {"default": {}}, metric="loo")
        for name in ("if_cg", "random")
    ]
    rows = table(tmp_path, published, *paths, metric="loo")
    assert [row["published"] for row in rows] == ["<=0.02", ""]  # the paper has no random
    assert rows[0]["difference"] == rows[0]["inside_interval"] == ""


def test_an_undefined_ceiling_keeps_its_reason(tmp_path, published):
    path = metric_csv(
        tmp_path / "a.csv", "m", {"default": {}}, ceiling=float("nan"), ceiling_note="one run"
    )
    (row,) = table(tmp_path, published, path)
    assert (row["ceiling"], row["value_over_ceiling"], row["ceiling_note"]) == (
        "nan",
        "nan",
        "one run",
    )


def test_malformed_metrics_are_errors_that_name_the_file(tmp_path, published):
    good = metric_csv(tmp_path / "good.csv", "m", {"default": {}})
    lines = good.read_text().splitlines()
    bad = tmp_path / "bad.csv"

    def fails(text, match, *more):
        bad.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(LeaveoutError, match=match):
            panel_table("lds", [*more, bad], published)

    fails("", "bad.csv: no column setting")
    fails("\n".join([lines[0].replace("value", "val"), *lines[1:]]), "bad.csv: no column value")
    short = "\n".join([*lines[:3], lines[3][:30]])
    fails(short, f"bad.csv, line 4: expected {len(COLUMNS)} fields")
    fails(
        good.read_text().replace("0.5,", "half,"), "bad.csv, column value: 'half' is not a number"
    )
    fails(b"\xff\xfe\x00", "bad.csv: not a readable CSV")
    fails(lines[0] + "\n", "bad.csv: expected lds of one method")
    fails(good.read_text().replace(",lds,", ",loo,"), "bad.csv: expected lds of one method")
    fails(good.read_text(), "bad.csv: m of toy is given twice", good)
    fails("\n".join(line for line in lines if "report" not in line), "no full set of rows")
    with pytest.raises(LeaveoutError, match=r"gone\.csv: no such file"):
        panel_table("lds", [tmp_path / "gone.csv"], published)


def test_malformed_published_values_are_named(tmp_path):
    published = tmp_path / "p.csv"
    published.write_text("panel,setting,metric,method,value\n")
    path = metric_csv(tmp_path / "a.csv", "m", {"default": {}})
    with pytest.raises(LeaveoutError, match=r"p\.csv: no column source"):
        panel_table("lds", [path], published)


def test_committed_published_values_are_whole():
    rows = read_csv(COMMITTED, PUBLISHED_COLUMNS)
    assert len(rows) == 85
    assert len({(row["panel"], row["method"]) for row in rows}) == 85
    for row in rows:
        assert -1 <= float(row["value"].removeprefix("<=")) <= 1
        assert len(row["source"]) > 10  # every row says where it is from


def test_cost_table_keeps_order_and_names_what_is_missing(tmp_path):
    paths = []
    for k, device in enumerate(("cpu", "a GPU")):
        cost = dict.fromkeys(COST_COLUMNS, k) | {"device": device, "params": f"damping={k}"}
        if device != "cpu":
            cost["peak_device_mb"] = 12.5
        paths.append(tmp_path / f"{k}.cost.json")
        paths[-1].write_text(json.dumps([cost | {"note": "left out"}]))
    out = tmp_path / "cost.csv"
    save(out, cost_table(paths))
    rows = read_csv(out, COST_COLUMNS)
    assert [row["device"] for row in rows] == ["cpu", "a GPU"]
    assert [row["peak_device_mb"] for row in rows] == ["", "12.5"]
    assert "note" not in rows[0]
    for text, match in (
        ("{", "bad.json: not readable JSON"),
        ("{}", "bad.json: not a list of costs"),
        ("[[]]", "bad.json, record 0: no key setting"),
        (json.dumps([dict.fromkeys(COST_COLUMNS[1:])]), "bad.json, record 0: no key setting"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(LeaveoutError, match=match):
            cost_table([tmp_path / "bad.json"])
    with pytest.raises(LeaveoutError, match=r"gone\.json: no such file"):
        cost_table([tmp_path / "gone.json"])


def test_costs_of_scores_that_metrics_share_stand_once_in_the_order_of_the_plan(tmp_path):
    def file(name, *records):
        keys = ("setting", "method", "params", "what", "wall_s")
        filled = [
            dict.fromkeys(COST_COLUMNS, 1) | dict(zip(keys, record, strict=True))
            for record in records
        ]
        (tmp_path / name).write_text(json.dumps(filled))
        return tmp_path / name

    paths = [
        file("lds-b", ("s1", "b", "d=2", "score", 1), ("s1", "b", "d=1", "score", 2)),
        file("lds-a", ("s1", "a", "", "score", 3)),
        file("lds-b2", ("s2", "b", "d=2", "score", 4)),
        file("lds-a2", ("s2", "a", "", "score", 5)),
        # made later, when the scores had been made anew: the first record counts
        file("loo-b", ("s1", "b", "d=2", "score", 90), ("s1", "b", "d=1", "score", 90)),
        file("loo-a", ("s1", "a", "", "score", 90)),
        file("auc-b", ("s1", "b", "d=2", "self_influence", 6)),
        file("auc-a", ("s1", "a", "", "self_influence", 7)),
    ]
    save(tmp_path / "cost.csv", cost_table(paths))
    rows = read_csv(tmp_path / "cost.csv", (*COST_COLUMNS, "what"))
    assert [tuple(row[k] for k in ("setting", "what", "method", "params")) for row in rows] == [
        ("s1", "score", "b", "d=2"),
        ("s1", "score", "b", "d=1"),
        ("s1", "score", "a", ""),
        ("s1", "self_influence", "b", "d=2"),
        ("s1", "self_influence", "a", ""),
        ("s2", "score", "b", "d=2"),
        ("s2", "score", "a", ""),
    ]
    assert [row["wall_s"] for row in rows] == ["1", "2", "3", "6", "7", "4", "5"]


def test_the_table_says_how_a_point_was_chosen_and_what_made_its_scores(tmp_path, published):
    nan = float("nan")
    paths = [
        metric_csv(tmp_path / "a.csv", "if_cg", {"d=1": {}, "d=2": {("mean", "select"): 0.9}}),
        metric_csv(tmp_path / "b.csv", "grad_dot", {"default": {}}),
        metric_csv(tmp_path / "c.csv", "magic", {x: {("mean", "select"): nan} for x in "xy"}),
    ]
    points = {
        label: {"seed": "3", "models": "full:0", "commit": label, "code": "aa"}
        for label in ("d=1", "d=2")
    }
    draws = tmp_path / "a.draws.safetensors"
    meta = {"setting": "toy", "metric": "lds", "method": "if_cg", "label": "d=2", "points": points}
    artefacts.write(draws, "draws", {"replicate": np.zeros(2)}, {"replicate": ("draw",)}, meta)
    out = tmp_path / "table.csv"
    save(out, panel_table("lds", paths, published, draws=[draws]))
    rows = read_csv(out, PANEL_COLUMNS)
    assert [row["chosen_how"] for row in rows] == [
        "largest value of 2 on the other half of the samples",
        "nothing to choose",
        "none of 2 has a value",
    ]
    # of the chosen point
    assert [rows[0][name] for name in ("params", "seed", "commit", "code")] == [
        "d=2", "3", "d=2", "aa",
    ]  # fmt: skip
    assert {rows[1][name] for name in ("seed", "commit", "code")} == {""}


def test_beside_a_cost_stands_what_it_buys(tmp_path):
    cells = {
        "d=1": {("mean", "select"): 0.6, ("mean", "report"): 0.41},
        "d=2": {("mean", "select"): 0.5, ("mean", "report"): 0.9, ("mean", "all"): 0.7},
    }
    csvs = [
        metric_csv(tmp_path / "lds.csv", "if_cg", cells),
        metric_csv(tmp_path / "auc.csv", "if_cg", {"d=1": {}}, metric="auc"),
    ]
    costs = []
    for params, what in (("d=2", ""), ("d=1", ""), ("d=9", ""), ("d=1", "self_influence")):
        cost = dict.fromkeys(COST_COLUMNS, 1) | {"setting": "toy", "method": "if_cg"}
        costs.append(tmp_path / f"{params}{what}.cost.json")
        costs[-1].write_text(
            json.dumps([cost | {"params": params} | ({"what": what} if what else {})])
        )
    out = tmp_path / "cost.csv"
    save(out, cost_table(costs, csvs))
    names = ("lds", "lds_ci_low", "lds_ci_high", "lds_ceiling", "lds_chosen", "auc", "auc_chosen")
    found = [tuple(row[name] for name in names) for row in read_csv(out, (*COST_COLUMNS, *names))]
    assert found == [
        ("0.9000", "0.8000", "1.0000", "0.8000", "no", "", ""),
        ("0.4100", "0.3100", "0.5100", "0.8000", "yes", "", ""),
        ("",) * 7,  # of no metric's grid
        ("", "", "", "", "", "0.5000", "yes"),
    ]
    with out.open() as handle:
        columns = handle.readline().strip().split(",")
    assert columns[: len(COST_COLUMNS)] == list(COST_COLUMNS)
