"""The registry: for each table, which files a number of it was made from, and how.

To add a table, add an entry to :data:`TABLES`: what tells its rows apart, its main column, a
function that says where a cell comes from, and, if it can be, one that computes the row again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from leaveout.config import nearest
from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.errors import LeaveoutError
from leaveout.explain.cells import Cell
from leaveout.explain.chain import File, key_difference
from leaveout.metrics.evaluate import COLUMNS as METRIC_COLUMNS
from leaveout.reporting import tables
from leaveout.reporting.tables import Row, read_csv
from leaveout.store import stamps
from leaveout.workflow.run import function
from leaveout.workflow.step import fill
from leaveout.workflow.steps import STEPS

Files = Mapping[str, File]

METRICS = {
    "lds": "Spearman correlation, over random subsets of the training set, between the summed "
    "scores of a subset and minus the loss after training on it; for each test sample, then "
    "averaged",
    "loo": "Pearson correlation, over training samples, between their scores and the rise of the "
    "loss when each is left out; for each test sample, then averaged",
    "pbrf": "Pearson correlation, over training samples, between their scores and the rise of the "
    "loss when the trained model moves to where it would be without each; for each test sample, "
    "then averaged",
    "auc": "area under the ROC curve of self-influence for the training samples whose label was "
    "flipped, ties counted half",
}

# prefix of the columns -> truth, half it is chosen on, half it is reported on, in words
PROTOCOLS = {
    "": "held out: against the mean of all runs; hyper-parameters chosen on the half `select` of "
    "the test samples, reported on the half `report`",
    "as_published_": "the papers' protocol: against single runs; hyper-parameters chosen and "
    "reported on all test samples",
    "surrogate_": "as held out, but the damping was chosen without any retrained model",
}
_ROWS = {
    "": ("mean", "select", "report"),
    "as_published_": ("single", "all", "all"),
    "surrogate_": ("mean", "", "report"),
}
_FROM_PUBLISHED = ("published", "source")
_FROM_BOTH = ("difference", "inside_interval")
_FROM_DRAWS = ("seed", "commit", "code")


@dataclass(frozen=True)
class Origin:
    """Where a cell comes from.

    Attributes:
        through: Which of the table's inputs it was made from; all of them if none is named.
        says: What the number is, in sentences.
        facts: What else there is to say, JSON-able: see :mod:`leaveout.explain.text`.
        faults: What the table and the files it was made from disagree in.
        chosen: The grid point whose scores it is of, if it is of one.
        beyond: Which inputs of further files it was made from, where not of all.
    """

    through: tuple[str, ...]
    says: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    chosen: str = ""
    beyond: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A kind of table.

    Attributes:
        identify: The columns that tell rows apart.
        value: The main column.
        origin: Says where a cell comes from, given the paths of the table's inputs.
        again: Computes the cell's row again, given the chain; also says what it took as it is. None
            where that makes no sense, and then ``why_not`` says why.
        why_not: See ``again``.
    """

    identify: tuple[str, ...]
    value: str
    origin: Callable[[Cell, Sequence[str]], Origin]
    again: Callable[[Cell, Files], tuple[Row, str]] | None
    why_not: str = ""


def table_of(path: Path) -> Table:
    """Return the kind of a table, by its file's name.

    Raises:
        LeaveoutError: Nothing is known of such a table.
    """
    if path.name not in TABLES and _is_panel(path):
        return panel(path.name.removesuffix("_table.csv"))
    if path.name not in TABLES:
        raise LeaveoutError(
            f"{path}: its numbers can't be explained: not a table that is known"
            f"{nearest(path.name, list(TABLES))}"
        )
    return TABLES[path.name]


def _is_panel(path: Path) -> bool:
    """Return whether a table is a panel, of a metric that has no entry of its own."""
    if not path.name.endswith("_table.csv") or not path.is_file():
        return False
    with path.open(newline="", encoding="utf-8") as handle:
        return {"as_published_value", "surrogate_params"} <= {*next(csv.reader(handle), [])}


def prefix_of(column: str) -> str:
    """Return which protocol a column of a panel belongs to, by its prefix."""
    return next((p for p in PROTOCOLS if p and column.startswith(p)), "")


def ending(paths: Iterable[str], *parts: str) -> str:
    """Return the first path that ends in some parts; empty if none does."""
    return next((p for p in paths if Path(p).parts[-len(parts) :] == parts), "")


