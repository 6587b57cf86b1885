"""The table of ranks: which methods differ significantly, in each setting and over all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaveout.metrics.draws import Draws, read_draws
from leaveout.metrics.ranking import ALPHA, Comparison, compare, mean_ranks
from leaveout.reporting.tables import Row, csv_text, four, held_out, read_all
from leaveout.reporting.tidy import by_method

RANK_COLUMNS = (
    "setting",
    "metric",
    "method",
    "params",
    "value",
    "ci_low",
    "ci_high",
    "rank",
    "rank_low",
    "rank_high",
    "rank_best",
    "rank_worst",
    "best",
    "difference_to_best",
    "difference_to_best_low",
    "difference_to_best_high",
    "p_to_best",
    "tied_with_best",
    "next",
    "difference_to_next",
    "difference_to_next_low",
    "difference_to_next_high",
    "p_to_next",
    "groups",
    "n_methods",
    "n_settings",
    "n_draws",
    "not_ranked",
)
ALL = "all"
"""What stands as the setting in rows that are about all settings."""


def rank_table(csvs: Sequence[Path], draws: Sequence[Path]) -> str:
    """Return which methods differ significantly, as CSV: ranks, paired differences, and groups.

    Methods are compared by their ``value``: hyper-parameters chosen on one half of the samples and
    measured on the other, against the mean of all runs. See :mod:`leaveout.metrics.ranking` for the
    tests. Rows of setting ``all`` have the mean of the ranks over a metric's settings, where there
    are two or more, among the methods that have a value in all of them.

    A method is not ranked if it has no value, or if its metric keeps no replicates; ``not_ranked``
    says which.

    Args:
        csvs: The metric CSVs of all metrics, which order settings and metrics; methods are ordered
            by rank.
        draws: What lies beside them.

    Returns:
        CSV with the columns ``RANK_COLUMNS``.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    chosen = {key: held_out(rows) for key, rows in read_all(csvs).items()}
    found = by_method([read_draws(path) for path in draws])
    rows: list[Row] = []
    for metric in dict.fromkeys(metric for metric, _, _ in chosen):
        settings: dict[str, dict[str, Row]] = {}
        for (of, setting, method), row in chosen.items():
            if of == metric:
                settings.setdefault(setting, {})[method] = row
        beside = {
            (setting, method): one for (of, setting, method), one in found.items() if of == metric
        }
        for setting, methods in settings.items():
            rows += _of_setting(methods, {m: beside.get((setting, m)) for m in methods})
        if len(settings) > 1:
            rows += _over_settings(metric, settings, beside)
    order = list(dict.fromkeys([row["setting"] for row in rows if row["setting"] != ALL]))
    rows.sort(key=lambda row: [*order, ALL].index(row["setting"]))  # else as they are
    return csv_text(RANK_COLUMNS, rows)


def _why_not(row: Row, draws: Draws | None) -> str:
    """Return why a method can't be ranked; an empty text if it can."""
    if row["not_computed"]:
        return row["not_computed"]
    if math.isnan(float(row["value"])):
        return "no value"
    if draws is None or not np.isfinite(draws.replicates).any():
        return "no bootstrap replicates"
    return ""


def _arrays(
    methods: Sequence[str], rows: dict[str, Row], draws: dict[str, Draws | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.array([float(rows[method]["value"]) for method in methods])
    kept = [one.replicates for m in methods if (one := draws[m]) is not None]
    fewest = min(map(len, kept), default=0)
    return values, np.array([replicates[:fewest] for replicates in kept]).reshape(-1, fewest)


def _base(row: Row) -> Row:
    return {name: row[name] for name in ("setting", "metric", "method", "params")}


def _of_setting(rows: dict[str, Row], draws: dict[str, Draws | None]) -> list[Row]:
    """Return the rows of one setting and metric, by rank."""
    why = {method: _why_not(row, draws[method]) for method, row in rows.items()}
    methods = [method for method in rows if not why[method]]
    left_out = [
        _base(row) | {"not_ranked": why[method], "n_settings": "1"}
        for method, row in rows.items()
        if why[method]
    ]
    if not methods:
        return left_out
    found = compare(*_arrays(methods, rows, draws))
    order = sorted(range(len(methods)), key=lambda k: -found.value[k])
    ranked = []
    for place, k in enumerate(order):
        after = order[place + 1] if place + 1 < len(order) else None
        row = rows[methods[k]]
        ranked.append(
            _base(row)
            | {name: four(float(row[name])) for name in ("value", "ci_low", "ci_high")}
            | {"rank": f"{found.rank[k]:g}", "groups": " ".join(map(str, found.groups[k]))}
            | _interval("rank", found.rank_interval[k])
            | {
                name: str(found.rank_set[k, e])
                for e, name in enumerate(("rank_best", "rank_worst"))
            }
            | {"tied_with_best": "yes" if found.p[k, order[0]] > ALPHA else "no"}
            | _differences("best", methods, found, k, order[0])
            | _differences("next", methods, found, k, after)
            | {"n_methods": str(len(methods)), "n_settings": "1", "n_draws": str(found.draws)}
        )
    return ranked + left_out


def _interval(name: str, bounds: NDArray[np.float64]) -> Row:
    return {f"{name}_{end}": f"{bounds[e]:g}" for e, end in enumerate(("low", "high"))}


def _differences(
    to: str, methods: Sequence[str], found: Comparison, k: int, other: int | None
) -> Row:
    """Return the difference to another method; the last one has none after it."""
    if other is None:
        return {}
    numbers = {"": found.difference, "_low": found.low, "_high": found.high}
    row = {f"difference_to_{to}{end}": four(array[k, other]) for end, array in numbers.items()}
    return row | {to: methods[other], f"p_to_{to}": f"{found.p[k, other]:.3g}"}


def _over_settings(
    metric: str, settings: dict[str, dict[str, Row]], beside: dict[tuple[str, str], Draws]
) -> list[Row]:
    """Return the rows of one metric's mean ranks over settings, by mean rank."""
    lacks = {
        method: [
            name
            for name, rows in settings.items()
            if method not in rows or _why_not(rows[method], beside.get((name, method)))
        ]
        for method in dict.fromkeys(m for rows in settings.values() for m in rows)
    }
    methods = [method for method, names in lacks.items() if not names]
    base = {"setting": ALL, "metric": metric, "n_settings": str(len(settings))}
    left_out = [
        {**base, "method": method, "not_ranked": f"no value in: {', '.join(names)}"}
        for method, names in lacks.items()
        if names
    ]
    if not methods:
        return left_out
    arrays = [
        _arrays(methods, rows, {m: beside.get((name, m)) for m in methods})
        for name, rows in settings.items()
    ]
    fewest = min(replicates.shape[1] for _, replicates in arrays)
    mean, bounds, draws = mean_ranks([(value, drawn[:, :fewest]) for value, drawn in arrays])
    ranked = [
        {**base, "method": methods[k], "rank": f"{mean[k]:.2f}", "n_methods": str(len(methods))}
        | {f"rank_{end}": f"{bounds[k, e]:.2f}" for e, end in enumerate(("low", "high"))}
        | {"n_draws": str(draws)}
        for k in sorted(range(len(methods)), key=lambda k: mean[k])
    ]
    return ranked + left_out
