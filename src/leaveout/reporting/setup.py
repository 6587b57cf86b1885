"""The page of what made the results: versions, hardware, and the whole configuration.

Everything on it is read from the results themselves: the headers of artefacts name the code and
packages that made them, and the table of costs has the hyper-parameters and where they were scored.
The machine that writes the page is not mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml

from leaveout.config import Setting
from leaveout.config.defaults import resolved
from leaveout.reporting import html
from leaveout.reporting.tables import COST_COLUMNS, Row, read_csv
from leaveout.store import artefacts

SHOWN = 8
"""So many files made by the same code and packages are named."""

STYLE = """
pre { background: var(--band); padding: .6rem; overflow-x: auto; font-size: .9rem; }
summary { cursor: pointer; font-weight: 600; }
thead th { position: static; }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
"""


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in heads)
    lines = []
    for first, *others in rows:
        wide = ("wrap" if len(str(cell)) > 60 else "" for cell in others)
        cells = "".join(
            f"<td class='{kind}'>{escape(str(cell))}</td>"
            for kind, cell in zip(wide, others, strict=True)
        )
        lines.append(f"<tr><th scope='row'>{escape(str(first))}</th>{cells}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class='wide'><table>{body}</table></div>"


def _short(commit: str) -> str:
    """Return a commit as git abbreviates it, and whether there were changes beside it."""
    name, *dirty = commit.split("-")
    return "-".join([name[:12], *dirty])


def _made_by(paths: Sequence[Path]) -> str:
    """Return which code and packages made the artefacts: one row for all made by the same ones."""
    alike: dict[tuple[str, ...], list[str]] = {}
    packages: dict[str, None] = {}
    found = []
    for path in paths:
        meta = artefacts.read(path, leave=artefacts.ALL).meta
        if "versions" not in meta:  # draws of old
            continue
        packages |= dict.fromkeys(meta["versions"])
        found.append((path, meta))
    for path, meta in found:
        versions = (meta["versions"].get(name, "") for name in packages)
        alike.setdefault((_short(meta["commit"]), meta["device"], *versions), []).append(str(path))
    heads = ("commit", "device", *packages, "files")
    return _table(heads, [(*what, _some(names)) for what, names in alike.items()])


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _machines(costs: Sequence[Row]) -> str:
    jobs: dict[tuple[str, ...], int] = {}
    for row in costs:
        machine = (row["setting"], row["cpu"], row["device"], row["threads"])
        jobs[machine] = jobs.get(machine, 0) + 1
    heads = ("setting", "processor", "device", "threads a job", "jobs")
    return _table(heads, [(*machine, count) for machine, count in jobs.items()])


def _grids(costs: Sequence[Row]) -> str:
    grids: dict[tuple[str, str], dict[str, None]] = {}
    for row in costs:
        grids.setdefault((row["method"], row["setting"]), {})[row["params"].replace("+", ", ")] = (
            None
        )
    alike: dict[tuple[str, str], list[str]] = {}
    for (method, setting), params in grids.items():
        alike.setdefault((method, "; ".join(params)), []).append(setting)
    heads = ("method", "settings", "hyper-parameters tried")
    return _table(heads, [(m, ", ".join(names), params) for (m, params), names in alike.items()])


def setup_page(settings: Sequence[Setting], made: Sequence[Path], costs: Path) -> str:
    """Return the page of versions, hardware and configuration, as HTML.

    Args:
        settings: The settings shown, in order.
        made: Artefacts whose headers say what made them.
        costs: The table of costs.

    Raises:
        LeaveoutError: A file is missing or malformed.
    """
    rows = read_csv(costs, COST_COLUMNS)
    details = "<details open>" if len(settings) == 1 else "<details>"
    configured = (
        f"{details}<summary>{escape(setting.name)}</summary><pre>"
        + escape(yaml.safe_dump(resolved(setting), sort_keys=False, width=100))
        + "</pre></details>"
        for setting in settings
    )
    body = "\n".join(
        [
            "<h1>Versions, hardware and configuration</h1>",
            "<p>All of this is read from the results themselves: each file says what made it.</p>",
            "<h2>Code and packages</h2>",
            _made_by(made),
            "<h2>Hardware that computed the scores</h2>",
            _machines(rows),
            "<h2>Settings, defaults filled in</h2>",
            *configured,
            "<h2>Methods</h2>",
            _grids(rows),
        ]
    )
    return html.document("Versions, hardware and configuration", body, html.STYLE + STYLE)