def _panel(metric: str, cell: Cell, inputs: Sequence[str]) -> Origin:
    """Say where a cell of a panel comes from: one method's metrics, and what was chosen."""
    setting, method, column = cell.row["setting"], cell.row["method"], cell.column
    path = ending(inputs, setting, "metrics", metric, f"{method}.csv")
    damping = ending(inputs, setting, "damping", metric, f"{method}.csv")
    published = [p for p in inputs if _is_published(p)]
    if column in _FROM_PUBLISHED:
        theirs = "the value that others published, no number of ours"
        return Origin(tuple(published), (theirs,), {"source": cell.row["source"]})
    prefix = "as_published_" if column in _FROM_BOTH else prefix_of(column)
    through = [path]
    if prefix == "surrogate_":
        through.append(damping)
    if column in _FROM_BOTH:
        through += published
    if column in _FROM_DRAWS:
        through = [ending(inputs, setting, "metrics", metric, f"{method}.draws.safetensors")]
    says = [METRICS.get(metric, f"the metric {metric}"), PROTOCOLS[prefix]]
    if column in _FROM_BOTH:
        says.append(f"as_published_value, {cell.row['as_published_value']}, against the published")
    if "ceiling" in column and "over" not in column:
        says.append("the ceiling comes from the ground truth alone: scores take no part in it")
    facts: dict[str, Any] = {"metric": metric, "truth": _ROWS[prefix][0]}
    faults: list[str] = []
    chosen = cell.row[f"{prefix}params"]
    if not path:
        facts["choice_unknown"] = "no record of the table names its metrics"
        return Origin((), tuple(says), facts, (), chosen)
    try:
        rows = read_csv(path, METRIC_COLUMNS)
        chosen = _choice(rows, prefix, damping, facts)
    except LeaveoutError as error:
        facts["choice_unknown"] = str(error)
        return Origin(tuple(through), tuple(says), facts, (), chosen)
    reported = next(
        row
        for row in rows
        if (row["truth"], row["half"], row["params"])
        == (_ROWS[prefix][0], _ROWS[prefix][2], chosen)
    )
    facts["reported"] = {name: reported[name] for name in METRIC_COLUMNS[4:12]}
    facts["samples"] = _samples(reported)
    base = column.removeprefix(prefix)
    if chosen != cell.row[f"{prefix}params"]:
        faults.append(
            f"{cell.table} has {prefix}params = {cell.row[f'{prefix}params']}, {path} chooses "
            f"{chosen}"
        )
    elif (
        base in tables.NUMBERS
        and not base.startswith("n_")
        and tables.four(float(reported[base])) != cell.text
    ):
        faults.append(f"{cell.table} has {column} = {cell.text}, {path} has {reported[base]}")
    return Origin(tuple(through), tuple(says), facts, tuple(faults), chosen)


def _choice(rows: Sequence[Row], prefix: str, damping: str, facts: dict[str, Any]) -> str:
    """Note what a grid point was chosen by, and return its label."""
    truth, on, _ = _ROWS[prefix]
    if prefix == "surrogate_":
        dampings = read_csv(damping, DAMPING_COLUMNS)
        facts["chosen_by"] = (
            "the largest indicator, made without retrained models (docs/damping.md)"
        )
        facts["choice"] = [{"params": r["params"], "value": r["indicator"]} for r in dampings]
        found = tables.surrogate(rows, dampings)
        if found is None:
            raise LeaveoutError(f"{damping}: no damping is chosen there")
        return found["params"]
    facts["chosen_by"] = f"the largest value on `{on}`, the first of equals"
    facts["choice"] = [
        {"params": row["params"], "value": row["value"]}
        for row in rows
        if (row["truth"], row["half"]) == (truth, on)
    ]
    return (tables.as_published(rows) if prefix else tables.held_out(rows))["params"]


def _samples(row: Row) -> dict[str, Any]:
    """Return how many samples a row of metrics is of."""
    dropped = {"NaN": int(row["n_nan"]), "constant": int(row["n_constant"])}
    return {
        "what": "training samples" if row["metric"] == "auc" else "test samples",
        "of": int(row["n_test"]),
        "used": int(row["n_test"]) - sum(dropped.values()),
        "dropped": {why: n for why, n in dropped.items() if n},
        "units": int(row["n_samples"]),
        "runs": int(row["n_runs"]),
        "unconverged": int(row["n_unconverged"]),
        "not_computed": row["not_computed"],
    }


def _needed(path: str, files: Files) -> Path:
    if path not in files or not files[path].there:
        raise LeaveoutError(f"{path} is not here; make it with: snakemake {path}")
    return Path(path)


