"""Tables: a row per method with interval, noise ceiling and published value; and its cost.

A panel shows two protocols side by side. ``value`` is the held-out one: hyper-parameters are chosen
on one half of the test samples and reported on the other, against the mean of all runs;
``surrogate_value`` is reported alike, for the damping chosen without any retrained model.
``as_published_value`` is the papers' habit, for comparison with their numbers: one run each,
hyper-parameters chosen and reported on the same test samples.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.errors import LeaveoutError
from leaveout.metrics.draws import Draws, best, read_draws
from leaveout.metrics.evaluate import COLUMNS as METRIC_COLUMNS

PANEL_COLUMNS = (
    "setting",
    "method",
    "params",
    "value",
    "ci_low",
    "ci_high",
    "ceiling",
    "ceiling_low",
    "ceiling_high",
    "value_over_ceiling",
    "n_test",
    "n_dropped",
    "dropped_why",
    "n_samples",
    "n_runs",
    "n_unconverged",
    "as_published_params",
    "as_published_value",
    "as_published_ci_low",
    "as_published_ci_high",
    "as_published_ceiling",
    "as_published_ceiling_low",
    "as_published_ceiling_high",
    "published",
    "difference",
    "inside_interval",
    "source",
    "ceiling_note",
    "not_computed",
    "surrogate_params",
    "surrogate_value",
    "surrogate_ci_low",
    "surrogate_ci_high",
    "chosen_how",
    "seed",
    "commit",
    "code",
)
PUBLISHED_COLUMNS = ("panel", "setting", "metric", "method", "value", "source")
COST_COLUMNS = (
    "setting",
    "method",
    "params",
    "wall_s",
    "peak_rss_mb",
    "baseline_rss_mb",
    "device",
    "threads",
    "cpu",
)
# Only jobs on an accelerator have the one, and only self-influence says what it is.
COST_OPTIONAL = ("peak_device_mb", "what")
NUMBERS = METRIC_COLUMNS[METRIC_COLUMNS.index("value") : METRIC_COLUMNS.index("ceiling_note")]
ALL_METHODS = "all methods"
Row = dict[str, str]


def read_csv(path: Path | str, columns: Iterable[str]) -> list[Row]:
    """Read a CSV that must have some columns.

    Raises:
        LeaveoutError: The file is missing, is not text, lacks a column, or has a row of another
            length; names it.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise LeaveoutError(
                    f"{path}: no column {', '.join(missing)}. Delete the file and make it anew."
                )
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise LeaveoutError(
                        f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} "
                        "fields. Delete the file and make it anew."
                    )
                rows.append(row)
    except FileNotFoundError as error:
        raise LeaveoutError(f"{path}: no such file. Make it with: snakemake {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LeaveoutError(
            f"{path}: not a readable CSV ({error}). Delete the file and make it anew."
        ) from error
    return rows


def number(row: Mapping[str, str], column: str, path: Path | str) -> float:
    """Return a field as a number, NaN included.

    Raises:
        LeaveoutError: It is none, naming file, column and text.
    """
    try:
        return float(row[column])
    except ValueError as error:
        raise LeaveoutError(
            f"{path}, column {column}: {row[column]!r} is not a number. "
            "Delete the file and make it anew."
        ) from error


def read_metrics(metric: str, paths: Sequence[Path]) -> dict[tuple[str, str], list[Row]]:
    """Read metric CSVs by (setting, method), in the order given but settings together.

    Raises:
        LeaveoutError: A file is malformed, of another metric, or two hold the same method.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for path in paths:
        rows = read_csv(path, METRIC_COLUMNS)
        keys = {(row["setting"], row["method"]) for row in rows}
        if len(keys) != 1 or {row["metric"] for row in rows} != {metric}:
            raise LeaveoutError(
                f"{path}: expected {metric} of one method of one setting, found "
                f"{sorted({(row['metric'], row['setting'], row['method']) for row in rows})}."
            )
        key = keys.pop()
        if key in found:
            raise LeaveoutError(
                f"{path}: {key[1]} of {key[0]} is given twice. Give each file once."
            )
        for row in rows:
            for column in NUMBERS:
                number(row, column, path)
        found[key] = rows
    settings = list(dict.fromkeys(setting for setting, _ in found))
    return {key: found[key] for key in sorted(found, key=lambda key: settings.index(key[0]))}


def read_all(paths: Sequence[Path]) -> dict[tuple[str, str, str], list[Row]]:
    """Read metric CSVs of several metrics by (metric, setting, method), metrics together.

    Raises:
        LeaveoutError: A file is malformed, or two hold the same method.
    """
    return {
        (metric, *key): rows
        for metric, files in by_metric(paths, METRIC_COLUMNS).items()
        for key, rows in read_metrics(metric, files).items()
    }


def by_metric(paths: Sequence[Path], columns: Iterable[str]) -> dict[str, list[Path]]:
    """Group CSVs by the metric in their first row; :func:`read_metrics` checks the other rows.

    Args:
        paths: The files.
        columns: What they must have.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        rows = read_csv(path, columns)
        found.setdefault(rows[0]["metric"] if rows else "", []).append(path)
    return found


