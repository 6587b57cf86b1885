"""The first page of the report: what was measured, and which methods come first.

It begins with a box for each metric, which names the winner in each setting; all boxes fit on one
screen. The best values of each setting follow.

It is a page of its own, and also what the report opens with (``workflow/report/workflow.rst``). So
its style sheet touches nothing outside of it, and its links work in both: in a browser, where the
tables lie beside the page, and in the report, which contains them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import NormalDist

import numpy as np

from leaveout.config import Setting
from leaveout.metrics.ranking import ALPHA, descending_ranks
from leaveout.reporting import html
from leaveout.reporting.brittleness import BASELINE, TABLE_COLUMNS
from leaveout.reporting.figures import CHANCE
from leaveout.reporting.pages import ABOVE_PBRF
from leaveout.reporting.ranks import ALL, RANK_COLUMNS
from leaveout.reporting.tables import PANEL_COLUMNS, Row, read_csv

AT_LEAST, AT_MOST = 5, 8
"""How many methods have a bar; more than the least only if not significantly below the best."""
NAMED = 3
"""How many methods a sentence names."""

MEANING = {
    "lds": ("LDS", "Predicting losses after training on a random part of the data."),
    "loo": ("LOO", "Predicting how a loss changes when one training sample is left out."),
    "pbrf": ("PBRF", "As LOO, but the trained model itself moves on, with no new training."),
    "lds_pearson": ("LDS, Pearson", "As LDS, but compares the losses themselves, not their order."),
    "lds_kendall": ("LDS, Kendall", "As LDS, by the share of pairs of subsets in the right order."),
    "loo_kendall": ("LOO, Kendall", "As LOO, by the share of pairs of samples in the right order."),
    "loo_topk": ("LOO, top k", "Finding the samples that matter most when they are left out."),
    "auc": ("Flipped labels", "Finding training samples with a wrong label: AUC, 0.5 is chance."),
}
WITHOUT_CEILING = ("auc", "loo_topk")
"""Metrics that never have a noise ceiling."""
MODELS = {
    "linear": "logistic regression",
    "mlp": "a perceptron",
    "cnn": "a small convolutional net",
    "resnet9": "a residual net",
    "gpt": "a transformer",
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
# The report shows the page in a frame, where no tables lie beside it.
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


def _is_noise(metric: str, rows: Sequence[Row], tied: Collection[str] | None) -> bool:
    """Return whether a panel's best value is not significantly above chance.

    The best of many values is high by luck, too; so its p-value is multiplied by their number
    (Bonferroni). By chance, ``loo_topk`` finds a share that the table does not say. There, the best
    method has to differ significantly from ``random``.

    Args:
        metric: The metric.
        rows: Its panel in one setting.
        tied: The methods not significantly different from the best, if that is known.
    """
    ordered = _valued(rows)
    if not ordered:
        return False
    if metric == "loo_topk":
        return BASELINE in (tied or ())
    value, low = (float(ordered[0][name]) for name in ("value", "ci_low"))
    above, error = value - CHANCE.get(metric, 0.0), (value - low) / NormalDist().inv_cdf(0.975)
    # without an interval, or with one of no width, nothing speaks against the value itself
    p = math.erfc(above / error / math.sqrt(2)) if error > 0 else 0.0
    return above <= 0 or p * len(ordered) > ALPHA


def _noise(metric: str, rows: Sequence[Row]) -> str:
    """Say that a panel is noise, and why."""
    ordered = _valued(rows)
    best, among = ordered[0], f"the best of {len(ordered)}" if len(ordered) > 1 else "the only one"
    than = "that of random samples" if metric == "loo_topk" else "chance"
    said = (
        f"This panel is noise, so nobody wins: {among}, {escape(best['method'])} "
        f"{float(best['value']):.3f} <small>({_interval(best, 'ci')})</small>, is not "
        f"significantly above {than}."
    )
    if not math.isnan(float(best["ceiling"])):
        said += f" The noise ceiling is {float(best['ceiling']):.3f}."
    elif best["ceiling_note"] and metric not in WITHOUT_CEILING:
        said += f" There is no noise ceiling: {escape(best['ceiling_note'])}."
    return f"<dd>{said}</dd>"


def _winner(metric: str, rows: Sequence[Row], tied: Collection[str] | None) -> str:
    """Return which method is best, and which do not differ from it significantly, if known."""
    ordered = _valued(rows)
    if not ordered:
        return "<dd>No method has a value.</dd>"
    best = ordered[0]
    top, note, more = float(best["ceiling"]), "", ""
    if float(best["value"]) > top:
        note = f", {best['ceiling_note']}" if best["ceiling_note"] else ""
        if metric == "pbrf":
            note, more = "", f"<br><span class='faint'>{ABOVE_PBRF}</span>"
    ceiling = "" if math.isnan(top) else f" <small>(ceiling {top:.3f}{escape(note)})</small>"
    found = f"<dd><strong>{escape(best['method'])}</strong> {float(best['value']):.3f}{ceiling}"
    if tied is not None:
        others = [row["method"] for row in ordered[1:] if row["method"] in tied]
        said = (
            f"not significantly different from {_some(others)}"
            if others
            else "significantly better than all others"
        )
        found += f"<br><span class='faint'>{said}</span>"
    return f"{found}{more}</dd>"


def _mean_ranks(ranks: Sequence[Row], metric: str, noise: Collection[str]) -> str:
    """Return the methods of the best mean rank over a metric's settings, if there are several.

    Ranks are among the methods that are ranked in all of these settings, as in the table's own rows
    for all settings. Those count noise, too, and are not used.

    Args:
        ranks: The table of ranks.
        metric: The metric.
        noise: The settings in which its panel is noise: they do not count.
    """
    places: dict[str, dict[str, float]] = {}
    for row in ranks:
        if row["metric"] == metric and row["rank"] and row["setting"] not in (ALL, *noise):
            places.setdefault(row["setting"], {})[row["method"]] = float(row["rank"])
    each = [*places.values()]
    methods = [method for method in (each or [{}])[0] if all(method in of for of in each)]
    if len(each) < 2 or not methods:
        return ""
    by_setting = [descending_ranks(-np.array([of[m] for m in methods])) for of in each]
    mean = np.mean(by_setting, axis=0)
    best = sorted(zip(mean, methods, strict=True), key=lambda pair: pair[0])[:NAMED]
    listed = ", ".join(f"{escape(method)} {float(f'{rank:.2f}'):g}" for rank, method in best)
    if noise:
        listed += f"<br><span class='faint'>without {escape(', '.join(noise))}: noise</span>"
    among = f"{len(methods)} methods, {len(each)} settings"
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
    """Say which methods flip most predictions where most samples are taken out."""
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
        chance = f", {_share(beside)} without {most} random ones" if beside else ""
        found.append(
            f"{escape(setting)}: {share} <small>({low} to {high})</small> without the {most} "
            f"samples named by <strong>{_some(equal)}</strong>{chance}"
        )
    if not found:
        return ""
    table_link = _link("pages/brittleness.html", "all methods", "html")
    figure_link = _link("figures/brittleness.svg", "figure", "img")
    return (
        "<p class='line'><strong>Brittleness</strong>: how many predictions flip when the samples "
        "that helped each of them most are taken out and the model is trained again. "
        f"{'; '.join(found)}. "
        f"<span class='links'>{table_link} · {figure_link}</span></p>"
    )


def _card(metric: str, rows: Sequence[Row], tied: Collection[str], noise: bool) -> str:
    """Return the best values of one metric in one setting."""
    ordered = _valued(rows)
    near = [row["method"] for row in ordered if row["method"] in tied]
    shown = ordered[: max(AT_LEAST, min(len(near), AT_MOST))]
    bars = "".join(_bar(row, row["method"] in near) for row in shown)
    missing = len(rows) - len(ordered)
    counted = f"{len(shown)} of {len(rows)} methods"
    counted += f", {missing} without a value" if missing else ""
    counted += "; this panel is noise" if noise else ""
    return (
        f"<section><h3>{escape(MEANING[metric][0])}</h3>\n<ol>{_ceiling(rows)}{bars}</ol>\n"
        f"<p class='faint'>{counted}</p></section>"
    )


def _about(setting: Setting) -> str:
    """Say what a setting is."""
    model = MODELS.get(setting.model.name, setting.model.name)
    if setting.model.name == "linear" and setting.objective.name == "squared_error":
        model = "linear regression"
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
    ranks: Path | None = None,
    brittleness: Path | None = None,
) -> str:
    """Return the first page of the report, as HTML.

    Args:
        settings: The settings shown, in order.
        tables: The table of each metric, from :func:`leaveout.reporting.tables.panel_table`.
        ranks: The table of ranks, which says which methods do not differ significantly from the
            best.
        brittleness: The table of :func:`leaveout.reporting.brittleness.brittleness_table`.

    Raises:
        LeaveoutError: A table is missing or malformed.
    """
    about = {setting.name: setting for setting in settings}
    panels = {metric: read_csv(path, PANEL_COLUMNS) for metric, path in tables.items()}
    ranked = read_csv(ranks, RANK_COLUMNS) if ranks else []
    removed = read_csv(brittleness, TABLE_COLUMNS) if brittleness else []
    tied: dict[tuple[str, str], set[str]] = {}  # nothing is known of panels without ranks
    for row in ranked:
        here = tied.setdefault((row["setting"], row["metric"]), set())
        here |= {row["method"]} if row["tied_with_best"] == "yes" else set()
    cells = {
        (name, metric): rows
        for name in about
        for metric, table in panels.items()
        if (rows := [row for row in table if row["setting"] == name])
    }
    noise = {
        cell: _noise(cell[1], rows)
        for cell, rows in cells.items()
        if _is_noise(cell[1], rows, tied.get(cell))
    }
    boxes = [
        _box(
            *MEANING[metric],
            [
                f"<dt>{escape(cell[0])}</dt>"
                + (noise.get(cell) or _winner(metric, rows, tied.get(cell)))
                for cell, rows in cells.items()
                if cell[1] == metric
            ]
            + [_mean_ranks(ranked, metric, [name for name, of in noise if of == metric])],
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
            _card(cell[1], rows, () if cell in noise else tied.get(cell, ()), cell in noise)
            for cell, rows in cells.items()
            if cell[0] == name
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
            f"<p>{len(methods)} methods of training-data attribution, each compared with what "
            "really happens when samples are left out and the model is trained again.</p>",
            f"<p class='faint line'>{'; '.join(measured)}.</p>",
            "<h2>Who wins</h2>",
            f"<div class='cards'>{''.join(boxes)}</div>",
            _flips(removed, about),
            "<p class='faint line'>How to read the numbers: 1 is a perfect prediction and 0 is "
            "none, but for flipped labels 0.5 is chance. Hyper-parameters are chosen on other "
            "samples than those the value is reported on. Training again gives other losses each "
            "time, so even a predictor without error reaches no more than the noise ceiling. If "
            "two methods are not significantly different, the gap between them may be chance. A "
            "panel is noise if its best value is not significantly above chance; it does not count "
            "in the mean rank. The best methods of each setting follow, with 95% intervals; names "
            "in bold are not significantly different from the first.</p>",
            f"<nav><p>More: {' · '.join(links)}</p></nav>",
            *parts,
            "</main>",
        ]
    )
    return html.document("leaveout: results", body, STYLE, onload=ONLOAD)
