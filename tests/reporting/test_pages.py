from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from leaveout.errors import LeaveoutError
from leaveout.metrics import subgroups
from leaveout.reporting.brittleness import TABLE_COLUMNS
from leaveout.reporting.pages import PAGES, table_page

PANEL = """\
setting,method,params,value,ci_low,ci_high,ceiling,ceiling_low,ceiling_high,value_over_ceiling,n_dropped,dropped_why,\
as_published_value,published,difference,not_computed,seed
a,grad_dot,default,0.3201,0.2886,0.3518,0.9262,0.9185,0.9332,0.3457,0,,0.3028,0.33,-0.0272,,0
b,<odd>,damping=1,nan,nan,nan,nan,nan,nan,nan,0,,nan,<=0.02,,memory: 96 GB,0
b,flat,default,nan,nan,nan,0.9,0.8,0.95,nan,250,250 constant,-0.0002,,,,0
"""


def cells(page: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the headings shown first, and the texts of each row by heading."""
    assert page.count("<table>") == 1
    found = re.findall(r"<th scope='col'([^>]*)><button type='button'>(.*?)</button>", page)
    rows = [
        [unescape(text) for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page.split("<tbody>")[1])
    ]
    heads = [head for _, head in found]
    first = [head for kind, head in found if "more" not in kind]
    return first, [dict(zip(heads, row, strict=True)) for row in rows]


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "t.csv").write_text(PANEL)
    return table_page("lds", tmp_path / "t.csv")


def test_what_matters_comes_first_and_nothing_is_left_out(page: str) -> None:
    first, rows = cells(page)
    assert first == [
        *("method", "setting", "value", "95% interval", "of ceiling"),
        *("as published", "published", "difference", "no value, because"),
    ]
    assert rows[0] == {
        "method": "grad_dot", "setting": "a", "value": "0.320", "95% interval": "0.289 to 0.352",
        "of ceiling": "0.346", "as published": "0.303", "published": "0.33",
        "difference": "-0.027", "no value, because": "", "params": "default", "ceiling": "0.926",
        "ceiling interval": "0.918 to 0.933", "n dropped": "0", "dropped why": "", "seed": "0",
    }  # fmt: skip


def test_no_value_is_words(page: str) -> None:
    _, rows = cells(page)
    assert (rows[1]["value"], rows[1]["95% interval"]) == ("not computed", "not computed")
    assert rows[1]["no value, because"] == "memory: 96 GB"
    assert rows[2]["value"] == "undefined (250 constant)"
    assert rows[2]["as published"] == "0.000"  # neither -0.000 nor four decimals
    assert "nan" not in page.split("<tbody>")[1].split("</tbody>")[0]


def test_text_of_the_table_cannot_become_markup(page: str) -> None:
    assert "<odd>" not in page
    assert [row["method"] for row in cells(page)[1]] == ["grad_dot", "<odd>", "flat"]


def test_numbers_are_sorted_as_numbers(page: str) -> None:
    keys = [re.findall(r'data-sort="(.*?)"', row) for row in page.split("<tr>")[2:]]
    assert [row[:2] for row in keys] == [["0.3201", "0.2886"], ["", ""], ["", ""]]
    assert "0.02" in keys[1]  # a bound, by its number
    assert "<td>0.33</td>" in page  # what is shown is its own key


def test_the_page_opens_with_the_best_first_and_says_so(tmp_path: Path) -> None:
    head, *_ = PANEL.splitlines()
    lines = [
        ",".join([setting, method, "default", value, *[""] * (head.count(",") - 3)])
        for setting, method, value in (
            *(("a", "random", "0.01"), ("a", "none", "nan"), ("a", "low", "-0.2")),
            *(("a", "best", "0.9"), ("b", "random", "0.02"), ("b", "equal", "0.9")),
        )
    ]
    (tmp_path / "t.csv").write_text("\n".join([head, *lines]) + "\n")
    page = table_page("lds", tmp_path / "t.csv")
    order = [row["method"] for row in cells(page)[1]]
    assert order == ["best", "equal", "random", "random", "low", "none"]
    sorted_by = re.findall(r"<th scope='col'[^>]*aria-sort='descending'><button.*?>(.*?)<", page)
    assert sorted_by == ["value"]
    # a table of ranks, or an unknown one, stays as it is
    for name in ("rank", "brand_new"):
        page = table_page(name, tmp_path / "t.csv")
        assert "aria-sort='" not in page
        rows = re.findall(r"<tr>(.*?)</tr>", page.split("<tbody>")[1])
        assert [re.findall(r"random|none|low|best|equal", row)[0] for row in rows] == [
            *("random", "none", "low", "best", "random", "equal"),
        ]


def test_columns_are_aligned_and_hidden_by_their_places(page: str) -> None:
    kinds = re.findall(r"<th scope='col'([^>]*)>", page)
    numbers = [k for k, kind in enumerate(kinds, 1) if re.search(r"\bn\b", kind)]
    shown = sum("more" not in kind for kind in kinds)
    right = re.search(r"tr > :is\((.*)\) { text-align: right; }", page)
    assert right
    assert re.findall(r"\d+", right[1]) == [str(k) for k in numbers]
    assert f":not(:has(#all:checked)) tr > :nth-child(n+{shown + 1}) {{ display: none; }}" in page


def test_a_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"(src|href|url)\s*[=(]|@import|fetch\(", page)


def test_one_setting_is_said_once_and_any_table_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(PANEL.splitlines()[:2]) + "\n")
    page = table_page("lds", tmp_path / "t.csv")
    assert "Setting: a." in page
    assert cells(page)[0][:3] == ["method", "value", "95% interval"]
    (tmp_path / "u.csv").write_text("who,p_low,p_high,when\nx,1,2,now\n")
    first, rows = cells(table_page("brand_new", tmp_path / "u.csv"))
    assert first == ["who", "p interval", "when"]
    assert rows == [{"who": "x", "p interval": "1 to 2", "when": "now"}]


def test_of_ranks_and_costs_the_lowest_is_sorted_first(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("method,rank,value,wall_s,who\nx,1,2,3,y\n")
    page = table_page("new", tmp_path / "t.csv")
    heads = re.findall(r"<th scope='col'([^>]*)>.*?>(\w[^<]*)<", page)
    assert [head for kind, head in heads if "low" in kind] == ["rank", "wall s"]


def written(path: Path, columns: tuple[str, ...], *rows: dict[str, str]) -> Path:
    lines = [",".join(row.get(name, "") for name in columns) for row in rows]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


def test_removals_stand_beside_those_of_random_samples(tmp_path: Path) -> None:
    ours = {
        "setting": "a", "metric": "brittleness", "method": "grad_dot", "k": "50", "flipped": "0.24",
        "flipped_low": "0.143", "flipped_high": "0.374", "loss_change": "0.51234",
        "loss_change_low": "0.4", "loss_change_high": "0.6", "random_flipped": "0.02",
        "random_loss_change": "0.0014", "margin_change": "-1.5", "n_test": "50", "n_nan": "0",
    }  # fmt: skip
    none = ours | {"method": "magic", "flipped": "nan", "not_computed": "memory: 96 GB"}
    page = table_page("brittleness", written(tmp_path / "t.csv", TABLE_COLUMNS, ours, none))
    first, rows = cells(page)
    assert {name: rows[0][name] for name in first} == {
        "method": "grad_dot", "taken out": "50", "flipped": "0.24", "95% interval":
        "0.143 to 0.374", "flipped by random": "0.02", "change of loss": "0.512",
        "its 95% interval": "0.4 to 0.6", "change by random": "0.001", "no value, because": "",
    }  # fmt: skip
    assert rows[0]["margin change"] == "-1.5"
    assert (rows[1]["flipped"], rows[1]["no value, because"]) == ("not computed", "memory: 96 GB")


def test_subgroups_say_of_what(tmp_path: Path) -> None:
    row = {
        "setting": "a", "metric": "lds", "method": "grad_dot", "group_by": "class", "group": "7",
        "detail": "test samples of class 7", "value": "0.3", "ci_low": "0.2", "ci_high": "0.4",
        "n_test": "30",
    }  # fmt: skip
    third = row | {"metric": "loo", "setting": "b", "group_by": "confidence", "group": "low"}
    page = table_page("subgroups", written(tmp_path / "t.csv", subgroups.COLUMNS, row, third))
    first, rows = cells(page)
    assert [rows[1][name] for name in first] == [
        *("grad_dot", "b", "loo", "confidence", "low", "0.3", "0.2 to 0.4", "30"),
    ]  # fmt: skip
    assert rows[0]["detail"] == "test samples of class 7"


def test_pages_name_columns_that_their_tables_have() -> None:
    assert PAGES["brittleness"].first.keys() <= {*TABLE_COLUMNS}
    assert PAGES["subgroups"].first.keys() <= {*subgroups.COLUMNS}
    assert all(len({*page.first.values()}) == len(page.first) for page in PAGES.values())


def test_an_empty_table_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("setting,method,value\n")
    assert cells(table_page("lds", tmp_path / "t.csv"))[1] == []
    with pytest.raises(LeaveoutError, match=r"none\.csv: no such file"):
        table_page("lds", tmp_path / "none.csv")
