"""Figures: the published panel redrawn from our table, and each method's value along its grid.

Colours are Okabe and Ito's; every series also has a mark or a line style of its own, so that a grey
print reads the same. An SVG is the same byte for byte whenever its data are, and keeps its text as
text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from leaveout.artefacts import atomic_path
from leaveout.errors import LeaveoutError
from leaveout.reporting.tables import (
    PANEL_COLUMNS,
    Row,
    as_published,
    held_out,
    number,
    read_csv,
    read_metrics,
)

HELD_OUT, AS_PUBLISHED, PUBLISHED = "#D55E00", "#0072B2", "#000000"
# Okabe-Ito without yellow, which is too light for a line; orange and vermillion are last as they
# resemble the held-out mark.
SERIES = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#D55E00")
MARKS = ("o", "s", "^", "v", "P", "X", "D")
DASHES = ("-", "--", "-.", ":")
AXIS = {
    "lds": "linear datamodeling score (mean Spearman correlation)",
    "loo": "leave-one-out (mean Pearson correlation)",
    "pbrf": "proximal Bregman response (mean Pearson correlation)",
    "lds_pearson": "linear datamodeling score (mean Pearson correlation)",
    "lds_kendall": "linear datamodeling score (mean of Kendall's tau)",
    "loo_kendall": "leave-one-out (mean of Kendall's tau)",
    "loo_topk": "top samples by leave-one-out among a method's own (mean share)",
    "auc": "mislabel detection (area under the ROC curve of self-influence)",
}
SHORT = {
    "lds": "LDS",
    "loo": "LOO",
    "pbrf": "PBRF",
    "lds_pearson": "LDS, Pearson",
    "lds_kendall": "LDS, Kendall",
    "loo_kendall": "LOO, Kendall",
    "loo_topk": "LOO, top k",
    "auc": "AUC",
}
CHANCE = {"auc": 0.5}
SAMPLES = {"auc": "training samples"}
"""What is counted and split in halves, if not test samples."""
CEILING = {"pbrf": "ceiling between two models"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "leaveout",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
}
WIDTH, ROW, MARGIN = (
    10.0,
    0.34,
    1.15,
)  # inches: figure, one method, and what a panel needs beside its methods


def panel_figure(metric: str, table_csv: Path, metric_csvs: Sequence[Path], out: Path) -> None:
    """Draw the panel of a metric: a row per setting, methods on the left, grids on the right.

    Left, per method: our value under the papers' protocol beside the published one, and under the
    held-out protocol; 95% intervals; a noise ceiling for each protocol. Right: the value along
    every one-parameter grid (held-out truth, the half on which hyper-parameters are chosen), with
    the chosen point ringed.

    Args:
        metric: ``lds``, ``loo``, ``pbrf`` or ``auc``.
        table_csv: The table of ``leaveout.reporting.tables.panel_table``; orders settings and
            methods.
        metric_csvs: The metric CSVs it was made from.
        out: File to write; its suffix (``.svg``, ``.png``, ``.pdf``) decides the format.

    Raises:
        LeaveoutError: A file is missing or malformed, they do not fit together, or the suffix is
            unknown.
    """
    rows = read_csv(table_csv, PANEL_COLUMNS)
    metrics = read_metrics(metric, metric_csvs)
    if sorted(metrics) != sorted((row["setting"], row["method"]) for row in rows) or not rows:
        raise LeaveoutError(
            f"{table_csv}: it was not made from the {metric} files given; other methods. "
            "Delete it and make it anew."
        )
    settings = {row["setting"]: [r for r in rows if r["setting"] == row["setting"]] for row in rows}
    with rc_context(STYLE):
        heights = [MARGIN + ROW * max(len(methods), 4) for methods in settings.values()]
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.75), layout="constrained")
        grid = figure.add_gridspec(len(settings), 2, width_ratios=[1.55, 1], height_ratios=heights)
        for i, (setting, methods) in enumerate(settings.items()):
            left, right = figure.add_subplot(grid[i, 0]), figure.add_subplot(grid[i, 1])
            own = {
                method: metrics[setting, method] for method in (row["method"] for row in methods)
            }
            _draw_methods(left, metric, methods, own, table_csv)
            left.set_title(setting, loc="left", fontweight="bold", pad=18)
            _draw_grids(right, metric, own)
        _legend(figure, metric, rows)
        save(figure, out)


def save(figure: Figure, out: Path) -> None:
    """Save a figure, whole or not at all; the same data give the same file.

    Args:
        figure: The figure.
        out: File to write; its suffix (``.svg``, ``.png``, ``.pdf``) decides the format.

    Raises:
        LeaveoutError: The suffix is unknown.
    """
    if out.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise LeaveoutError(f"{out}: cannot draw a {out.suffix or 'file without suffix'}; use .svg")
    # No date in it.
    metadata: dict[str, Any] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
        ".ps": {"CreationDate": None},
    }.get(out.suffix, {})
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:], dpi=150, metadata=metadata)


def _bounds(row: Row, prefix: str, path: Path) -> tuple[float, list[list[float]]]:
    """Return a value and its interval's distances, as matplotlib wants them."""
    value, low, high = (number(row, prefix + name, path) for name in ("value", "ci_low", "ci_high"))
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _draw_methods(
    axes: Axes, metric: str, rows: Sequence[Row], metrics: dict[str, list[Row]], path: Path
) -> None:
    for y, row in enumerate(rows):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="0.96", zorder=0, linewidth=0)
        marks = (("as_published_", y - 0.14, "o", AS_PUBLISHED), ("", y + 0.2, "s", HELD_OUT))
        for prefix, place, mark, colour in marks:
            value, bounds = _bounds(row, prefix, path)
            if math.isnan(value):
                continue
            axes.errorbar(
                value, place, xerr=bounds, fmt=mark, color=colour, markersize=4.5, elinewidth=1.2,
                capsize=2, zorder=3,
            )  # fmt: skip
        if math.isnan(number(row, "value", path)):
            why = row["not_computed"].partition(":")[0]
            samples = SAMPLES.get(metric, "test samples")
            why = why or f"{row['dropped_why']} of {row['n_test']} {samples}"
            axes.text(
                0.99, y + 0.2, f"no value: {why}",
                ha="right", va="center", color=HELD_OUT, fontsize=8,
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        bound = row["published"].startswith("<=")
        try:
            known = float(row["published"].removeprefix("<="))
        except ValueError:
            continue
        axes.plot(
            known, y - 0.14, "<" if bound else "D", markersize=9, markerfacecolor="none",
            markeredgecolor=PUBLISHED, markeredgewidth=1.1, zorder=4,
        )  # fmt: skip
    _draw_ceilings(axes, next(iter(metrics.values())))
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    low, high = axes.get_xlim()
    chance = CHANCE.get(metric, 0.0)
    # a mark at 1 is whole, and no room is lost beyond a bound that nothing can exceed
    most = 1.0 if high > 0.5 else high
    axes.set_xlim(min(low, chance), 1.01 if metric == "auc" else most)
    axes.axvline(chance, color="0.6", linewidth=0.6, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(AXIS[metric])


def _draw_ceilings(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw each protocol's noise ceiling and its interval: the same for all methods."""
    one, several = as_published(rows), held_out(rows)
    if one["n_runs"] == "1":
        what = CEILING.get(one["metric"], "noise ceiling")
        ceilings = [(one, "0.35", "--", "right", what)]
    else:
        # The ceiling of several runs is never the lower one, so that labels on outer sides cannot
        # meet.
        ceilings = [
            (one, AS_PUBLISHED, "--", "right", "noise ceiling, 1 run"),
            (several, HELD_OUT, ":", "left", f"mean of {several['n_runs']}"),
        ]
    for row, colour, dash, side, what in ceilings:
        top, low, high = (float(row[name]) for name in ("ceiling", "ceiling_low", "ceiling_high"))
        if math.isnan(top):
            continue
        axes.axvspan(low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
        axes.axvline(top, color=colour, linestyle=dash, linewidth=1.2, zorder=2)
        axes.annotate(
            f"{what}: {top:.2f}", (top, 1), (-3 if side == "right" else 3, 3), ha=side, va="bottom",
            xycoords=("data", "axes fraction"), textcoords="offset points",
            color=colour, fontsize=8,
        )  # fmt: skip


def _grid(rows: Sequence[Row]) -> tuple[str, list[float], list[Row]] | None:
    """Return the one numeric hyper-parameter that varies, its sorted values and their rows."""
    chosen_on = [row for row in rows if (row["truth"], row["half"]) == ("mean", "select")]
    grid = [
        # joined as leaveout.config.label does; a number may have a plus of its own, as in 1e+06
        dict(
            item.split("=", 1)
            for item in re.split(r"\+(?=[a-z_]\w*=)", row["params"])
            if "=" in item
        )
        for row in chosen_on
    ]
    varied = [key for key in grid[0] if len({point.get(key) for point in grid}) > 1]
    if len(varied) != 1:
        return None
    try:
        values = [float(point[varied[0]]) for point in grid]
    except (KeyError, ValueError):
        return None
    order = sorted(range(len(values)), key=values.__getitem__)
    return varied[0], [values[k] for k in order], [chosen_on[k] for k in order]


def _draw_grids(axes: Axes, metric: str, metrics: dict[str, list[Row]]) -> None:
    grids = {method: _grid(rows) for method, rows in metrics.items()}
    lines = {method: grid for method, grid in grids.items() if grid is not None}
    if not lines:
        axes.set_axis_off()
        return
    for k, (method, (_, values, rows)) in enumerate(lines.items()):
        colour = SERIES[k % len(SERIES)]
        y, low, high = ([float(row[c]) for row in rows] for c in ("value", "ci_low", "ci_high"))
        axes.fill_between(values, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            values, y, marker=MARKS[k % len(MARKS)], linestyle=DASHES[k % len(DASHES)],
            color=colour, markersize=4, linewidth=1.2, label=method,
        )  # fmt: skip
        best = held_out(metrics[method])["params"]
        chosen = [
            (x, v) for x, v, row in zip(values, y, rows, strict=True) if row["params"] == best
        ]
        axes.plot(*chosen[0], "o", markersize=10, markerfacecolor="none", color=colour)
    if min(min(values) for _, values, _ in lines.values()) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(" or ".join(dict.fromkeys(name for name, _, _ in lines.values())))
    axes.set_ylabel(f"{SHORT[metric]} (selection half)")
    axes.legend(loc="best", fontsize=8)


def _legend(figure: Figure, metric: str, rows: Sequence[Row]) -> None:
    def mark(marker: str, colour: str, size: float, **more: Any) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=size, **more)

    # which labels were flipped is no matter of runs, and has no ceiling
    runs = metric != "auc"
    one, several = ("1 run, ", "mean of runs, ") if runs else ("", "")
    entries: list[tuple[Any, str]] = [
        (
            mark("o", AS_PUBLISHED, 5),
            f"ours, as published: {one}hyper-parameters\nchosen and reported on all "
            f"{SAMPLES.get(metric, 'test samples')}",
        ),
        (
            mark("s", HELD_OUT, 5),
            f"ours, held out: {several}hyper-parameters\nchosen on one half, reported on the other",
        ),
    ]
    if any(row["published"] and not row["published"].startswith("<=") for row in rows):
        entries.append((mark("D", PUBLISHED, 8, markerfacecolor="none"), "published"))
    if any(row["published"].startswith("<=") for row in rows):
        entries.append((mark("<", PUBLISHED, 8, markerfacecolor="none"), "published: at most"))
    if runs:
        band = (Line2D([], [], color="0.3", linestyle="--"), Patch(color="0.3", alpha=0.15))
        ceiling = CEILING.get(metric, "noise ceiling")
        entries.append((band, f"{ceiling} (bars and bands: 95%)"))
    entries.append((mark("o", "0.3", 10, markerfacecolor="none"), "hyper-parameter chosen"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, columnspacing=2)