def select(rows: Sequence[Row], truth: str, chosen_on: str, reported_on: str) -> Row:
    """Return the row of the best hyper-parameters.

    Args:
        rows: The rows of one method, in grid order.
        truth: ``mean`` or ``single``.
        chosen_on: The half with whose values they are chosen; the first of equals wins, and NaN
            only if all are NaN.
        reported_on: The half whose row is returned.
    """
    choice = [row for row in rows if (row["truth"], row["half"]) == (truth, chosen_on)]
    report = [row for row in rows if (row["truth"], row["half"]) == (truth, reported_on)]
    if not choice or [row["params"] for row in choice] != [row["params"] for row in report]:
        raise LeaveoutError(
            f"the {rows[0]['metric']} of {rows[0]['method']} in {rows[0]['setting']} has no full "
            f"set of rows for truth={truth}, half={chosen_on} and half={reported_on}. "
            "Delete its CSV and make it anew."
        )
    return report[best([float(row["value"]) for row in choice])]


def held_out(rows: Sequence[Row]) -> Row:
    """Return the held-out row: mean of the runs, chosen on one half, reported on the other."""
    return select(rows, "mean", "select", "report")


def as_published(rows: Sequence[Row]) -> Row:
    """Return the row of the papers' protocol: one run, chosen and reported on all samples."""
    return select(rows, "single", "all", "all")


