"""The table of metrics by subgroup of the test samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leaveout.metrics.subgroups import COLUMNS
from leaveout.reporting.tables import csv_text, number, read_csv


def subgroups_table(csvs: Sequence[Path]) -> str:
    """Return the metrics by subgroup, put together as one CSV with the same columns.

    Args:
        csvs: From :func:`leaveout.metrics.subgroups.subgroups`, one a setting and metric.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    rows = []
    for path in csvs:
        for row in read_csv(path, COLUMNS):
            for column in ("value", "ci_low", "ci_high", "n_test"):
                number(row, column, path)
            rows.append({column: row[column] for column in COLUMNS})
    return csv_text(COLUMNS, rows)
