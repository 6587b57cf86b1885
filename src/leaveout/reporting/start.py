"""The first page of the report: what was measured, and which methods come first.

It is a page of its own, and it is what the report opens with (``workflow/report/workflow.rst``). So
its style sheet touches nothing outside of it, and its links do one thing in a browser, where the
tables lie beside it, and another in the report, which has them inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from leaveout.config import Setting
from leaveout.reporting import html
from leaveout.reporting.tables import Row, read_csv

AT_LEAST, AT_MOST = 5, 8
"""So many methods are named, and more of those not told apart from the best."""

TABLE = (
    "setting",
    "method",
    "value",
    "ci_low",
    "ci_high",
    "ceiling",
    "ceiling_low",
    "ceiling_high",
)
RANKS = ("setting", "metric", "method", "rank", "tied_with_best")
ALL = "all"
"""The setting of a row of the rank table that is about all of them."""

MEANING = {
    "lds": ("LDS", "Predicting losses after training on a random part of the data."),
    "loo": ("LOO", "Predicting how a loss changes when one training sample is left out."),
    "pbrf": ("PBRF", "The same, but the trained model moves on from where it is."),
    "auc": ("Flipped labels", "Finding training samples with a wrong label: AUC, .5 is chance."),
}
MODELS = {
    "linear": "logistic regression",
    "mlp": "a perceptron",
    "cnn": "a small convolutional net",
}
STYLE = f"""
.start {{ {html.COLOURS} color: var(--text); background: var(--page);
  font: 15px/1.4 system-ui, sans-serif;
  width: 100%; max-width: 80rem; box-sizing: border-box; }}
body:has(> .start) {{ color-scheme: light dark; margin: 0; }}
body > .start {{ padding: 1rem; min-height: 100vh; }}
@media (prefers-color-scheme: dark) {{ .start {{ {html.DARK} }} body:has(> .start) {{ background:
  #15181c; }} }}
.start h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; color: inherit; }}
.start h2 {{ font-size: 1.05rem; margin: 1rem 0 .4rem; color: inherit; }}
.start h3 {{ font-size: 1rem; margin: 0; color: inherit; }}
.start p {{ margin: .3rem 0; max-width: 85ch; color: inherit; }}
.start a {{ color: var(--link); text-decoration: underline; }}
.start strong {{ color: inherit; }}
.start .faint {{ color: var(--faint); font-size: .9rem; }}
.start .cards {{ display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17.5rem, 100%), 1fr)); }}
.start section {{ border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .7rem;
  min-width: 0; }}
.start ol {{ list-style: none; padding: 0; margin: .5rem 0; font-variant-numeric: tabular-nums; }}
.start li {{ display: flex; gap: .5rem; justify-content: space-between;
  padding: .1rem .2rem .3rem; margin: 0;
  background: linear-gradient(to right, var(--bar) 0 var(--low), var(--tip) var(--low)
  var(--high), var(--band) var(--high))
  bottom / 100% 4px no-repeat; }}
