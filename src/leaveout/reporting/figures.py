"""Figures: the published panel redrawn from our table, and each method's value along its grid.

Colours are Okabe and Ito's; every series also has a mark or a line style of its own, so that a grey
print reads the same. Figures are narrow, so that their text can be read on a phone. An SVG is the
same byte for byte whenever its data are, and keeps its text as text.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from leaveout.errors import LeaveoutError
from leaveout.reporting.families import ORDER, by_family, family
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
WIDTH = 5.8
"""Inches, of every figure: 400 pixels of a phone leave letters of 8 points readable."""
ROW, MARGIN = 0.26, 1.0
"""Inches: one method of the panel, and what a setting needs beside its methods."""
ACROSS, TALL = 3, 1.6
"""Grids side by side, and the inches that one is high."""


def panel_figure(metric: str, table: Path, csvs: Sequence[Path]) -> str:
    """Draw the panel of a metric: a part per setting, a row per method, grouped by family.

    Each row has our value under the papers' protocol beside the published one, and under the
    held-out protocol, with 95% intervals; a noise ceiling for each protocol.

    Args:
        metric: ``lds``, ``loo``, ``pbrf`` or ``auc``.
        table: The table of ``leaveout.reporting.tables.panel_table``; orders settings and, in
            their families, methods.
        csvs: The metric CSVs it was made from.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or malformed, or they do not fit together.
    """
    rows = read_csv(table, PANEL_COLUMNS)
    metrics = read_metrics(metric, csvs)
    if sorted(metrics) != sorted((row["setting"], row["method"]) for row in rows) or not rows:
        raise LeaveoutError(
            f"{table}: it was not made from the {metric} files given; other methods. "
            "Delete it and make it anew."
        )
    settings = {row["setting"]: [r for r in rows if r["setting"] == row["setting"]] for row in rows}
    lines = {setting: _lines(own) for setting, own in settings.items()}
    with rc_context(STYLE):
        heights = [MARGIN + ROW * max(len(own), 4) for own in lines.values()]
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.2), layout="constrained")
        grid = figure.add_gridspec(len(settings), 1, height_ratios=heights)
        for i, (setting, own) in enumerate(lines.items()):
            axes = figure.add_subplot(grid[i])
            _draw_methods(axes, metric, own, table)
            _draw_ceilings(axes, metrics[setting, settings[setting][0]["method"]])
            axes.set_title(setting, loc="left", fontweight="bold", pad=18)
        _legend(figure, metric, rows)
        return svg(figure)


def grid_figure(metric: str, csvs: Sequence[Path]) -> str:
    """Draw a metric along every grid of hyper-parameters: a small panel each, all on one scale.

    What is shown is what the choice was made by: the value on the half of the test samples used to
    choose, against the mean of all runs, with its 95% interval; the chosen point is ringed. Along
    the axis is the hyper-parameter with the most numbers to try; each choice of the others has a
    panel of its own.

    Args:
        metric: ``lds``, ``loo``, ``pbrf`` or ``auc``.
        csvs: The metric CSVs; they order settings and, in their families, methods.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or malformed, or no method has a choice.
    """
    metrics = read_metrics(metric, csvs)
    cells: dict[str, list[Cell]] = {}
    for setting in dict.fromkeys(setting for setting, _ in metrics):
        methods = by_family(method for name, method in metrics if name == setting)
        cells[setting] = [
            cell
            for members in methods.values()
            for method in members
            for cell in _cells(method, metrics[setting, method])
        ]
    cells = {setting: own for setting, own in cells.items() if own}
    if not cells:
        raise LeaveoutError(
            f"no method of the {metric} files given has several hyper-parameters to choose from."
        )
    down = {setting: -(-len(own) // ACROSS) for setting, own in cells.items()}
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, TALL * sum(down.values()) + 0.8), layout="constrained")
        parts = figure.subfigures(len(cells), 1, height_ratios=[*down.values()], squeeze=False)
        for part, (setting, own) in zip(parts[:, 0], cells.items(), strict=True):
            grid = part.subplots(down[setting], ACROSS, squeeze=False, sharey=True)
            for axes in grid.flatten()[len(own) :]:
                axes.set_axis_off()
            for axes, cell in zip(grid.flatten(), own, strict=False):
                _draw_cell(axes, cell)
            title = f"{setting}: {SHORT[metric]} on the half used to choose"
            part.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
            for axes in grid[:, 0]:
                axes.set_ylabel(SHORT[metric], fontsize=8)
        _grid_legend(figure, metric)
        return svg(figure)


def svg(figure: Figure) -> str:
    """Return a figure as SVG: the same data give the same text, without a date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    return _compact(buffer.getvalue())


