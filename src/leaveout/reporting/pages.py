"""A table as a page of the report, which a reader can sort and search.

The page holds all of the CSV. The columns that matter most come first, under plainer headings; a
checkbox shows the others, so that the page fits a phone. Both ends of an interval share a cell. The
script is our own, since a library that sorts offline would be larger than all tables together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from leaveout.reporting import html
from leaveout.reporting.tables import Row, read_csv

STYLE = """
.tools { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; margin: .6rem 0; }
.tools label { display: flex; gap: .4rem; align-items: center; }
input { font: inherit; }
input[type=search] { width: 14rem; max-width: 100%; padding: .2rem .4rem; }
output { color: var(--faint); }
body { display: flex; flex-direction: column; height: 100vh; margin: 0; padding: 1rem;
  box-sizing: border-box; }
.wide { flex: 0 1 auto; min-height: 20rem; border: 1px solid var(--line); }
tbody th { position: sticky; left: 0; background: var(--page); font-weight: 600; }
thead th:first-child { left: 0; z-index: 2; }
thead th { padding: 0; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  width: 100%; padding: .3rem .6rem;
  text-align: inherit; cursor: pointer; }
th button::after { content: " \\2195"; color: var(--faint); opacity: .6; }
th[aria-sort] button::after { opacity: 1; color: var(--text); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
:focus-visible { outline-offset: -2px; }
.wrap { white-space: normal; min-width: 18rem; }
.none { color: var(--faint); font-style: italic; }
tbody tr:hover > * { background: var(--band); }
@media (max-width: 600px) { th, td, th button { padding: .25rem .4rem; } body { padding: .6rem;
  } p { font-size: .9rem; } tbody th { max-width: 34vw;
  overflow: hidden; text-overflow: ellipsis; } }
"""
# The first click on a heading puts the best first: the highest number, or the lowest rank or cost.
# Cells without a number stay last.
SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const heads = [...table.tHead.rows[0].cells], search = document.querySelector("input[type=search]");
heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
  const number = head.classList.contains("n");
  const down = head.ariaSort ? head.ariaSort === "ascending"
    : number && !head.classList.contains("low");
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[place].dataset.sort ?? row.cells[place].textContent;
  const order = (a, b) => number ? a - b : a.localeCompare(b, "en", { numeric: true });
  rows.sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    return a === "" || b === "" ? (a === "") - (b === "") : down ? order(b, a) : order(a, b);
  });
  body.append(...rows);
}));
const show = () => {
  const words = search.value.toLowerCase().split(/\\s+/);
  rows.forEach(row => { row.hidden = !words.every(word =>
  row.textContent.toLowerCase().includes(word)); });
  const shown = rows.filter(row => !row.hidden).length;
  document.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
};
search.addEventListener("input", show);
show();
"""

PANEL = {
    "method": "method",
    "setting": "setting",
    "value": "value",
    "ci_low": "95% interval",
    "value_over_ceiling": "of ceiling",
    "as_published_value": "as published",
    "published": "published",
    "difference": "difference",
    "not_computed": "no value, because",
}
RANK = {
    "method": "method",
    "setting": "setting",
    "metric": "metric",
    "rank": "rank",
    "rank_low": "95% of ranks",
    "value": "value",
    "ci_low": "95% interval",
    "tied_with_best": "not significantly different from the best",
    "not_ranked": "no rank, because",
}
PUBLISHED = {
    "method": "method",
    "setting": "setting",
    "metric": "metric",
    "value": "ours",
    "ci_low": "95% interval",
    "published": "published",
    "difference": "difference",
    "inside_interval": "inside our interval",
    "cause": "cause",
}
COST = {
    "method": "method",
    "setting": "setting",
    "params": "hyper-parameters",
    "wall_s": "seconds",
    "peak_rss_mb": "peak memory, MB",
    "device": "device",
    "threads": "threads",
}
BRITTLENESS = {
    "method": "method",
    "setting": "setting",
    "k": "taken out",
    "flipped": "flipped",
    "flipped_low": "95% interval",
    "random_flipped": "flipped by random",
    "loss_change": "change of loss",
    "loss_change_low": "its 95% interval",
    "random_loss_change": "change by random",
    "not_computed": "no value, because",
}
SUBGROUPS = {
    "method": "method",
    "setting": "setting",
    "metric": "metric",
    "group_by": "grouped by",
    "group": "group",
    "value": "value",
    "ci_low": "95% interval",
    "n_test": "test samples",
    "not_computed": "no value, because",
}

_VALUE = (
    "For <b>value</b>, hyper-parameters are chosen on one half of the {samples}, and the result is "
    "reported on the other half. <b>as published</b> follows the papers, which choose and report "
    "on the same samples; <b>difference</b> is that minus the published value."
)
ABOVE_PBRF = (
    "This ceiling is how well an independent run agrees with the truth. A method that is given the "
    "very run that the truth starts from can score higher."
)


@dataclass(frozen=True)
class Page:
    """How a table is shown.

    Attributes:
        title: Plain text.
        about: Markup: what the table says, in a sentence or two.
        first: The columns shown first, and their headings; an interval's by its low end. All
            other columns follow.
        best: The column that sorts the rows when the page opens, best first; if empty, they stand
            in the table's order.
    """

    title: str
    about: str
    first: Mapping[str, str]
    best: str = ""


PAGES = {
    "lds": Page(
        "LDS: every method",
        "Correlation between predicted and actual losses of models that are trained on random "
        "parts of the training set. " + _VALUE.format(samples="test samples"),
        PANEL,
        "value",
    ),
    "loo": Page(
        "LOO: every method",
        "Correlation between scores and the change of the loss when one training sample is left "
        "out. " + _VALUE.format(samples="test samples"),
        PANEL,
        "value",
    ),
    "pbrf": Page(
        "PBRF: every method",
        "Correlation between scores and the change of the loss when the trained model itself moves "
        "to where it would be without one training sample. "
        + _VALUE.format(samples="test samples")
        + f" {ABOVE_PBRF.replace('This', 'The', 1)}",
        PANEL,
        "value",
    ),
    "lds_pearson": Page("LDS, Pearson: every method", "", PANEL, "value"),
    "lds_kendall": Page("LDS, Kendall: every method", "", PANEL, "value"),
    "loo_kendall": Page("LOO, Kendall: every method", "", PANEL, "value"),
    "loo_topk": Page("LOO, top k: every method", "", PANEL, "value"),
    "auc": Page(
        "Flipped labels: every method",
        "AUC of finding training samples with flipped labels by their self-influence; 0.5 is "
        "chance. " + _VALUE.format(samples="training samples"),
        PANEL,
        "value",
    ),
    "rank": Page(
        "Ranks: which methods differ",
        "Rank 1 is best. Whether two methods differ significantly is tested by a paired bootstrap "
        "of their difference, corrected for the number of pairs.",
        RANK,
    ),
    "published": Page(
        "Ours and the published values",
        "Our values under the papers' protocol, next to the published ones.",
        PUBLISHED,
    ),
    "cost": Page(
        "Cost: time and memory",
        "What each method and choice of hyper-parameters needed: the seconds of scoring, without "
        "start-up, and the peak memory of the process.",
        COST,
    ),
    "brittleness": Page(
        "Brittleness: predictions that flip",
        "For each test sample, the training samples that a method calls most helpful are taken out "
        "and the model is trained again. The table has the share of predictions that flip, and the "
        "mean change of the test loss. <b>random</b> takes out as many samples at random: a method "
        "has found something only where it does better.",
        BRITTLENESS,
        "flipped",
    ),
    "subgroups": Page(
        "Subgroups: by class, and by how sure the models are",
        "LDS and LOO of every method on a part of the test samples only: those of one "
        "<b>class</b>, or a third of them, by how sure the full models are of the right class "
        "(<b>confidence</b>).",
        SUBGROUPS,
        "value",
    ),
}
LOW_IS_BEST = ("rank", "wall_s", "peak_", "p_")
"""How the names of columns begin where a lower number is better."""
WRAPPED = 40
"""A longer text, in characters, is broken into lines."""
LOW, HIGH = "_low", "_high"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _exact(text: str) -> str:
    """Return a bound, such as ``<=0.02``, as the number it is."""
    return text.removeprefix("<=").removeprefix(">=")


def _short(text: str) -> str:
    """Return a number with three decimals at most."""
    value = _number(text)
    if value is None or len(text.partition(".")[2]) <= 3:
        return text
    return f"{value:.3f}".replace("-0.000", "0.000")


def _undefined(row: Row) -> str:
    """Say why a value is NaN."""
    if row.get("not_computed"):
        return "not computed"
    why = row.get("dropped_why")
    return f"undefined ({why})" if why else "undefined"


@dataclass(frozen=True)
class _Column:
    heading: str
    sources: tuple[str, ...]  # one column of the CSV, or the two ends of an interval
    first: bool
    number: bool


def _columns(rows: Sequence[Row], names: Sequence[str], page: Page) -> list[_Column]:
    """Return the columns in order; a column that says nothing is not among the first."""

    def is_number(name: str) -> bool:
        filled = [row[name] for row in rows if row[name]]
        return bool(filled) and all(_number(_exact(text)) is not None for text in filled)

    def says_something(name: str) -> bool:
        values = {row[name] for row in rows}
        return len(values) > 1 if name in ("setting", "metric") else values != {""}

    headings = {name: _heading(name) for name in names} | dict(page.first)
    found = []
    for name in dict.fromkeys([*page.first, *names]):
        shared = name.endswith(HIGH) and name.removesuffix(HIGH) + LOW in names
        if name not in names or shared:
            continue
        high = name.removesuffix(LOW) + HIGH
        sources = (name, high) if name.endswith(LOW) and high in names else (name,)
        first = name in (page.first or names) and says_something(name)
        found.append(_Column(headings[name], sources, first, all(map(is_number, sources))))
    return sorted(found, key=lambda column: not column.first)


def _heading(name: str) -> str:
    if name.endswith(LOW):
        name = f"{name.removesuffix(LOW).removesuffix('_ci')}_interval"
    return name.replace("_", " ")


def _cell(row: Row, column: _Column) -> str:
    """Return a cell's attributes, ``>``, and its text."""
    texts = [row[name] for name in column.sources]
    numbers = [_number(text) for text in texts]
    if column.number and any(n is not None and n != n for n in numbers):
        return f' class="none" data-sort="">{escape(_undefined(row))}'
    shown = " to ".join(map(_short, texts)) if all(texts) else ""
    attributes = ' class="wrap"' if len(shown) > WRAPPED else ""
    if column.number and (key := _exact(texts[0])) != shown:
        attributes += f' data-sort="{escape(key)}"'
    return f"{attributes}>{escape(shown)}"


def _row(row: Row, columns: Sequence[_Column]) -> str:
    first, *others = (_cell(row, column) for column in columns)
    cells = "".join(f"<td{cell}</td>" for cell in others)
    return f"<tr><th scope='row'{first}</th>{cells}</tr>"


def _by_place(columns: Sequence[_Column]) -> str:
    """Return the style of whole columns by their places: classes on all cells take more bytes."""
    numbers = [f":nth-child({k})" for k, column in enumerate(columns, 1) if column.number]
    shown = sum(column.first for column in columns)
    return (
        f"tr > :is({', '.join(numbers)}) {{ text-align: right; }}\n"
        f"body:not(:has(#all:checked)) tr > :nth-child(n+{shown + 1}) {{ display: none; }}\n"
    )


def _best_first(rows: Sequence[Row], column: str) -> list[Row]:
    """Return rows by a column of numbers, the highest first and those without a number last."""

    def place(row: Row) -> tuple[bool, float]:
        value = _number(row[column])
        return (True, 0.0) if value is None or math.isnan(value) else (False, -value)

    return sorted(rows, key=place)


def _head(column: _Column, best: str) -> str:
    low = column.number and column.sources[0].startswith(LOW_IS_BEST)
    kinds = {"n": column.number, "low": low, "more": not column.first}
    names = " ".join(name for name, holds in kinds.items() if holds)
    attributes = f' class="{names}"' if names else ""
    attributes += " aria-sort='descending'" if column.sources == (best,) else ""
    return (
        f"<th scope='col'{attributes}><button type='button'>{escape(column.heading)}</button></th>"
    )


def table_page(name: str, table: Path) -> str:
    """Return a table as one self-contained HTML page.

    Where a number is NaN, the page says why there is none. Cells that do not apply stay empty.

    Args:
        name: Which table: a metric, ``cost``, or another of :data:`PAGES`. A table that is not
            among them shows all its columns, in their order.
        table: The table.

    Raises:
        LeaveoutError: The table is missing or malformed.
    """
    rows = read_csv(table, ())
    page = PAGES.get(name, Page(name.replace("_", " "), "", {}))
    if page.best and rows and page.best in rows[0]:
        rows = _best_first(rows, page.best)
    columns = _columns(rows, list(rows[0]) if rows else [], page)
    settings = list(dict.fromkeys(row["setting"] for row in rows if "setting" in row))
    about = page.about + (f" Setting: {escape(settings[0])}." if len(settings) == 1 else "")
    more = sum(not column.first for column in columns)
    box = f"<label><input type='checkbox' id='all'> {more} more columns</label>" if more else ""
    heads = "".join(_head(column, page.best) for column in columns)
    body = "\n".join(
        [
            f"<h1>{escape(page.title)}</h1>\n<p>{about}</p>",
            f"<div class='tools'><label>Search <input type='search'></label>{box}"
            "<output aria-live='polite'></output></div>",
            "<div class='wide' tabindex='0' role='region' aria-label='table'>\n<table>",
            f"<thead><tr>{heads}</tr></thead>\n<tbody>",
            *(_row(row, columns) for row in rows),
            "</tbody>\n</table>\n</div>",
        ]
    )
    style = html.STYLE + STYLE + _by_place(columns)
    return html.document(page.title, body, style, SCRIPT)
