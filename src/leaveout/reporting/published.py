"""Our values next to the published ones, and why they differ where that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaveout.config import load_yaml
from leaveout.errors import LeaveoutError
from leaveout.reporting.tables import (
    PUBLISHED_COLUMNS,
    Row,
    as_published,
    csv_text,
    four,
    published_rows,
    read_all,
    read_csv,
)

COLUMNS = (
    "setting",
    "metric",
    "method",
    "params",
    "value",
    "ci_low",
    "ci_high",
    "published",
    "difference",
    "inside_interval",
    "tolerance",
    "within_tolerance",
    "cause",
    "source",
    "not_computed",
)
NOT_KNOWN = "not known"
GENERAL = "within tolerance"
BOUND = "<="
_ROUNDING = 1e-9
"""0.05 - 0.02 is a little more than 0.03, in floats."""


def read_causes(path: Path) -> tuple[dict[str, float], dict[tuple[str, str, str], str]]:
    """Read tolerances by setting, and causes by (setting, metric, method).

    Raises:
        LeaveoutError: The file is missing, or holds something else.
    """
    values = load_yaml(path)
    if extra := values.keys() - {"tolerance", "causes"}:
        raise LeaveoutError(f"{path}: {', '.join(sorted(extra))}: it has tolerance and causes only")
    tolerances, causes = (
        _table(path, name, values.get(name) or {}) for name in ("tolerance", "causes")
    )
    for setting, tolerance in tolerances.items():
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
            raise LeaveoutError(f"{path}: tolerance: {setting}: {tolerance!r} is not a number")
    found = {}
    for setting, metrics in causes.items():
        for metric, methods in _table(path, setting, metrics).items():
            for method, cause in _table(path, f"{setting}: {metric}", methods).items():
                if not isinstance(cause, str):
                    where = f"causes: {setting}: {metric}: {method}"
                    raise LeaveoutError(f"{path}: {where}: {cause!r} is not a text")
                found[setting, metric, method] = cause
    return {name: float(tolerance) for name, tolerance in tolerances.items()}, found


def _table(path: Path, name: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise LeaveoutError(f"{path}: {name}: expected keys and values, found {values!r}")
    return values


def published_table(csvs: Sequence[Path], published: Path, causes: Path) -> str:
    """Return one row for each published value of a method that is shown, as CSV.

    ``value`` follows the published protocol: one run each, hyper-parameters chosen and reported on
    all samples. Of a published bound, such as ``<=0.02``, ``difference`` is how far our value is
    above it, and it is inside our interval if the interval reaches it.

    Args:
        csvs: The metric CSVs of all metrics, which order the rows.
        published: CSV of published values, with the columns ``PUBLISHED_COLUMNS``.
        causes: YAML of tolerances and causes; see ``config/causes.yaml``.

    Returns:
        CSV with the columns ``COLUMNS``; numbers have 4 decimals.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    known = read_csv(published, PUBLISHED_COLUMNS)
    tolerances, why = read_causes(causes)
    table = [
        _row(as_published(rows), theirs, tolerances.get(setting), why)
        for (metric, setting, method), rows in read_all(csvs).items()
        for theirs in published_rows(known, metric, setting, method, every=True)
    ]
    return csv_text(COLUMNS, table)


def _row(
    ours: Row,
    theirs: Row,
    tolerance: float | None,
    why: Mapping[tuple[str, str, str], str],
) -> Row:
    value, low, high = (float(ours[name]) for name in ("value", "ci_low", "ci_high"))
    row = {name: ours[name] for name in ("setting", "metric", "method", "params", "not_computed")}
    row |= {name: four(float(ours[name])) for name in ("value", "ci_low", "ci_high")}
    row |= {"published": theirs["value"], "source": theirs["source"]}
    row["tolerance"] = "" if tolerance is None else f"{tolerance:g}"
    bound = theirs["value"].startswith(BOUND)
    try:
        known = float(theirs["value"].removeprefix(BOUND))
    except ValueError:
        return row
    if math.isnan(value):
        return row
    difference = max(value - known, 0.0) if bound else value - known
    inside = low <= known if bound else low <= known <= high
    within = tolerance is None or abs(difference) <= tolerance + _ROUNDING
    row["difference"] = four(difference)
    row["inside_interval"] = "yes" if inside else "no"
    if tolerance is not None:
        row["within_tolerance"] = "yes" if within else "no"
    if not inside:
        where = (ours["setting"], ours["metric"])
        general = why.get((*where, GENERAL)) if tolerance is not None and within else None
        row["cause"] = why.get((*where, ours["method"])) or general or NOT_KNOWN
    return row
