"""Which number is meant: a row and a column of a table, picked by what the row says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leaveout.config import nearest
from leaveout.errors import LeaveoutError
from leaveout.reporting.tables import Row

SHOWN = 12
"""So many candidates are listed in an error."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        table: The file.
        number: Which row, counted from 1, the head left out.
        row: It, by column.
        column: The column.
    """

    table: Path
    number: int
    row: Row
    column: str

    @property
    def text(self) -> str:
        """What stands there."""
        return self.row[self.column]


def names(row: Row, identify: Sequence[str]) -> str:
    """Return what tells a row from others, as it can be asked for."""
    return ",".join(f"{column}={row[column]}" for column in identify if row.get(column))


def pick_row(table: Path, rows: Sequence[Row], identify: Sequence[str], wanted: str | None) -> int:
    """Return the position of the one row that is meant.

    Args:
        table: The file, for errors.
        rows: Its rows.
        identify: The columns that tell rows apart.
        wanted: ``column=value``, several joined by commas; or a row's number, counted from 1. None
            where there is one row only.

    Raises:
        LeaveoutError: No row fits, or several do; lists the candidates.
    """
    if not rows:
        raise LeaveoutError(f"{table}: it has no rows.")
    if wanted is None:
        return _only(table, rows, identify, range(len(rows)), "say which row is meant by --row")
    if wanted.isdecimal():
        if not 1 <= int(wanted) <= len(rows):
            raise LeaveoutError(f"{table}: there is no row {wanted}. Valid: 1 to {len(rows)}.")
        return int(wanted) - 1
    found = list(range(len(rows)))
    for condition in re.split(r",(?=\w+=)", wanted):
        column, equals, value = condition.partition("=")
        if not equals:
            raise LeaveoutError(
                f"--row {wanted}: {condition!r} is neither column=value nor a row's number "
                f"(1 to {len(rows)}). Columns: {', '.join(rows[0])}"
            )
        if column not in rows[0]:
            raise LeaveoutError(
                f"{table}: --row: no column {column!r}{nearest(column, list(rows[0]))}"
            )
        left = [k for k in found if rows[k][column] == value]
        if not left:
            values = list(dict.fromkeys(rows[k][column] for k in found))
            raise LeaveoutError(
                f"{table}: no row has {column} = {value!r}"
                f"{'' if len(found) == len(rows) else ' beside the rest of --row'}"
                f"{nearest(value, values)}"
            )
        found = left
    return _only(table, rows, identify, found, f"{len(found)} rows have {wanted}; say more")


def _only(
    table: Path, rows: Sequence[Row], identify: Sequence[str], found: Sequence[int], what: str
) -> int:
    if len(found) == 1:
        return found[0]
    candidates = [f"  {k + 1}: {names(rows[k], identify)}" for k in found[:SHOWN]]
    if len(found) > SHOWN:
        candidates.append(f"  and {len(found) - SHOWN} more")
    raise LeaveoutError(f"{table}: {what}. Candidates:\n" + "\n".join(candidates))


def pick_column(table: Path, row: Row, wanted: str) -> str:
    """Return the column, which must be there and hold something in this row.

    Raises:
        LeaveoutError: It is not, or does not.
    """
    if wanted not in row:
        raise LeaveoutError(f"{table}: --column: no column {wanted!r}{nearest(wanted, list(row))}")
    if not row[wanted]:
        filled = [column for column, text in row.items() if text]
        raise LeaveoutError(
            f"{table}: the row has no {wanted}: it does not apply to it. Filled in: "
            f"{', '.join(filled)}"
        )
    return wanted
