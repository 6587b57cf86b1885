"""The tidy table: everything that was measured, one number a row; other tables select from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.metrics.draws import POINT, Draws, read_draws
from leaveout.metrics.evaluate import COLUMNS as METRIC_COLUMNS
from leaveout.reporting.tables import (
    Row,
    as_published,
    by_metric,
    csv_text,
    held_out,
    read_all,
    read_dampings,
    surrogate,
)

CHOSEN = ("chosen_held_out", "chosen_as_published", "chosen_surrogate")
TIDY_COLUMNS = (*METRIC_COLUMNS, *CHOSEN, *POINT)


def tidy_table(csvs: Sequence[Path], draws: Sequence[Path], dampings: Sequence[Path]) -> str:
    """Return one long table as CSV: a row per setting, metric, method, grid point, truth and half.

    To the columns of the metrics it adds, for a grid point as a whole, whether it is the choice of
    each protocol, and where its scores come from. ``value`` of a panel's table is that of
    ``chosen_held_out = yes, truth = mean, half = report``; ``as_published_value`` that of
    ``chosen_as_published = yes, truth = single, half = all``. ``chosen_surrogate`` is empty where
    nothing can be chosen without retraining.

    Args:
        csvs: The metric CSVs of all metrics, which order the rows.
        draws: What lies beside them.
        dampings: The dampings chosen without retraining.

    Returns:
        CSV with the columns ``TIDY_COLUMNS``.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    metrics = read_all(csvs)
    points = by_method([read_draws(path) for path in draws])
    found = {
        (metric, *key): rows
        for metric, files in by_metric(dampings, DAMPING_COLUMNS).items()
        for key, rows in read_dampings(metric, files).items()
    }
    table: list[Row] = []
    for key, rows in metrics.items():
        without = surrogate(rows, found.get(key, ()))
        chosen = (held_out(rows)["params"], as_published(rows)["params"])
        known = points[key].points if key in points else {}
        for row in rows:
            here = row["params"]
            flags = [_yes(here == params) for params in chosen]
            flags.append(_yes(here == without["params"]) if without else "")
            of_point = known.get(here, dict.fromkeys(POINT, ""))
            table.append(row | dict(zip(CHOSEN, flags, strict=True)) | of_point)
    return csv_text(TIDY_COLUMNS, table)


def by_method(draws: Sequence[Draws]) -> dict[tuple[str, str, str], Draws]:
    """Return draws by (metric, setting, method)."""
    return {(one.metric, one.setting, one.method): one for one in draws}


def _yes(so: bool) -> str:
    return "yes" if so else "no"