def _panel_again(metric: str, cell: Cell, files: Files) -> tuple[Row, str]:
    """Evaluate scores against the truth again, and make the row of them."""
    from leaveout.metrics.auc import evaluate_auc
    from leaveout.metrics.evaluate import evaluate

    setting, method = cell.row["setting"], cell.row["method"]
    path = ending(files, setting, "metrics", metric, f"{method}.csv")
    if not path:
        raise LeaveoutError("it is no number of ours")
    key = files[path].key
    if key is None or not files[path].inputs:
        raise LeaveoutError(f"it is not known how {path} was made")
    truth, *scores = files[path].inputs
    here = [Path(p) for p in scores if files[p].there]
    if not here:
        _needed(scores[0], files)
    measure = evaluate_auc if metric == "auc" else partial(evaluate, metric)
    made = measure(
        _needed(truth, files),
        here,
        [],
        setting=setting,
        method=method,
        root_seed=int(key["seed"]),
        bootstrap=int(key["bootstrap"]),
        **({"top_k": key["top_k"]} if "top_k" in key else {}),
    )
    text, note = str(made["csv"]), ""
    if len(here) < len(scores):
        text, note = _with_the_rest(_rows(text), _needed(path, files), scores)
    published = [p for p in files[str(cell.table)].inputs if _is_published(p)]
    damping = Path(path).parents[2] / "damping" / metric / f"{method}.csv"
    taken = [name for name in _FROM_DRAWS if name in cell.row]  # they are of scores' files
    if not published:  # no part of what was computed
        taken += [*_FROM_PUBLISHED, *_FROM_BOTH]
    if cell.row.get("surrogate_params"):
        note += "; the damping chosen without retraining is taken as it is"
        if not damping.is_file():
            taken += [name for name in cell.row if prefix_of(name) == "surrogate_"]
    with tempfile.TemporaryDirectory() as folder:
        again, theirs = Path(folder) / Path(path).name, Path(folder) / "published.csv"
        again.write_text(text, encoding="utf-8")
        theirs.write_text(tables.csv_text(tables.PUBLISHED_COLUMNS, []), encoding="utf-8")
        (row,) = _rows(
            tables.panel_table(
                metric,
                [again],
                Path(published[0]) if published else theirs,
                [damping] if cell.row.get("surrogate_params") and damping.is_file() else [],
            )
        )
    return row | {name: cell.row[name] for name in taken}, note.removeprefix("; ")


def _rows(text: str) -> list[Row]:
    return list(csv.DictReader(io.StringIO(text)))


def _is_published(path: str) -> bool:
    return not {"metrics", "damping"} & set(Path(path).parts[:-1])


def _with_the_rest(again: list[Row], old: Path, scores: Sequence[str]) -> tuple[str, str]:
    """Add the rows of grid points whose scores are not here to those computed again."""
    new = {row["params"] for row in again}
    order = [Path(path).stem for path in scores]
    rows = again + [row for row in read_csv(old, METRIC_COLUMNS) if row["params"] not in new]
    rows.sort(key=lambda row: order.index(row["params"]) if row["params"] in order else 0)
    missing = len(order) - len(new)
    note = f"; {missing} of {len(order)} grid points have no scores here: {old}'s rows are taken"
    return tables.csv_text(METRIC_COLUMNS, rows), note


def _cost(cell: Cell, inputs: Sequence[str]) -> Origin:
    """Say where a cell of the table of costs comes from: one job, noted beside a metric."""
    row = cell.row
    parts = [Path(path).parts for path in inputs]
    metrics = dict.fromkeys(names[-2] for names in parts if names[-3:-2] == ("metrics",))
    if cell.column not in (*tables.COST_COLUMNS, *tables.COST_OPTIONAL):  # what it buys
        metric = max((m for m in metrics if cell.column.startswith(m)), key=len, default="")
        path = ending(inputs, row["setting"], "metrics", metric, f"{row['method']}.csv")
        held_out = METRICS.get(metric, f"the metric {metric}")
        return Origin((path,), (held_out, "of this grid point, on the half `report`"))
    says = (
        "measured while the job ran: wall time of the method's own steps in seconds, and the "
        "process's peak memory; baseline is its memory before they began",
    )
    of_itself = row.get("what") == tables.SELF_INFLUENCE
    measured = [
        ending(inputs, row["setting"], "metrics", metric, f"{row['method']}.costs.json")
        for metric in metrics
        if (metric == "auc") == of_itself
    ]
    path = next(filter(None, measured), "")  # metrics that share scores repeat their cost
    job = STEPS["self_influence" if of_itself else "attribute"]
    faults = []
    with contextlib.suppress(LeaveoutError):  # that it is damaged, the chain says
        cost = next((c for c in tables.read_costs(Path(path)) if c["params"] == row["params"]), {})
        if str(cost.get(cell.column, "")) != cell.text:
            faults.append(
                f"{cell.table} has {cell.column} = {cell.text}, {path} has "
                f"{cost.get(cell.column, 'none')}"
            )
    beyond = {path: (fill(job.outputs["cost"], {}, row),)}
    return Origin((path,), says, {}, tuple(faults), row["params"], beyond)