def _compact(svg: str) -> str:
    """Return the same drawing in about two thirds of the bytes: clones carry it.

    Indentation and remarks go, and with them names that nothing refers to, the length of other
    names, groups of one part that say nothing of it, and the fonts' names from all texts but the
    whole. Numbers are in points: two decimals are far below what a screen or a printer shows. Grey
    pictures need no colours.
    """
    svg = re.sub(r"(?<=data:image/png;base64,)[^\"]+", lambda found: _grey(found[0]), svg)
    svg = re.sub(r"\n +", "\n", svg)
    svg = re.sub(r"<!--.*?-->\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<=\d\.\d\d)\d+(?=[\s)\"LMCQZz,])", "", svg)
    svg = re.sub(
        r' d="[^"]*"', lambda found: re.sub(r"\s*([MLQCZz]|\"\Z)\s*", r"\1", found[0]), svg
    )
    named = {*re.findall(r"#([\w-]+)", svg)}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] * (found[1] in named), svg)
    short = {name: f"i{k}" for k, name in enumerate(re.findall(r' id="([^"]*)"', svg))}
    svg = re.sub(
        r'(?<= id=")[^"]+|(?<=href="#)[^"]+|(?<=url\(#)[^)]+', lambda found: short[found[0]], svg
    )
    for part in (r"(?:<(?!g\b)\w[^>]*/>\n)+", r"<g [^>]*>\n(?:<(?!g\b)\w[^>]*/>\n)+</g>\n"):
        svg = re.sub(rf"<g>\n({part})</g>\n", r"\1", svg)
    if fonts := re.search(r"; (font-family: [^;\"]*sans-serif)(?=[;\"])", svg):
        rest = re.sub(re.escape(fonts[0]) + r"(?=[;\"])", "", svg)
        svg = rest.replace("<svg ", f'<svg style="{fonts[1]}" ', 1)
    return re.sub(r' style="[^"]*"', lambda found: re.sub("([:;]) ", r"\1", found[0]), svg)


def _grey(png: str) -> str:
    """Return a picture, in base64, without colours if it has none, else as it is."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        red, green, blue, alpha = np.moveaxis(np.asarray(image.convert("RGBA")), -1, 0)
    if (red != green).any() or (red != blue).any() or (alpha != 255).any():
        return png
    out = io.BytesIO()
    Image.fromarray(red).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode("ascii")


def _bounds(row: Row, prefix: str, path: Path) -> tuple[float, list[list[float]]]:
    """Return a value and its interval's distances, as matplotlib wants them."""
    value, low, high = (number(row, prefix + name, path) for name in ("value", "ci_low", "ci_high"))
    return value, [[max(value - low, 0.0)], [max(high - value, 0.0)]]


Line = Row | str
"""Of the panel: a method, or the name of the family whose methods follow."""


def _lines(rows: Sequence[Row]) -> list[Line]:
    """Return the methods by family, with a heading each where there are several."""
    methods = {row["method"]: row for row in rows}
    families = by_family(methods)
    lines: list[Line] = []
    for name, members in families.items():
        lines += [name] * (len(families) > 1)
        lines += [methods[method] for method in members]
    return lines


def _draw_methods(axes: Axes, metric: str, lines: Sequence[Line], path: Path) -> None:
    for y, row in enumerate(lines):
        if isinstance(row, str):
            axes.axhspan(y - 0.5, y + 0.5, color="0.94", zorder=0, linewidth=0)
            continue
        axes.axhline(y + 0.5, color="0.94", linewidth=0.6, zorder=0)
        marks = (("as_published_", y - 0.17, "o", AS_PUBLISHED), ("", y + 0.17, "s", HELD_OUT))
        for prefix, place, mark, colour in marks:
            value, bounds = _bounds(row, prefix, path)
            if math.isnan(value):
                continue
            axes.errorbar(
                value, place, xerr=bounds, fmt=mark, color=colour, markersize=4, elinewidth=1.2,
                capsize=2, zorder=3,
            )  # fmt: skip
        if math.isnan(number(row, "value", path)):
            why = row["not_computed"].partition(":")[0]
            samples = SAMPLES.get(metric, "test samples")
            why = why or f"{row['dropped_why']} of {row['n_test']} {samples}"
            axes.text(
                0.985, y, f"no value: {why}", ha="right", va="center", color=HELD_OUT, fontsize=8,
                transform=axes.get_yaxis_transform(), zorder=5,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 1.5},  # on the ceilings
            )  # fmt: skip
        bound = row["published"].startswith("<=")
        try:
            known = float(row["published"].removeprefix("<="))
        except ValueError:
            continue
        axes.plot(
            known, y - 0.17, "<" if bound else "D", markersize=8, markerfacecolor="none",
            markeredgecolor=PUBLISHED, markeredgewidth=1.1, zorder=4,
        )  # fmt: skip
    names = [row if isinstance(row, str) else row["method"] for row in lines]
    axes.set_yticks(range(len(lines)), names)
    for label, row in zip(axes.get_yticklabels(), lines, strict=True):
        if isinstance(row, str):
            label.set_fontweight("bold")
            label.set_color("0.25")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.5, -0.5)
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


