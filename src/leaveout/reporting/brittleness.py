"""The table and the picture of retraining without each method's most helpful samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from leaveout.errors import LeaveoutError
from leaveout.metrics.brittleness import COLUMNS
from leaveout.reporting.figures import DASHES, MARKS, SERIES, STYLE, svg
from leaveout.reporting.tables import Row, csv_text, number, read_csv

BASELINE = "random"
"""The method that the others are compared with: it takes out samples at random."""
MEASURES = ("flipped", "loss_change", "margin_change")
ENDS = ("", "_low", "_high")
TABLE_COLUMNS = (
    *COLUMNS[: COLUMNS.index("n_test")],
    *(f"{BASELINE}_{name}{end}" for name in MEASURES for end in ENDS),
    *COLUMNS[COLUMNS.index("n_test") :],
)
NUMBERS = COLUMNS[COLUMNS.index("flipped") : COLUMNS.index("not_computed")]
AXIS = {
    "flipped": "predictions that flip",
    "loss_change": "mean change of the test loss",
}
_STEP = 1.06
"""By what factor each method's marks stand right of those of the one before."""


def _read(paths: Sequence[Path]) -> dict[tuple[str, str], list[Row]]:
    """Read metric CSVs by (setting, method), in the order given.

    Raises:
        LeaveoutError: A file is malformed, or two hold the same method.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for path in paths:
        rows = read_csv(path, COLUMNS)
        keys = {(row["setting"], row["method"]) for row in rows}
        if len(keys) != 1 or {row["metric"] for row in rows} != {"brittleness"}:
            raise LeaveoutError(
                f"{path}: expected brittleness of one method of one setting. Delete the file and "
                "make it anew."
            )
        if keys & found.keys():
            raise LeaveoutError(f"{path}: {', '.join(*keys)} is given twice. Give each file once.")
        for row in rows:
            for column in ("k", *NUMBERS):
                number(row, column, path)
        found[keys.pop()] = rows
    if not found:
        raise LeaveoutError("no brittleness file given.")
    return found


def brittleness_table(csvs: Sequence[Path]) -> str:
    """Return the table as CSV: one row a setting, method and number of samples taken out.

    Beside each value stands that of taking out random samples, where ``random`` is among the
    methods; it is empty where it is not.

    Args:
        csvs: From :func:`leaveout.metrics.brittleness.evaluate_brittleness`; they order the rows.

    Returns:
        CSV with the columns ``TABLE_COLUMNS``.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    found = _read(csvs)
    rows = []
    for (setting, _), own in found.items():
        beside = {row["k"]: row for row in found.get((setting, BASELINE), ())}
        for row in own:
            other = beside.get(row["k"], {})
            named = [f"{name}{end}" for name in MEASURES for end in ENDS]
            rows.append(row | {f"{BASELINE}_{name}": other.get(name, "") for name in named})
    return csv_text(TABLE_COLUMNS, rows)


def brittleness_figure(csvs: Sequence[Path]) -> str:
    """Draw the share of flipped predictions, and the change of loss, against what is taken out.

    Args:
        csvs: As for the table; settings are rows of the figure, methods are lines.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    found = _read(csvs)
    settings = list(dict.fromkeys(setting for setting, _ in found))
    methods = list(dict.fromkeys(method for _, method in found))
    # what the others are compared with has no colour of its own
    places = {name: k for k, name in enumerate(m for m in methods if m != BASELINE)}
    with rc_context(STYLE):
        legend = 0.25 * -(-len(methods) // 4)
        figure = Figure(figsize=(9.0, 0.7 + legend + 3.1 * len(settings)), layout="constrained")
        grid = figure.subplots(len(settings), len(AXIS), squeeze=False)
        for line, setting in zip(grid, settings, strict=True):
            for axes, measure in zip(line, AXIS, strict=True):
                for k, method in enumerate(methods):
                    if rows := found.get((setting, method)):
                        shift = _STEP ** (k - (len(methods) - 1) / 2)
                        _draw(axes, rows, measure, _look(method, places), shift)
                _dress(axes, measure, found, setting)
            one = next(rows[0] for key, rows in found.items() if key[0] == setting)
            line[0].set_title(
                f"{setting}: {one['n_test']} test samples, {one['n_runs']} runs",
                loc="left",
                fontweight="bold",
            )
        handles = [Line2D([], [], label=method, **_look(method, places)) for method in methods]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(methods)), fontsize=8
        )
        return svg(figure)


def _look(method: str, places: dict[str, int]) -> dict[str, Any]:
    if method == BASELINE:
        return {"color": "0.45", "linestyle": ":", "marker": "x", "markersize": 5}
    k = places[method]
    return {
        "color": SERIES[k % len(SERIES)],
        "linestyle": DASHES[k % len(DASHES)],
        "marker": MARKS[k % len(MARKS)],
        "markersize": 4.5,
    }


def _draw(
    axes: Axes, rows: Sequence[Row], measure: str, look: dict[str, Any], shift: float
) -> None:
    cells = [[float(row[f"{measure}{end}"]) for end in ENDS] for row in rows]
    shown = [(float(row["k"]) * shift, *c) for row, c in zip(rows, cells, strict=True)]
    shown = [cell for cell in shown if not math.isnan(cell[1])]
    if not shown:
        return
    x, y, low, high = zip(*shown, strict=True)
    bars = [
        [max(v - b, 0.0) for v, b in zip(y, low, strict=True)],
        [max(t - v, 0.0) for v, t in zip(y, high, strict=True)],
    ]
    axes.errorbar(x, y, yerr=bars, linewidth=1.3, elinewidth=0.9, capsize=2, **look)


def _dress(axes: Axes, measure: str, found: dict[tuple[str, str], list[Row]], setting: str) -> None:
    sizes = sorted({int(r["k"]) for (s, _), rows in found.items() for r in rows if s == setting})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(k) for k in sizes])
    axes.set_xlabel("training samples taken out, the most helpful first")
    axes.set_ylabel(AXIS[measure])
    if measure == "flipped":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
