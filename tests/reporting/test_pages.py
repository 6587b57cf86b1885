from __future__ import annotations

import re
from pathlib import Path

from leaveout.reporting.pages import panel_page

ROWS = """\
setting,method,params,value,ci_low,ci_high,ceiling,ceiling_low,ceiling_high,value_over_ceiling,n_test,n_dropped,\
as_published_value,as_published_ci_low,as_published_ci_high,published,difference,not_computed,\
surrogate_params,surrogate_value
a,grad_dot,default,0.3201,0.2886,0.3518,0.9262,0.9185,0.9332,0.3457,250,0,0.3028,0.2758,0.3282,0.33,-0.0272,,d=1,0.3
a,<odd>,default,,,,,,,,250,250,,,,<=0.02,,memory: 96 GB,,
"""


def test_a_page_shows_the_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    panel_page("lds", tmp_path / "t.csv", tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    shown = _rows(page)
    assert shown[1][:6] == ["a", "grad_dot", "default", "0.320", "0.289 to 0.352", "d=1"]
    assert shown[1][6:10] == ["0.300", "0.926", "0.918 to 0.933", "0.346"]
    assert shown[1][-5:] == ["0.303", "0.276 to 0.328", "0.33", "-0.027", ""]
    # what is not known is left empty, and text of the table cannot become markup
    assert shown[2] == [
        *("a", "&lt;odd&gt;", "default", *[""] * 7, "250", "250"),
        *("", "", "&lt;=0.02", "", "memory: 96 GB"),
    ]


def test_a_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    panel_page("lds", tmp_path / "t.csv", tmp_path / "t.html")
    assert not re.search(r"(src|href|url)\s*[=(]", (tmp_path / "t.html").read_text())


def _rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr.*?>(.*?)</tr>", page, re.S)
    return [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.S) for row in rows]
