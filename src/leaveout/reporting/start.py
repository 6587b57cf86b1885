"""The first page of the report: what was measured, and which methods come first.

It begins with a box for each metric, which says who wins in which setting; all boxes fit a screen.
Below them, each setting's values.

It is a page of its own, and it is what the report opens with (``workflow/report/workflow.rst``). So
its style sheet touches nothing outside of it, and its links do one thing in a browser, where the
tables lie beside it, and another in the report, which has them inside.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from leaveout.config import Setting
from leaveout.reporting import html
from leaveout.reporting.brittleness import BASELINE, TABLE_COLUMNS
from leaveout.reporting.ranks import ALL, RANK_COLUMNS
from leaveout.reporting.tables import PANEL_COLUMNS, Row, read_csv

AT_LEAST, AT_MOST = 5, 8
"""So many methods have a bar, and more of those not told apart from the best."""
NAMED = 3
"""So many methods are named in a sentence."""

MEANING = {
    "lds": ("LDS", "Predicting losses after training on a random part of the data."),
    "loo": ("LOO", "Predicting how a loss changes when one training sample is left out."),
    "pbrf": ("PBRF", "As LOO, but the trained model moves on from where it is."),
    "lds_pearson": ("LDS, Pearson", "As LDS, but by the losses themselves and not their order."),
    "lds_kendall": ("LDS, Kendall", "As LDS, by how many pairs of subsets are in order."),
    "loo_kendall": ("LOO, Kendall", "As LOO, by how many pairs of samples are in order."),
    "loo_topk": ("LOO, top k", "Which samples matter most when one is left out."),
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
.start dl {{ margin: .4rem 0; }}
.start dt {{ color: var(--faint); font-size: .9rem; margin: .4rem 0 0; }}
.start dd {{ margin: 0; }}
.start p.line {{ max-width: none; }}
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
.framed .start :is(nav, .links) {{ display: none; }}
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


def _some(names: Sequence[str]) -> str:
    """Name a few, and count the others."""
    rest = len(names) - NAMED
    return escape(", ".join(names[:NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _valued(rows: Iterable[Row], column: str = "value") -> list[Row]:
    """Return the rows that have a value, the highest first."""
    known = [row for row in rows if not math.isnan(float(row[column]))]
    return sorted(known, key=lambda row: -float(row[column]))


def _winner(rows: Sequence[Row], tied: Collection[str] | None) -> str:
    """Return which method is best, and which are not told apart from it if that is known."""
    ordered = _valued(rows)
    if not ordered:
        return "<dd>No method has a value.</dd>"
    best = ordered[0]
    top = float(best["ceiling"])
    note = f", {best['ceiling_note']}" if float(best["value"]) > top else ""
    ceiling = "" if math.isnan(top) else f" <small>(ceiling {top:.3f}{escape(note)})</small>"
    found = f"<dd><strong>{escape(best['method'])}</strong> {float(best['value']):.3f}{ceiling}"
    if tied is not None:
        others = [row["method"] for row in ordered[1:] if row["method"] in tied]
        said = f"not told apart from {_some(others)}" if others else "told apart from all others"
        found += f"<br><span class='faint'>{said}</span>"
    return found + "</dd>"


def _mean_ranks(ranks: Sequence[Row], metric: str) -> str:
    """Return the methods of the best mean rank over the metric's settings, if it has several."""
    here = [r for r in ranks if (r["setting"], r["metric"]) == (ALL, metric) and r["rank"]]
    here.sort(key=lambda row: float(row["rank"]))
    if not here:
        return ""
    listed = ", ".join(f"{escape(row['method'])} {float(row['rank']):g}" for row in here[:NAMED])
    among = f"{here[0]['n_methods']} methods, {here[0]['n_settings']} settings"
    return f"<dt>mean rank ({among})</dt><dd>{listed}</dd>"


def _box(name: str, meaning: str, entries: Sequence[str], links: Sequence[str]) -> str:
    return "\n".join(
        [
            f"<section><h3>{escape(name)}</h3>",
            f"<p class='faint'>{escape(meaning)}</p>",
            f"<dl>{''.join(entries)}</dl>",
            f"<nav>{' · '.join(links)}</nav></section>",
        ]
    )


def _share(text: str) -> str:
    return f"{100 * float(text):.0f}%"


def _flips(table: Sequence[Row], settings: Iterable[str]) -> str:
    """Say who flips most predictions where most samples are taken out; nothing if none does."""
    found = []
    for setting in settings:
        here = [row for row in table if row["setting"] == setting]
        most = max((int(row["k"]) for row in here), default=0)
        others = [r for r in here if int(r["k"]) == most and r["method"] != BASELINE]
        ordered = _valued(others, "flipped")
        if not ordered:
            continue
        best = ordered[0]
        share, low, high = (_share(best[f"flipped{end}"]) for end in ("", "_low", "_high"))
        equal = [row["method"] for row in ordered if row["flipped"] == best["flipped"]]
        beside = best[f"{BASELINE}_flipped"]
        chance = f", {_share(beside)} without {most} at random" if beside else ""
        found.append(
            f"{escape(setting)}: {share} <small>({low} to {high})</small> without the {most} that "
            f"<strong>{_some(equal)}</strong> names{chance}"
        )
    if not found:
        return ""
    table_link = _link("pages/brittleness.html", "all methods", "html")
    figure_link = _link("figures/brittleness.svg", "figure", "img")
    return (
        "<p class='line'><strong>Brittleness</strong>: how many predictions flip once the samples "
        "that helped each one most are taken out, and the model is trained again. "
        f"{'; '.join(found)}. "
        f"<span class='links'>{table_link} · {figure_link}</span></p>"
    )