@dataclass(frozen=True)
class Cell:
    """One small panel of the grid figure.

    Attributes:
        method: The method.
        rest: What the hyper-parameters beside the axis's are here, as text.
        name: The hyper-parameter along the axis.
        values: Its values, as text, in order; numbers ascend.
        rows: Their rows.
        numeric: Whether the values are numbers.
        chosen: The place of the chosen point, if it is here.
    """

    method: str
    rest: str
    name: str
    values: list[str]
    rows: list[Row]
    numeric: bool
    chosen: int | None


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _cells(method: str, rows: Sequence[Row]) -> list[Cell]:
    """Return the small panels of a method: none if it has nothing to choose."""
    chosen_on = [row for row in rows if (row["truth"], row["half"]) == ("mean", "select")]
    best = held_out(rows)["params"]
    # joined as leaveout.config.label does; a number may have a plus of its own, as in 1e+06
    points = [
        dict(
            item.split("=", 1)
            for item in re.split(r"\+(?=[a-z_]\w*=)", row["params"])
            if "=" in item
        )
        for row in chosen_on
    ]
    tried = {key: dict.fromkeys(point.get(key, "") for point in points) for key in points[0]}
    varied = [key for key, values in tried.items() if len(values) > 1]
    if not varied:
        return []
    numbers = [key for key in varied if not any(math.isnan(_number(v)) for v in tried[key])]
    name = max(numbers or varied, key=lambda key: len(tried[key]))
    parts: dict[str, list[int]] = {}
    for k, point in enumerate(points):
        rest = ", ".join(f"{key}={point.get(key, '')}" for key in varied if key != name)
        parts.setdefault(rest, []).append(k)
    found = []
    for rest, members in parts.items():
        if numbers:
            members.sort(key=lambda k: _number(points[k].get(name)))
        own = [chosen_on[k] for k in members]
        where = next((i for i, row in enumerate(own) if row["params"] == best), None)
        values = [points[k].get(name, "") for k in members]
        found.append(Cell(method, rest, name, values, own, bool(numbers), where))
    return found


def _draw_cell(axes: Axes, cell: Cell) -> None:
    x = [float(v) for v in cell.values] if cell.numeric else [*map(float, range(len(cell.rows)))]
    y, low, high = ([float(row[c]) for row in cell.rows] for c in ("value", "ci_low", "ci_high"))
    look = look_of(cell.method)
    if cell.numeric:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.plot(x, y, markersize=3.5, linewidth=1.2, **look)
    else:  # nothing lies between them
        axes.vlines(x, low, high, color=look["color"], alpha=0.4, linewidth=4)
        axes.plot(x, y, markersize=3.5, linestyle="", **look)
    if cell.chosen is not None:
        axes.plot(
            x[cell.chosen], y[cell.chosen], "o", markersize=9, markerfacecolor="none",
            color="0.1", markeredgewidth=1.1,
        )  # fmt: skip
    top = float(cell.rows[0]["ceiling"])
    if not math.isnan(top):
        axes.axhline(top, color="0.35", linestyle="--", linewidth=1, zorder=1)
    if not cell.numeric:
        axes.set_xticks(x, cell.values)
        axes.set_xlim(-0.5, len(x) - 0.5)
    elif min(x) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(x) / 2.5, max(x) * 2.5)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(cell.name, fontsize=8, labelpad=1)
    title = f"{cell.method}\n{cell.rest}" if cell.rest else cell.method
    axes.set_title(title, loc="left", fontsize=8, fontweight="bold", pad=3)


def look_of(method: str) -> dict[str, Any]:
    """Return colour and mark of a method's family."""
    k = ORDER.index(family(method))
    return {"color": SERIES[k], "marker": MARKS[k]}


def _grid_legend(figure: Figure, metric: str) -> None:
    ring: dict[str, Any] = {"markerfacecolor": "none", "color": "0.1", "markersize": 9}
    entries: list[tuple[Any, str]] = [
        (Line2D([], [], linestyle="", marker="o", **ring), "chosen"),
        (Patch(color="0.3", alpha=0.2), "95% interval"),
    ]
    if metric != "auc":  # which labels were flipped is no matter of runs, and has no ceiling
        what = CEILING.get(metric, "noise ceiling")
        entries.append((Line2D([], [], color="0.35", linestyle="--"), what))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)


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
        entries.append((band, f"{ceiling}\n(bars and bands: 95%)"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, fontsize=8, columnspacing=1.5
    )
