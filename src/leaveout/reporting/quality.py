"""The picture of quality against cost: what a method's time buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from leaveout.errors import LeaveoutError
from leaveout.reporting.families import ORDER, family
from leaveout.reporting.figures import AXIS, CEILING, CHANCE, STYLE, WIDTH, look_of, svg
from leaveout.reporting.tables import COST_COLUMNS, PANEL_COLUMNS, Row, number, read_csv


@dataclass(frozen=True)
class Dot:
    """A method in the picture.

    Attributes:
        method: The method.
        seconds: Wall time of scoring at its chosen hyper-parameters.
        value: Its held-out value.
        low: The interval's low end.
        high: The interval's high end.
    """

    method: str
    seconds: float
    value: float
    low: float
    high: float


def front(dots: Sequence[Dot]) -> list[Dot]:
    """Return the dots on the Pareto front: no other has a higher value in as little time.

    Returns:
        By time, ascending; so are their values. Of equals in both, the first.
    """
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.seconds, -dot.value)):
        if not found or dot.value > found[-1].value:
            found.append(dot)
    return found


def quality_figure(metric: str, table: Path, costs: Path) -> str:
    """Draw a metric against the time of scoring: a part a setting, a dot a method.

    Values are held out, with 95% intervals; times are of the chosen hyper-parameters alone, without
    the search for them and without the models. Methods on the Pareto front, which no other beats in
    as little time, are joined and named in bold. A method without a value or a time is listed.

    Args:
        metric: ``lds``, ``loo``, ``pbrf`` or ``auc``.
        table: From :func:`leaveout.reporting.tables.panel_table`.
        costs: From :func:`leaveout.reporting.tables.cost_table`, of the same methods.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or malformed, or a method's cost is missing.
    """
    rows = read_csv(table, PANEL_COLUMNS)
    seconds = {
        (row["setting"], row["method"], row["params"]): number(row, "wall_s", costs)
        for row in read_csv(costs, COST_COLUMNS)
        if (row.get("what", "") == "self_influence") == (metric == "auc")
    }
    parts: dict[str, list[Dot]] = {}
    ceilings: dict[str, Row] = {}
    for row in rows:
        key = (row["setting"], row["method"], row["params"])
        if key not in seconds:
            raise LeaveoutError(
                f"{costs}: no cost of {' '.join(key)}, which is in {table}. Delete both and "
                "make them anew."
            )
        measured = [number(row, column, table) for column in ("value", "ci_low", "ci_high")]
        parts.setdefault(row["setting"], []).append(Dot(row["method"], seconds[key], *measured))
        ceilings.setdefault(row["setting"], row)
    if not parts:
        raise LeaveoutError(f"{table}: it has no rows. Delete it and make it anew.")
    with rc_context(STYLE):
        heights = [max(3.0, 1.6 + 0.13 * len(dots)) for dots in parts.values()]
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.1), layout="constrained")
        grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        shown: list[tuple[Axes, list[Dot]]] = []
        for axes, (setting, dots) in zip(grid, parts.items(), strict=True):
            known = [dot for dot in dots if math.isfinite(dot.value) and dot.seconds > 0]
            _draw(axes, metric, known)
            _draw_ceiling(axes, metric, ceilings[setting], table)
            missing = [dot.method for dot in dots if dot not in known]
            note = f"\nwithout a value: {', '.join(missing)}" if missing else ""
            axes.set_xlabel("seconds to score all training samples" + note)
            axes.set_ylabel(AXIS[metric].replace(" (", "\n("))
            axes.set_title(setting, loc="left", fontweight="bold")
            shown.append((axes, known))
        _legend(figure, metric, [dot for dots in parts.values() for dot in dots])
        # the layout is settled before labels are placed in it, and is not to move afterwards
        FigureCanvasAgg(figure).draw()
        figure.set_layout_engine("none")
        for axes, dots in shown:
            _label(axes, dots)
        return svg(figure)


def _draw(axes: Axes, metric: str, dots: Sequence[Dot]) -> None:
    best = front(dots)
    for dot in dots:
        look = look_of(dot.method)
        axes.vlines(dot.seconds, dot.low, dot.high, color=look["color"], linewidth=1, zorder=2)
        axes.plot(
            dot.seconds, dot.value, linestyle="", markersize=7 if dot in best else 5, zorder=3,
            markeredgecolor="black", markeredgewidth=1.2 if dot in best else 0.0, **look,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axhline(CHANCE.get(metric, 0.0), color="0.6", linewidth=0.6, zorder=1)
    if not dots:
        axes.text(
            0.5, 0.5, "no method has a value", ha="center", transform=axes.transAxes, color="0.3"
        )
        return
    x = [dot.seconds for dot in dots]
    axes.set_xlim(min(x) / 3, max(x) * 4)  # room for labels at the sides
    steps = [*best, Dot("", axes.get_xlim()[1], best[-1].value, math.nan, math.nan)]
    axes.plot(
        [dot.seconds for dot in steps], [dot.value for dot in steps], drawstyle="steps-post",
        color="0.55", linewidth=1.2, zorder=1.5,
    )  # fmt: skip


def _draw_ceiling(axes: Axes, metric: str, row: Row, path: Path) -> None:
    top, low, high = (number(row, f"ceiling{end}", path) for end in ("", "_low", "_high"))
    if math.isnan(top):
        return
    axes.axhspan(low, high, color="0.35", alpha=0.13, linewidth=0, zorder=0)
    axes.axhline(top, color="0.35", linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        f"{CEILING.get(metric, 'noise ceiling')}: {top:.3f}", (0, top), (3, 3),
        xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8, color="0.25",
    )  # fmt: skip
    bottom, most = axes.get_ylim()
    axes.set_ylim(bottom, max(most, top + 0.06 * (top - bottom)))


def _legend(figure: Figure, metric: str, dots: Sequence[Dot]) -> None:
    methods = {family(dot.method): dot.method for dot in dots}
    entries: list[tuple[Any, str]] = [
        (Line2D([], [], linestyle="", markersize=6, **look_of(methods[name])), name)
        for name in ORDER
        if name in methods
    ]
    black: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": "black"}
    line = Line2D([], [], color="0.55", marker="o", markersize=7, **black)
    entries.append((line, "no other is better in as little time"))
    if metric != "auc":
        band = (Line2D([], [], color="0.35", linestyle="--"), Patch(color="0.35", alpha=0.13))
        entries.append((band, f"{CEILING.get(metric, 'noise ceiling')} (bars, bands: 95%)"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)


def _label(axes: Axes, dots: Sequence[Dot]) -> None:
    """Name each dot where its name lies on nothing else, by a line if that is far off.

    Places are tried from the nearest to the farthest, the front's dots first; the first one that
    covers no dot, interval or other name is taken. Equal data give equal places.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    pixels = figure.dpi / 72  # of one point
    room = axes.get_window_extent()
    centres = {dot: axes.transData.transform((dot.seconds, dot.value)) for dot in dots}
    taken = []
    for dot, (x, y) in centres.items():
        low, high = (axes.transData.transform((dot.seconds, end))[1] for end in (dot.low, dot.high))
        side = 3.5 * pixels
        taken.append(Bbox.from_extents(x - side, y - side, x + side, y + side))
        taken.append(Bbox.from_extents(x - pixels, low, x + pixels, high))
    taken += [
        text.get_window_extent(canvas.get_renderer()) for text in axes.texts if text.get_visible()
    ]
    best = front(dots)
    for one, other in pairwise(best):
        (x0, y0), (x1, y1) = centres[one], centres[other]
        taken.append(Bbox.from_extents(x0, y0 - pixels, x1, y0 + pixels))
        taken.append(Bbox.from_extents(x1 - pixels, y0, x1 + pixels, y1))
    if best:  # beyond the last one
        y = centres[best[-1]][1]
        taken.append(Bbox.from_extents(centres[best[-1]][0], y - pixels, room.x1, y + pixels))
    for dot in [*best, *(dot for dot in dots if dot not in best)]:
        text = axes.annotate(
            dot.method, (dot.seconds, dot.value), fontsize=8, color="0.1", zorder=4,
            fontweight="bold" if dot in best else "normal", ha="left", va="bottom",
        )  # fmt: skip
        size = text.get_window_extent(canvas.get_renderer())
        x, y = centres[dot]
        places = (
            (Bbox.from_bounds(x + dx, y + dy, size.width, size.height), dx, dy, far)
            for dx, dy, far in _places(size.width, size.height, pixels)
        )
        free = (place for place in places if _is_free(place[0], room, taken))
        box, dx, dy, far = next(free, (None, 0.0, 0.0, False))
        if box is None:
            text.remove()  # a name on top of others would say nothing
            continue
        taken.append(box)
        text.xyann = (dx / pixels, dy / pixels)
        text.anncoords = "offset points"
        if far:
            ends = [(x, y), (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))]
            (x0, y0), (x1, y1) = axes.transData.inverted().transform(ends)
            axes.plot([x0, x1], [y0, y1], color="0.35", linewidth=0.6, zorder=2)


def _is_free(box: Bbox, room: Bbox, taken: Sequence[Bbox]) -> bool:
    """Return whether a box lies in the room and on nothing that is there."""
    across = room.x0 <= box.x0 and box.x1 <= room.x1
    up = room.y0 <= box.y0 and box.y1 <= room.y1
    return across and up and not any(box.overlaps(other) for other in taken)


def _places(width: float, height: float, pixels: float) -> list[tuple[float, float, bool]]:
    """Return where a name may lie from its dot: (x, y) of its corner, and whether that is far."""
    found = []
    for step in range(30):
        away = (4.5 + 5 * step) * pixels
        for angle in np.arange(0, 360, 22.5 if step else 45):
            along, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # beside the dot, the name touches it with its nearest side
            x = away * along + (along - 1) / 2 * width
            y = away * up + (up - 1) / 2 * height
            found.append((x, y, step > 0))
    return found
