"""A table as a page of its own, to be read in the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from leaveout import artefacts

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1a1a1a; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #444; }
td { border-bottom: 1px solid #ddd; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
tr:hover td { background: #f2f2f2; }
"""


def _interval(table: pd.DataFrame, prefix: str) -> pd.Series[str]:
    low, high = (table[f"{prefix}_{end}"].map(_number) for end in ("low", "high"))
    return low.where(low == "", low + " to " + high)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) and value == value else ""


def panel_page(metric: str, table_csv: Path, out: Path) -> None:
    """Write the table of a panel as one self-contained HTML page.

    Args:
        metric: Which panel.
        table_csv: From :func:`leaveout.reporting.tables.panel_table`.
        out: The page to write.
    """
    table = pd.read_csv(table_csv)
    shown = pd.DataFrame(
        {
            "setting": table["setting"],
            "method": table["method"],
            "hyper-parameters": table["params"],
            "value": table["value"].map(_number),
            "95% interval": _interval(table, "ci"),
            "damping chosen without retraining": table["surrogate_params"]
            .astype("string")
            .fillna(""),
            "its value": table["surrogate_value"].map(_number),
            "ceiling": table["ceiling"].map(_number),
            "ceiling's interval": _interval(table, "ceiling"),
            "of ceiling": table["value_over_ceiling"].map(_number),
            "training samples" if metric == "auc" else "test samples": table["n_test"],
            "dropped": table["n_dropped"],
            "as published": table["as_published_value"].map(_number),
            "its interval": _interval(table, "as_published_ci"),
            "published": table["published"].astype("string").fillna(""),
            "difference": table["difference"].map(_number),
            "no value, because": table["not_computed"].astype("string").fillna(""),
        }
    )
    page = (
        "<!doctype html>\n<html lang='en'>\n<head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{metric.upper()}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{metric.upper()}</h1>\n<div class='wide'>\n{shown.to_html(index=False, border=0)}\n"
        "</div>\n</body>\n</html>\n"
    )
    with artefacts.atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
