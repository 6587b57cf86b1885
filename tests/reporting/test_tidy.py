from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import COLUMNS
from leaveout.reporting.tables import PANEL_COLUMNS, panel_table, read_csv
from leaveout.reporting.tidy import TIDY_COLUMNS, tidy_table
from leaveout.store.contents import save

Measured = Callable[..., tuple[Path, Path]]
CELLS = {
    "d=1": {("mean", "select"): 0.6, ("mean", "report"): 0.41},
    "d=2": {("mean", "select"): 0.5, ("mean", "report"): 0.9, ("single", "all"): 0.72},
    "d=3": {("mean", "report"): 0.77},
}


def damping_csv(path: Path, chosen: str) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, DAMPING_COLUMNS)
        writer.writeheader()
        for params in CELLS:
            row: dict[str, Any] = dict.fromkeys(DAMPING_COLUMNS, "0")
            row |= {"setting": "toy", "metric": "lds", "method": "if_cg", "params": params}
            writer.writerow(row | {"chosen": "yes" if params == chosen else "no"})
    return path


def test_it_holds_every_row_and_what_each_protocol_chose(
    measured: Measured, tmp_path: Path
) -> None:
    made = [
        measured("if_cg", CELLS),
        measured("grad_dot", {"default": {}}, metric="auc"),
        measured("if_cg", {"d=1": {}}, metric="loo", not_computed="memory: much", value="nan"),
    ]
    csvs, draws = zip(*made, strict=True)
    dampings = [damping_csv(tmp_path / "d.csv", "d=3")]
    out = tmp_path / "tidy.csv"
    save(out, tidy_table(csvs, draws, dampings))
    rows = read_csv(out, TIDY_COLUMNS)
    assert tuple(rows[0]) == TIDY_COLUMNS
    # what the metrics' files hold is all there, as it stands there
    given = [row for path in csvs for row in read_csv(path, COLUMNS)]
    assert [{name: row[name] for name in COLUMNS} for row in rows] == given
    flags = {
        (row["metric"], row["params"]): (
            row["chosen_held_out"],
            row["chosen_as_published"],
            row["chosen_surrogate"],
        )
        for row in rows
    }
    assert flags == {
        ("lds", "d=1"): ("yes", "no", "no"),
        ("lds", "d=2"): ("no", "yes", "no"),
        ("lds", "d=3"): ("no", "no", "yes"),
        ("auc", "default"): ("yes", "yes", ""),
        ("loo", "d=1"): ("yes", "yes", ""),
    }
    for row in rows:
        assert (row["seed"], row["models"], row["code"]) == ("3", "full:0-9", "aa+bb")
        assert row["commit"] == f"of {row['params']}"


def test_the_numbers_of_the_panels_table_are_found_in_it(
    measured: Measured, tmp_path: Path
) -> None:
    path, draws = measured("if_cg", CELLS)
    dampings = [damping_csv(tmp_path / "d.csv", "d=3")]
    (tmp_path / "published.csv").write_text("panel,setting,metric,method,value,source\n")
    table = panel_table("lds", [path], tmp_path / "published.csv", dampings, [draws])
    save(tmp_path / "t.csv", table)
    save(tmp_path / "tidy.csv", tidy_table([path], [draws], dampings))
    (panel,) = read_csv(tmp_path / "t.csv", PANEL_COLUMNS)
    rows = read_csv(tmp_path / "tidy.csv", TIDY_COLUMNS)
    for prefix, chosen, truth, half in (
        ("", "chosen_held_out", "mean", "report"),
        ("as_published_", "chosen_as_published", "single", "all"),
        ("surrogate_", "chosen_surrogate", "mean", "report"),
    ):
        (row,) = [r for r in rows if (r[chosen], r["truth"], r["half"]) == ("yes", truth, half)]
        assert row["params"] == panel[f"{prefix}params"]
        assert float(row["value"]) == float(panel[f"{prefix}value"])
    assert float(panel["value"]) == 0.41


def test_a_file_given_twice_or_malformed_is_named(measured: Measured, tmp_path: Path) -> None:
    path, draws = measured("if_cg", CELLS)
    with pytest.raises(LeaveoutError, match="if_cg of toy is given twice"):
        tidy_table([path, path], [draws], [])
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(LeaveoutError, match=r"toy-lds-if_cg\.csv: expected"):
        tidy_table([path], [draws], [])
