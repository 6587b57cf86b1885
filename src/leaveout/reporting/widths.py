"""The picture of how an LDS's interval and noise go with the number of subsets and runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from leaveout.errors import LeaveoutError
from leaveout.metrics.width import COLUMNS, TARGETS
from leaveout.reporting.figures import MARKS, SERIES, STYLE, WIDTH, svg
from leaveout.reporting.tables import Row, number, read_csv

COLOURS = (SERIES[0], SERIES[6], SERIES[1])  # blue, vermillion, green: two methods, difference
_VALUE = ("value", "ci_low", "ci_high")
_FARTHEST = 50
"""The foreseen widths are drawn up to this many times the trainings there are."""


def width_figure(table: Path) -> str:
    """Draw LDS, difference and width of two methods against the trainings they take.

    The fewest and the most runs a subset are drawn; the table has those between. First the two
    methods with 95% intervals, and the noise ceiling with all subsets; then their difference,
    paired; the widths of these intervals, what the split of their variance foresees, and the widths
    asked for. Last, with all subsets: how the noise ceiling and both methods rise with the runs
    that the truth is the mean of, measured and, by Spearman and Brown, foreseen.

    Args:
        table: From :func:`leaveout.metrics.width.lds_width`.

    Returns:
        SVG.

    Raises:
        LeaveoutError: The file is missing or malformed.
    """
    rows = [row for row in read_csv(table, COLUMNS) if row["kind"] == "measured"]
    names = list(dict.fromkeys(row["method"] for row in rows))
    if len(names) != 3:
        raise LeaveoutError(
            f"{table}: expected two methods and their difference, found "
            f"{', '.join(names) or 'nothing'}. Delete the file and make it anew."
        )
    runs = sorted({int(number(row, "runs", table)) for row in rows})
    trainings = sorted(number(row, "trainings", table) for row in rows)
    shown = [runs[0], runs[-1]] if len(runs) > 1 else runs
    series = {
        (name, r): [row for row in rows if (row["method"], row["runs"]) == (name, str(r))]
        for name in names
        for r in shown
    }
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
        (left, middle), (right, more) = figure.subplots(2, 2)
        for (name, r), points in series.items():
            k, last = names.index(name), r == shown[-1]
            _draw_values(middle if k == 2 else left, points, k, last, table)
            _draw_widths(right, points, k, last, table)
        _draw_ceilings(left, {r: series[names[0], r][-1] for r in shown}, table)
        for target in TARGETS:
            right.axhline(target, color="0.75", linewidth=0.8, zorder=0)
            right.annotate(
                f"{target:g}", (1, target), (2, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=8, color="0.35",
            )  # fmt: skip
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.set_title(f"{rows[0]['setting']}: LDS", loc="left", fontweight="bold", fontsize=9)
        middle.set_title("difference, paired", loc="left", fontweight="bold", fontsize=9)
        right.set_title("width of the 95% interval", loc="left", fontweight="bold", fontsize=9)
        middle.axhline(0, color="0.6", linewidth=0.6, zorder=1)
        for axes in (left, middle, right):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel("trainings (subsets x runs)")
            axes.set_xlim(0.8 * trainings[0], 1.25 * trainings[-1])
            axes.tick_params(labelsize=8)
        right.set_xlim(0.8 * trainings[0], 1.25 * _FARTHEST * trainings[-1])
        for axes in (left, middle):
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.grid(axis="y", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
        everything = {
            (row["method"], int(row["runs"])): row
            for row in rows
            if number(row, "subsets", table) == max(number(r, "subsets", table) for r in rows)
        }
        _draw_runs(more, names[:2], runs, everything, table)
        _legend(figure, names, shown)
        return svg(figure)


def _style(k: int, last: bool) -> dict[str, Any]:
    colour = COLOURS[k]
    return {
        "marker": MARKS[k],
        "color": colour,
        "markerfacecolor": colour if last else "white",
        "markersize": 5,
    }


def _draw_values(axes: Axes, points: list[Row], k: int, last: bool, path: Path) -> None:
    x, y, low, high = (
        np.array([number(row, column, path) for row in points])
        for column in ("trainings", "value", "ci_low", "ci_high")
    )
    if not np.isfinite(y).any():
        axes.annotate(
            f"no value of {points[0]['method']}", (0.02, 0.02 + 0.06 * k),
            xycoords="axes fraction", color=COLOURS[k], fontsize=8,
        )  # fmt: skip
        return
    aside = 1.03 if last else 0.97  # lest bars hide each other
    axes.errorbar(
        aside * x, y, yerr=np.maximum([y - low, high - y], 0), linestyle="-" if last else "--",
        linewidth=1.1, elinewidth=1.1, capsize=2.5, **_style(k, last),
    )  # fmt: skip


def _draw_widths(axes: Axes, points: list[Row], k: int, last: bool, path: Path) -> None:
    x, y, foreseen = (
        np.array([number(row, column, path) for row in points])
        for column in ("trainings", "width", "predicted_width")
    )
    if not np.isfinite(y).any() or not (y > 0).any():
        return
    axes.plot(x, y, linestyle="", **_style(k, last))
    if len(x) < 2:
        return
    # the square of what is foreseen is a + b / x, to the decimals of the table
    slope = (foreseen[0] ** 2 - foreseen[-1] ** 2) / (1 / x[0] - 1 / x[-1])
    far = np.geomspace(x[0], _FARTHEST * x[-1], 100)
    line = np.maximum(foreseen[-1] ** 2 + slope * (1 / far - 1 / x[-1]), 0)
    axes.plot(far, np.sqrt(line), linestyle="-" if last else "--", linewidth=1.1, color=COLOURS[k])


def _draw_ceilings(axes: Axes, rows: dict[int, Row], path: Path) -> None:
    tops = {r: number(row, "ceiling", path) for r, row in rows.items()}
    tops = {r: top for r, top in tops.items() if math.isfinite(top)}
    if not tops:
        return
    for r, top in tops.items():
        axes.axhline(top, color="0.35", linestyle="-" if r == max(rows) else "--", linewidth=1.1)
    said = ", ".join(f"{top:.2f} ({r} run{'s' * (r > 1)})" for r, top in tops.items())
    axes.annotate(
        f"ceiling {said}", (0, max(tops.values())), (2, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", va="bottom",
        fontsize=8, color="0.25",
    )  # fmt: skip
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, max(tops.values()) + 0.06 * (high - low)))


def _draw_runs(
    axes: Axes, names: list[str], runs: list[int], rows: dict[tuple[str, int], Row], path: Path
) -> None:
    """Draw ceiling and values against the runs that the truth is the mean of."""
    axes.set_title("mean of more runs, all subsets", loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel("runs of each subset")
    axes.tick_params(labelsize=8)
    most = runs[-1]
    top = number(rows[names[0], most], "ceiling", path)
    if not math.isfinite(top):
        axes.text(
            0.5, 0.5, "no noise ceiling:\none run of each subset,\nor runs that do not agree",
            ha="center", va="center", transform=axes.transAxes, fontsize=8, color="0.3",
        )  # fmt: skip
        axes.set_yticks([])
        return
    r = np.arange(1, max(10, 2 * most) + 1)
    rho = top**2 / (most - (most - 1) * top**2)  # of two single runs
    reached = np.sqrt(r * rho / (1 + (r - 1) * rho))
    axes.plot(r, reached, color="0.35", linestyle="--", linewidth=1.1)
    for k, name in enumerate((None, *names)):
        here = {run: rows[name or names[0], run] for run in runs}
        columns = ("ceiling", "ceiling_low", "ceiling_high") if name is None else _VALUE
        y, low, high = (np.array([number(row, c, path) for row in here.values()]) for c in columns)
        look = {"color": "0.35", "marker": "_"} if name is None else _style(k - 1, True)
        if not np.isfinite(y).any():
            continue
        bars = np.maximum([y - low, high - y], 0)
        axes.errorbar(runs, y, yerr=bars, linestyle="", elinewidth=1.1, capsize=2.5, **look)
        if name is not None:  # noise dilutes a correlation as it does the ceiling
            foreseen = y[-1] / top * reached
            axes.plot(r, foreseen, color=look["color"], linewidth=1.1)
    for at in sorted({1, most, int(r[-1])}):
        axes.annotate(
            f"{1 - reached[at - 1] ** 2:.0%}\nnoise", (at, reached[at - 1]), (0, 4),
            textcoords="offset points", ha="center", va="bottom", fontsize=8, color="0.25",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(0.75, 1.35 * r[-1])
    bottom, upper = axes.get_ylim()
    axes.set_ylim(bottom, upper + 0.17 * (upper - bottom))
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure, names: list[str], runs: list[int]) -> None:
    entries = [
        (Line2D([], [], linestyle="", **_style(k, True)), name) for k, name in enumerate(names)
    ]
    for r in runs:
        last = r == runs[-1]
        entries.append(
            (
                Line2D(
                    [], [], color="0.3", marker="o", markersize=5, linewidth=1.1,
                    linestyle="-" if last else "--", markerfacecolor="0.3" if last else "white",
                ),
                f"{r} run{'s' * (r > 1)} a subset (width: points measured, lines foreseen)",
            )
        )  # fmt: skip
    ceiling = Line2D([], [], color="0.35", linestyle="--", linewidth=1.1)
    entries.append((ceiling, "noise ceiling"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=1, fontsize=8)
