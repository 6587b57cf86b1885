from __future__ import annotations

import csv

import pytest

from leaveout.data.halves import chosen
from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import COLUMNS
from leaveout.reporting.tables import held_out, read_metrics


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.1, 0.3, 0.2], "b"),
        ([0.3, 0.3, 0.2], "a"),
        (["nan", -0.4, "nan"], "b"),
        (["nan", "nan", "nan"], "a"),
    ],
)
def test_the_choice_is_the_tables(tmp_path, values, best):
    rows = [
        ("toy", "lds", "m", label, truth, half, value if half == "select" else 1 - len(label),
         0, 0, 0, 0, 0, 9, 0, 0, 9, 2, 0, "", "no", "")
        for label, value in zip("abc", values, strict=True)
        for truth in ("mean", "single") for half in ("select", "report", "all")
    ]  # fmt: skip
    path = tmp_path / "m.csv"
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([COLUMNS, *rows])
    assert chosen(path) == best
    assert held_out(read_metrics("lds", [path])["toy", "m"])["params"] == best


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "m.csv"
    with pytest.raises(LeaveoutError, match=r"m\.csv: no such file"):
        chosen(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(LeaveoutError, match=r"m\.csv: not a metric's CSV"):
        chosen(path)
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(LeaveoutError, match=r"m\.csv: no row for truth=mean"):
        chosen(path)
