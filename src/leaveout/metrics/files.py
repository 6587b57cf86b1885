"""How a metric's values are written, and its costs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from leaveout.errors import LeaveoutError


def number(value: float) -> str:
    """Six decimals: enough for any use, and no rounding error of a machine's matrix products."""
    return f"{value:.6f}"


def rows_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows, in the order of the columns, as the text of a CSV with a header line."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def costs_text(costs: Sequence[Path], setting: str, method: str) -> str:
    """Return the records of cost files as the text of one JSON list, in the order given.

    Args:
        costs: The files: a JSON object each, of what one grid point of the method took.
        setting: The setting they must be of.
        method: The method they must be of.

    Raises:
        LeaveoutError: A file is missing, not readable, or of something else.
    """
    records: list[dict[str, Any]] = []
    for path in costs:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise LeaveoutError(f"{path}: no such file. Make it with: snakemake {path}") from error
        except (OSError, ValueError) as error:
            raise LeaveoutError(
                f"{path}: not readable JSON ({error}). Delete the file and make it anew."
            ) from error
        if not isinstance(record, dict):
            raise LeaveoutError(f"{path}: not the record of a cost. Delete it and make it anew.")
        for name, expected in (("setting", setting), ("method", method)):
            if record.get(name) != expected:
                raise LeaveoutError(
                    f"{path}: its {name} is {record.get(name)!r}, expected {expected!r}. "
                    "Give the costs of the method and setting whose scores are evaluated."
                )
        records.append(record)
    return json.dumps(records, indent=1) + "\n"