def _matching(says: str, by: Sequence[str], cell: Cell, inputs: Sequence[str]) -> Origin:
    """Say where a row comes from whose columns name its files: setting, metric, method.

    Args:
        says: What the number is.
        by: The columns that the row's files go by; a column that no file goes by says nothing.
        cell: The number.
        inputs: The table's inputs.
    """
    sources = [path for path in inputs if Path(path).parts[0] != cell.table.parts[0]]
    through = [path for path in inputs if path not in sources]
    for column in by:
        name = cell.row.get(column, "")
        fits = [p for p in through if name in _names(Path(p), cell.table.parent)]
        through = fits or through
    what = METRICS.get(cell.row.get("metric", ""))
    return Origin((*through, *sources), (says, *([what] if what else [])))


def _names(path: Path, place: Path) -> tuple[str, ...]:
    """Return the parts of a path that name setting, metric and method: its configuration's don't.

    Args:
        path: An input of a table.
        place: The table's folder, which can have a configuration's name.
    """
    below = path.relative_to(place).parts if path.is_relative_to(place) else path.parts[1:]
    return (*below, path.name.split(".")[0])


def _job_again(cell: Cell, files: Files) -> tuple[Row, str]:
    """Make the table again from its inputs, and return the same row."""
    own = files[str(cell.table)]
    job, stamp = own.job, stamps.read(cell.table)
    if job is None:
        raise LeaveoutError(f"no job of today's configuration makes {cell.table}")
    why = key_difference(own, leave=("code",))
    if not why and stamp is not None and stamp.inputs and tuple(stamp.inputs) != job.reads:
        why = "of other files"
    if why:
        raise LeaveoutError(f"today's configuration makes another {cell.table} ({why})")
    for path in job.reads:
        if not Path(path).is_file():
            raise LeaveoutError(f"{path} is not here; make it with: snakemake {path}")
    rows = _rows(function(job)(**job.step.call(job)))
    if len(rows) < cell.number:
        raise LeaveoutError(f"made again, it has {len(rows)} rows")
    return rows[cell.number - 1], "made again from its inputs, which are taken as they are"


def listed(identify: Sequence[str], value: str, says: str, by: Sequence[str]) -> Table:
    """Return the entry of a table whose rows' columns name the files that they come from.

    Args:
        identify: The columns that tell rows apart.
        value: The main column.
        says: What the number is.
        by: The columns that the row's files go by.
    """
    return Table(tuple(identify), value, partial(_matching, says, by), _job_again)


def panel(metric: str) -> Table:
    """Return the entry of a panel's table."""
    return Table(
        ("setting", "method"), "value", partial(_panel, metric), partial(_panel_again, metric)
    )


_OF_METHOD = ("setting", "metric", "method")

TABLES = {
    **{f"{metric}_table.csv": panel(metric) for metric in METRICS},
    "cost_table.csv": Table(
        ("setting", "method", "params", "what"),
        "wall_s",
        _cost,
        None,
        "it was measured on a machine at a time; the job, done again, takes other time",
    ),
    "lds_width.csv": listed(
        ("method", "params", "kind", "subsets", "runs"),
        "width",
        f"LDS ({METRICS['lds']}) and its interval: measured on so many subsets and runs, drawn at "
        "random several times, or, where `kind` is needed, foreseen from the parts of the variance",
        (),
    ),
    "tidy.csv": listed(
        (*_OF_METHOD, "params", "truth", "half"), "value", "a row of the metric's file", _OF_METHOD
    ),
    "rank_table.csv": listed(
        _OF_METHOD,
        "rank",
        "the method's rank among all of the setting, by `value`; intervals and tests from paired "
        "bootstrap differences",
        ("setting", "metric"),
    ),
    "published_table.csv": listed(
        (*_OF_METHOD, "source"),
        "value",
        "by the papers' protocol, beside a published value",
        _OF_METHOD,
    ),
    "brittleness_table.csv": listed(
        ("setting", "method", "k"),
        "flipped",
        "share of test samples whose prediction flips when the model is trained without the k "
        "samples that the method calls most helpful to it",
        ("setting", "method"),
    ),
    "subgroups_table.csv": listed(
        (*_OF_METHOD, "group_by", "group"),
        "value",
        "a metric over some of the test samples",
        _OF_METHOD,
    ),
}
"""All tables whose numbers can be explained, by their files' names; panels of other metrics are
known by their columns."""