.start li.ceiling {{ color: var(--faint); font-style: italic; }}
.start li.tied {{ font-weight: 600; }}
.start li span {{ white-space: nowrap; }}
.start li span:first-child {{ overflow: hidden; text-overflow: ellipsis; }}
.framed .start nav {{ display: none; }}
"""
# As a result of the report the page is framed, where nothing lies beside it.
ONLOAD = "document.body.classList.toggle('framed', location.protocol === 'data:')"


def _link(path: str, text: str, content: str) -> str:
    """Return a link to a result, which lies in ``results``; in the report it is shown there."""
    inside = f"results/{path}"
    show = (
        f"if (typeof app !== 'undefined' && results['{inside}']) {{ "
        f"app.setView({{ content: '{content}', contentPath: results['{inside}'].data_uri, "
        f"resultPath: '{inside}' }}); return false; }}"
    )
    return f'<a href="../{path}" onclick="{show}">{escape(text)}</a>'


def _interval(row: Row, stem: str) -> str:
    return f"{float(row[stem + '_low']):.3f} to {float(row[stem + '_high']):.3f}"


def _percent(text: str) -> str:
    value = float(text)
    return f"{100 * min(max(value, 0), 1):.1f}%" if not math.isnan(value) else "0%"


def _bar(row: Row, tied: bool) -> str:
    low, high = _percent(row["ci_low"]), _percent(row["ci_high"])
    return (
        f"<li{' class=tied' if tied else ''} style='--low: {low}; --high: {high}'>"
        f"<span>{escape(row['method'])}</span>"
        f"<span>{float(row['value']):.3f} <small>({_interval(row, 'ci')})</small></span></li>"
    )


def _ceiling(rows: Sequence[Row]) -> str:
    known = [row for row in rows if not math.isnan(float(row["ceiling"]))]
    if not known:
        return ""
    text = f"{float(known[0]['ceiling']):.3f}"
    if not math.isnan(float(known[0]["ceiling_low"])):
        text += f" <small>({_interval(known[0], 'ceiling')})</small>"
    low, high = (_percent(known[0][end]) for end in ("ceiling_low", "ceiling_high"))
    return (
        f"<li class='ceiling' style='--low: {low}; --high: {high}'><span>noise ceiling</span>"
        f"<span>{text}</span></li>"
    )


def _verdict(names: Sequence[str], tied: Sequence[str] | None) -> str:
    """Say which method is best, and which are not told apart from it if that is known."""
    best = f"<strong>{escape(names[0])}</strong>"
    if tied is None:
        return f"{best} has the highest value."
    others = [name for name in names if name in tied and name != names[0]]
    if not others:
        return f"{best} is best, told apart from every other method."
    listed = escape(", ".join(others[: AT_MOST - 1]))
    rest = len(others) - (AT_MOST - 1)
    more = f" and {rest} more" if rest > 0 else ""
    return f"{best} is best, but not told apart from {listed}{more}."


def _card(metric: str, rows: Sequence[Row], tied: Sequence[str] | None) -> str:
    """Return what one metric says of one setting."""
    valued = [row for row in rows if not math.isnan(float(row["value"]))]
    ordered = sorted(valued, key=lambda row: -float(row["value"]))
    name, meaning = MEANING[metric]
    near = [row["method"] for row in ordered if row["method"] in (tied or ())]
    shown = ordered[: max(AT_LEAST, min(len(near), AT_MOST))]
    bars = "".join(_bar(row, row["method"] in near) for row in shown)
    missing = len(rows) - len(valued)
    counted = f"all {len(rows)} methods" + (f", {missing} without a value" if missing else "")
    verdict = (
        _verdict([row["method"] for row in ordered], tied) if ordered else "No method has a value."
    )
    return "\n".join(
        [
            f"<section><h3>{escape(name)}</h3>",
            f"<p class='faint'>{escape(meaning)}</p>",
            f"<ol>{_ceiling(rows)}{bars}</ol>",
            f"<p>{verdict}</p>",
            f"<nav>{_link(f'pages/{metric}.html', counted, 'html')} · "
            f"{_link(f'figures/{metric}.svg', 'figure', 'img')}</nav></section>",
        ]
    )


def _title(name: str, setting: Setting | None) -> str:
    if setting is None:
        return escape(name)
    model = MODELS.get(setting.model.name, setting.model.name)
    data = setting.dataset
    return escape(
        f"{name}: {model} on {data.name}, {data.n_train} training and {data.n_test} test samples"
    )


def _over_all(ranks: Sequence[Row]) -> str:
    """Return the methods of the best mean rank over all settings, for each metric that has one."""
    cards = []
    for metric, (name, _) in MEANING.items():
        rows = [
            row for row in ranks if (row["setting"], row["metric"]) == (ALL, metric) and row["rank"]
        ]
        listed = "".join(
            f"<li><span>{escape(row['method'])}</span><span>{escape(row['rank'])}</span></li>"
            for row in sorted(rows, key=lambda row: float(row["rank"]))[:AT_LEAST]
        )
        if rows:
            cards.append(f"<section><h3>{escape(name)}: mean rank</h3><ol>{listed}</ol></section>")
    if not cards:
        return ""
    return f"<h2>Over all settings</h2>\n<div class='cards'>{''.join(cards)}</div>"


def start_page(
    settings: Iterable[Setting],
    tables: Mapping[str, Path],
    out: Path,
    ranks: Path | None = None,
) -> None:
    """Write the first page of the report.

    Args:
        settings: The settings shown, in order.
        tables: The table of each metric, from :func:`leaveout.reporting.tables.panel_table`.
        out: The page to write.
        ranks: The table of ranks, which says which methods are not told apart from the best.

    Raises:
        LeaveoutError: A table is missing or malformed.
    """
    panels = {metric: read_csv(path, TABLE) for metric, path in tables.items()}
    ranked = read_csv(ranks, RANKS) if ranks else []
    parts = []
    methods: dict[str, None] = {}
    for setting in settings:
        cards = []
        for metric, table in panels.items():
            rows = [row for row in table if row["setting"] == setting.name]
            methods |= dict.fromkeys(row["method"] for row in rows)
            here = [r for r in ranked if (r["setting"], r["metric"]) == (setting.name, metric)]
            tied = [r["method"] for r in here if r["tied_with_best"] == "yes"]
            if rows:
                cards.append(_card(metric, rows, tied if here else None))
        parts.append(
            f"<h2>{_title(setting.name, setting)}</h2>\n<div class='cards'>{''.join(cards)}</div>"
        )
    links = [_link("pages/cost.html", "what each method costs", "html")]
    if ranks:
        links.insert(0, _link("pages/rank.html", "which methods differ", "html"))
    links.append(_link("pages/setup.html", "versions, hardware and configuration", "html"))
    body = "\n".join(
        [
            "<main class='start'>",
            "<h1>Which training samples made a model say that?</h1>",
            f"<p>{len(methods)} methods of training-data attribution, each held against what "
            "really happens when samples are left out and the model is trained again.</p>",
            "<p class='faint'>How to read the numbers: 1 is a perfect prediction and 0 none, in "
            "brackets is the 95% interval, and hyper-parameters were chosen on other samples than "
            "the value is reported on. Training again gives other losses each time, so even a "
            "predictor without error reaches no more than the noise ceiling.</p>",
            *parts,
            _over_all(ranked),
            f"<nav><p>More: {' · '.join(links)}</p></nav>",
            "</main>",
        ]
    )
    html.write(html.document("leaveout: results", body, STYLE, onload=ONLOAD), out)
