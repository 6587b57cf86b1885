"""The picture of how a metric goes with the damping of influence functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from leaveout.errors import LeaveoutError
from leaveout.reporting.figures import AXIS, CEILING, DASHES, MARKS, SERIES, STYLE, WIDTH, svg
from leaveout.reporting.tables import Row, held_out, number, read_dampings, read_metrics, surrogate


def damping_figure(metric: str, dampings: Sequence[Path], csvs: Sequence[Path]) -> str:
    """Draw a metric against the damping: a panel a setting, a line a method.

    Each point is the value over all test samples against the mean of all runs, with its 95%
    interval. Where other hyper-parameters vary too, those of the damping chosen on held-out samples
    are drawn.

    Args:
        metric: ``lds``, ``loo`` or ``pbrf``.
        dampings: From :func:`leaveout.scoring.damping.choose_damping`; their order is that
            of panels and lines.
        csvs: The metric CSVs of the same methods.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or malformed, or they are not of the same methods.
    """
    tried, metrics = read_dampings(metric, dampings), read_metrics(metric, csvs)
    if tried.keys() != metrics.keys() or not tried:
        raise LeaveoutError(
            f"the dampings and the {metric} files given are not of the same methods: "
            f"{sorted(tried.keys() ^ metrics.keys()) or 'none given'}."
        )
    settings = list(dict.fromkeys(setting for setting, _ in tried))
    methods = list(dict.fromkeys(method for _, method in tried))
    with rc_context(STYLE):
        height = 1.1 + 0.09 * len(methods) + 3.2 * len(settings)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        grid = figure.subplots(len(settings), 1, squeeze=False)[:, 0]
        for axes, setting in zip(grid, settings, strict=True):
            for k, method in enumerate(methods):
                if (setting, method) in tried:
                    _draw(axes, k, metrics[setting, method], tried[setting, method])
            _draw_ceiling(axes, metrics[setting, _first(tried, setting)])
            axes.set_title(setting, loc="left", fontweight="bold")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=8))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axes.grid(axis="y", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set_xlabel("damping")
            axes.set_ylabel(AXIS[metric].replace(" (", "\n("))
        _legend(figure, methods, CEILING.get(metric, "noise ceiling"))
        return svg(figure)


def _first(dampings: dict[tuple[str, str], list[Row]], setting: str) -> str:
    return next(method for name, method in dampings if name == setting)


def _rest(params: str) -> list[str]:
    """Return what a grid point has beside its damping."""
    return [item for item in params.split("+") if not item.startswith("damping=")]


def _draw(axes: Axes, k: int, rows: Sequence[Row], dampings: Sequence[Row]) -> None:
    # the k-th method's marks lie around those before, where values are alike
    best = held_out(rows)["params"]
    here = {row["params"]: row for row in rows if (row["truth"], row["half"]) == ("mean", "all")}
    line = sorted(
        (row for row in dampings if _rest(row["params"]) == _rest(best)),
        key=lambda row: float(row["damping"]),
    )
    # a damping of 0 has no place on the axis
    line = [row for row in line if float(row["damping"]) > 0 and row["params"] in here]
    x = [float(row["damping"]) for row in line]
    y, low, high = (
        [float(here[row["params"]][column]) for row in line]
        for column in ("value", "ci_low", "ci_high")
    )
    colour, place = SERIES[k % len(SERIES)], dict(zip([r["params"] for r in line], x, strict=True))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        x, y, color=colour, linestyle=DASHES[k % len(DASHES)], marker=MARKS[k % len(MARKS)],
        markersize=4, linewidth=1.3,
    )  # fmt: skip
    if best in place:
        axes.plot(
            place[best], float(here[best]["value"]), "s", markersize=9 + 1.5 * k,
            markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.3,
        )  # fmt: skip
    found = surrogate(rows, dampings, "all")
    if found is None or found["params"] not in place:
        return
    value, params = float(found["value"]), found["params"]
    axes.plot(
        place[params], value, "o", markersize=15 + 1.5 * k, markerfacecolor="none",
        markeredgecolor=colour, markeredgewidth=1.3,
    )  # fmt: skip
    top = next(float(row["indicator"]) for row in line if row["params"] == params)
    expected = [float(row["indicator"]) * value / top for row in line]
    axes.plot(x, expected, color=colour, linestyle=(0, (1, 1.5)), linewidth=0.9, zorder=1)


def _draw_ceiling(axes: Axes, rows: Sequence[Row]) -> None:
    row = next(row for row in rows if (row["truth"], row["half"]) == ("mean", "all"))
    top, low, high = (
        number(row, name, row["setting"]) for name in ("ceiling", "ceiling_low", "ceiling_high")
    )
    if math.isnan(top):
        return
    axes.axhspan(low, high, color="0.35", alpha=0.13, linewidth=0, zorder=0)
    axes.axhline(top, color="0.35", linestyle="--", linewidth=1, zorder=1)


def _legend(figure: Figure, methods: Sequence[str], ceiling: str) -> None:
    dashes: Sequence[Any] = DASHES
    entries: list[tuple[Any, str]] = [
        (
            Line2D(
                [], [], color=SERIES[k % len(SERIES)], linestyle=dashes[k % len(dashes)],
                marker=MARKS[k % len(MARKS)], markersize=4,
            ),
            method,
        )
        for k, method in enumerate(methods)
    ]  # fmt: skip
    hollow: dict[str, Any] = {"linestyle": "", "color": "0.3", "markerfacecolor": "none"}
    band = (Line2D([], [], color="0.35", linestyle="--"), Patch(color="0.35", alpha=0.13))
    entries += [
        (Line2D([], [], marker="s", markersize=9, **hollow), "chosen on held-out samples"),
        (Line2D([], [], marker="o", markersize=12, **hollow), "chosen without retraining"),
        (
            Line2D([], [], color="0.3", linestyle=(0, (1, 1.5)), linewidth=0.9),
            "expected without retraining, scaled",
        ),
        (band, f"{ceiling} (bands: 95%)"),
    ]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
