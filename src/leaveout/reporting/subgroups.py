"""The table of metrics by subgroup of the test samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leaveout.metrics.subgroups import COLUMNS
from leaveout.reporting.tables import number, read_csv, write_csv


def subgroups_table(csvs: Sequence[Path], out: Path) -> None:
    """Put the metrics by subgroup together.

    Args:
        csvs: From :func:`leaveout.metrics.subgroups.subgroups`, one a setting and metric.
        out: CSV to write, with the same columns.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    rows = []
    for path in csvs:
        for row in read_csv(path, COLUMNS):
            for column in ("value", "ci_low", "ci_high", "n_test"):
                number(row, column, path)
            rows.append({column: row[column] for column in COLUMNS})
    write_csv(out, COLUMNS, rows)