def _card(metric: str, rows: Sequence[Row], tied: Collection[str]) -> str:
    """Return the best values of one metric in one setting."""
    ordered = _valued(rows)
    near = [row["method"] for row in ordered if row["method"] in tied]
    shown = ordered[: max(AT_LEAST, min(len(near), AT_MOST))]
    bars = "".join(_bar(row, row["method"] in near) for row in shown)
    missing = len(rows) - len(ordered)
    counted = f"{len(shown)} of {len(rows)} methods"
    counted += f", {missing} without a value" if missing else ""
    return (
        f"<section><h3>{escape(MEANING[metric][0])}</h3>\n<ol>{_ceiling(rows)}{bars}</ol>\n"
        f"<p class='faint'>{counted}</p></section>"
    )


def _about(setting: Setting) -> str:
    """Say what a setting is."""
    model = MODELS.get(setting.model.name, setting.model.name)
    data = setting.dataset
    noise = data.label_noise
    flipped = f" ({100 * noise.fraction:g}% of them with a flipped label)" if noise else ""
    return escape(
        f"{model} on {data.name}, {data.n_train} training samples{flipped} and {data.n_test} test "
        "samples"
    )


def start_page(
    settings: Iterable[Setting],
    tables: Mapping[str, Path],
    out: Path,
    ranks: Path | None = None,
    brittleness: Path | None = None,
) -> None:
    """Write the first page of the report.

    Args:
        settings: The settings shown, in order.
        tables: The table of each metric, from :func:`leaveout.reporting.tables.panel_table`.
        out: The page to write.
        ranks: The table of ranks, which says which methods are not told apart from the best.
        brittleness: The table of :func:`leaveout.reporting.brittleness.brittleness_table`.

    Raises:
        LeaveoutError: A table is missing or malformed.
    """
    about = {setting.name: setting for setting in settings}
    panels = {metric: read_csv(path, PANEL_COLUMNS) for metric, path in tables.items()}
    ranked = read_csv(ranks, RANK_COLUMNS) if ranks else []
    removed = read_csv(brittleness, TABLE_COLUMNS) if brittleness else []
    tied: dict[tuple[str, str], set[str]] = {}  # of what is not ranked, nothing is known
    for row in ranked:
        here = tied.setdefault((row["setting"], row["metric"]), set())
        here |= {row["method"]} if row["tied_with_best"] == "yes" else set()
    cells = {
        (name, metric): rows
        for name in about
        for metric, table in panels.items()
        if (rows := [row for row in table if row["setting"] == name])
    }
    boxes = [
        _box(
            *MEANING[metric],
            [
                f"<dt>{escape(name)}</dt>{_winner(rows, tied.get((name, metric)))}"
                for (name, of), rows in cells.items()
                if of == metric
            ]
            + [_mean_ranks(ranked, metric)],
            [
                _link(f"pages/{metric}.html", "all methods", "html"),
                _link(f"figures/{metric}.svg", "figure", "img"),
            ],
        )
        for metric in panels
    ]
    measured = [f"<strong>{escape(name)}</strong>: {_about(s)}" for name, s in about.items()]
    parts = []
    for name in about:
        cards = [
            _card(metric, rows, tied.get((name, metric), ()))
            for (of, metric), rows in cells.items()
            if of == name
        ]
        parts.append(f"<h2>{escape(name)}</h2>\n<div class='cards'>{''.join(cards)}</div>")
    methods = {row["method"] for rows in cells.values() for row in rows}
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
            f"<p class='faint line'>{'; '.join(measured)}.</p>",
            "<h2>Who wins</h2>",
            f"<div class='cards'>{''.join(boxes)}</div>",
            _flips(removed, about),
            "<p class='faint line'>How to read the numbers: 1 is a perfect prediction and 0 none; "
            "of flipped labels, .5 is chance. Hyper-parameters were chosen on other samples than "
            "the value is reported on. Training again gives other losses each time, so even a "
            "predictor without error reaches no more than the noise ceiling. Between methods not "
            "told apart, the difference may be chance. Each setting's best methods follow, with "
            "95% intervals; those not told apart from the first are in bold.</p>",
            f"<nav><p>More: {' · '.join(links)}</p></nav>",
            *parts,
            "</main>",
        ]
    )
    html.write(html.document("leaveout: results", body, STYLE, onload=ONLOAD), out)