def read_dampings(metric: str, paths: Sequence[Path]) -> dict[tuple[str, str], list[Row]]:
    """Read dampings chosen without retraining by (setting, method).

    Raises:
        LeaveoutError: A file is malformed, of another metric, or two hold the same method.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for path in paths:
        rows = read_csv(path, DAMPING_COLUMNS)
        keys = {(row["setting"], row["method"]) for row in rows}
        if len(keys) != 1 or {row["metric"] for row in rows} != {metric} or keys & found.keys():
            raise LeaveoutError(
                f"{path}: expected dampings for the {metric} of one method of one setting, once. "
                "Delete the file and make it anew."
            )
        for row in rows:
            for column in ("damping", "indicator"):
                number(row, column, path)
        found[keys.pop()] = rows
    return found


def surrogate(rows: Sequence[Row], dampings: Sequence[Row], half: str = "report") -> Row | None:
    """Return the metric's row at the damping chosen without retraining, None if none was.

    Args:
        rows: The metric's rows of one method.
        dampings: Its dampings.
        half: The half of the test samples whose row is returned.
    """
    chosen = [row["params"] for row in dampings if row["chosen"] == "yes"]
    here = [row for row in rows if (row["truth"], row["half"]) == ("mean", half)]
    return next((row for row in here if row["params"] in chosen), None)


def published_rows(
    rows: Sequence[Row], metric: str, setting: str, method: str, *, every: bool = False
) -> list[Row]:
    """Return the published values of a method: if the panel's own figure has any, only those.

    Args:
        rows: All published values.
        metric: Of which metric.
        setting: Of which setting.
        method: Of which method.
        every: Whether to return the values of other papers, too.
    """
    here = [row for row in rows if (row["setting"], row["metric"]) == (setting, metric)]
    own = [row for row in here if row["method"] == method]
    # One figure is one panel; values of other papers for the same setting have panels of their own.
    if not every:
        own = [row for row in own if row["panel"] == f"{setting}_{metric}"] or own
    # "All methods" are the source's own, not ours.
    theirs = {row["source"] for row in rows if row["method"] == method}
    return own or [row for row in here if row["method"] == ALL_METHODS and row["source"] in theirs]


def _published(rows: Sequence[Row], metric: str, setting: str, method: str) -> tuple[str, str]:
    """Return the published values and their sources, each joined; empty texts if there are none."""
    match = published_rows(rows, metric, setting, method)
    return "; ".join(row["value"] for row in match), "; ".join(row["source"] for row in match)


def four(value: float) -> str:
    """Return a number with four decimals."""
    text = f"{value:.4f}"
    return "0.0000" if text == "-0.0000" else text


def _dropped(row: Row) -> tuple[str, str]:
    causes = {"NaN": int(row["n_nan"]), "constant": int(row["n_constant"])}
    return str(sum(causes.values())), ", ".join(f"{n} {why}" for why, n in causes.items() if n)


def _chosen_how(rows: Sequence[Row]) -> str:
    """Say how the hyper-parameters of ``value`` were chosen."""
    points = len({row["params"] for row in rows})
    if points == 1:
        return "nothing to choose"
    half = [row for row in rows if (row["truth"], row["half"]) == ("mean", "select")]
    if all(math.isnan(float(row["value"])) for row in half):
        return f"none of {points} has a value"
    return f"largest value of {points} on the other half of the samples"


def _panel_row(
    rows: Sequence[Row],
    dampings: Sequence[Row],
    draws: Draws | None,
    published: str,
    source: str,
) -> Row:
    ours, theirs = held_out(rows), as_published(rows)
    value, ceiling = float(ours["value"]), float(ours["ceiling"])
    n_dropped, why = _dropped(ours)
    row = {
        column: ours[column]
        for column in ("setting", "method", "params", "ceiling_note", "not_computed")
    }
    row |= {column: ours[column] for column in ("n_test", "n_samples", "n_runs", "n_unconverged")}
    measured = ("value", "ci_low", "ci_high", "ceiling", "ceiling_low", "ceiling_high")
    row |= {column: four(float(ours[column])) for column in measured}
    row |= {f"as_published_{column}": four(float(theirs[column])) for column in measured}
    row["chosen_how"] = _chosen_how(rows)
    if draws is not None and (point := draws.points.get(ours["params"])):
        row |= {column: point[column] for column in ("seed", "commit", "code")}
    if (found := surrogate(rows, dampings)) is not None:
        row["surrogate_params"] = found["params"]
        row |= {f"surrogate_{column}": four(float(found[column])) for column in measured[:3]}
    row |= {
        # A ceiling of 0 (its interval's low end can be) leaves nothing to divide by.
        "value_over_ceiling": four(value / ceiling if ceiling else math.nan),
        "n_dropped": n_dropped,
        "dropped_why": why,
        "as_published_params": theirs["params"],
        "published": published,
        "difference": "",
        "inside_interval": "",
        "source": source,
    }
    try:
        known = float(published)
    except ValueError:
        return row  # none, or a text such as "<=0.02": nothing to subtract
    inside = float(theirs["ci_low"]) <= known <= float(theirs["ci_high"])
    row["difference"] = four(float(theirs["value"]) - known)
    row["inside_interval"] = "yes" if inside else "no"
    return row


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as the text of a CSV; a column that a row lacks is empty."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def panel_table(
    metric: str,
    csvs: Sequence[Path],
    published: Path,
    dampings: Sequence[Path] = (),
    draws: Sequence[Path] = (),
) -> str:
    """Return the table of a panel as CSV: one row per setting and method, numbers have 4 decimals.

    For ``auc`` the samples that are counted and split are training samples, and ``n_samples`` says
    how many of them were flipped.

    Undefined numbers are ``nan``; what does not apply, such as a value nobody published, is empty.
    ``difference`` is ``as_published_value - published``, and ``inside_interval`` says whether the
    published value lies in the interval of ours. ``not_computed`` says why a method has no value.
    ``seed`` is the root seed, ``commit`` that of the code which made the scores shown as ``value``,
    and ``code`` the digests of it that are in their key.

    Args:
        metric: ``lds``, ``loo``, ``pbrf`` or ``auc``.
        csvs: The metric CSVs of ``leaveout.metrics.evaluate``, one per setting and method; they
            order the rows.
        published: CSV of published values, with the columns ``PUBLISHED_COLUMNS``.
        dampings: The CSVs of ``leaveout.scoring.damping``, of methods that have one.
        draws: What lies beside the metric CSVs; it says where the scores come from.

    Returns:
        CSV with the columns ``PANEL_COLUMNS``.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    known = read_csv(published, PUBLISHED_COLUMNS)
    beside = {(one.setting, one.method): one for one in map(read_draws, draws)}
    methods, chosen = read_metrics(metric, csvs), read_dampings(metric, dampings)
    rows = [
        _panel_row(
            rows,
            chosen.get((setting, method), ()),
            beside.get((setting, method)),
            *_published(known, metric, setting, method),
        )
        for (setting, method), rows in methods.items()
    ]
    return csv_text(PANEL_COLUMNS, rows)


SELF_INFLUENCE = "self_influence"
QUALITY = ("value", "ci_low", "ci_high", "ceiling", "chosen")


def _quality(csvs: Sequence[Path]) -> tuple[list[str], dict[tuple[str, str, str], Row]]:
    """Return the metrics' names, and their columns for each (setting, method, params)."""
    found: dict[tuple[str, str, str], Row] = {}
    metrics = []
    for (metric, setting, method), rows in read_all(csvs).items():
        metrics.append(metric)
        chosen = held_out(rows)["params"]
        for row in rows:
            if (row["truth"], row["half"]) != ("mean", "report"):
                continue
            cells = {quality_column(metric, name): four(float(row[name])) for name in QUALITY[:-1]}
            cells[quality_column(metric, "chosen")] = "yes" if row["params"] == chosen else "no"
            found.setdefault((setting, method, row["params"]), {}).update(cells)
    return list(dict.fromkeys(metrics)), found


def quality_column(metric: str, name: str) -> str:
    """Return the column of the table of costs that holds something of a metric."""
    return metric if name == "value" else f"{metric}_{name}"


def read_costs(path: Path) -> list[dict[str, object]]:
    """Read a JSON list of records, each the cost of one grid point.

    Raises:
        LeaveoutError: The file is missing or malformed.
    """
    anew = "Delete the file and make it anew."
    try:
        costs = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LeaveoutError(f"{path}: no such file. Make it with: snakemake {path}") from error
    except (OSError, ValueError) as error:
        raise LeaveoutError(f"{path}: not readable JSON ({error}). {anew}") from error
    if not isinstance(costs, list):
        raise LeaveoutError(f"{path}: not a list of costs. {anew}")
    for k, cost in enumerate(costs):
        missing = [key for key in COST_COLUMNS if not isinstance(cost, dict) or key not in cost]
        if missing:
            raise LeaveoutError(f"{path}, record {k}: no key {', '.join(missing)}. {anew}")
    return costs


def cost_table(costs: Sequence[Path], quality: Sequence[Path] = ()) -> str:
    """Return the table of costs as CSV: one row per grid point, and what its cost buys.

    Rows are ordered by setting, then scores before self-influence, then by method and grid point:
    each in the order in which the files first name it. Metrics that share scores repeat their
    cost; of several records of the same scores the first counts.

    Beside the cost of a grid point stand its values: of each metric the value against the mean of
    all runs on the reported half of the samples, its interval, the ceiling, and whether the grid
    point is the one chosen on the other half. They are empty where the scores do not serve a
    metric: AUC is of self-influence, and all other metrics are of scores.

    Args:
        costs: JSON lists of records with the keys ``COST_COLUMNS`` (wall time in seconds, peak
            resident memory in MB) and, for jobs on an accelerator, ``COST_OPTIONAL``.
        quality: The metric CSVs of all metrics, which order the columns.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    metrics, bought = _quality(quality)
    columns = [quality_column(metric, name) for metric in metrics for name in QUALITY]
    keys = (*COST_COLUMNS, *COST_OPTIONAL)
    rows: dict[tuple[str, str, str, str], dict[str, object]] = {}
    for record in (record for path in costs for record in read_costs(path)):
        row = {key: record.get(key, "") for key in keys}
        setting, what, method, params = (
            str(row[key]) for key in ("setting", "what", "method", "params")
        )
        of_itself = what == SELF_INFLUENCE
        served = [metric for metric in metrics if (metric == "auc") == of_itself]
        cells = [quality_column(metric, name) for metric in served for name in QUALITY]
        values = bought.get((setting, method, params), {})
        row |= {name: values[name] for name in cells if name in values}
        rows.setdefault((setting, what, method, params), row)
    settings, methods = (list(dict.fromkeys(key[k] for key in rows)) for k in (0, 2))
    order = sorted(
        rows, key=lambda k: (settings.index(k[0]), k[1] == SELF_INFLUENCE, methods.index(k[2]))
    )
    return csv_text((*keys, *columns), [rows[key] for key in order])
