from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.metric_names import PANELS
from leaveout.reporting.brittleness import TABLE_COLUMNS
from leaveout.reporting.pages import PAGES
from leaveout.reporting.ranks import RANK_COLUMNS
from leaveout.reporting.start import MEANING, start_page
from leaveout.reporting.tables import PANEL_COLUMNS, write_csv

HEAD = ("setting", "method", "value", "ci_low", "ci_high", "ceiling", "ceiling_low", "ceiling_high")
CEILING = "0.9262,0.9185,0.9332"
VALUES = {"random": 0.01, "best": 0.83, "near": 0.82, "third": 0.6, "low": -0.2, "fourth": 0.5}


def setting(name: str, /, noise: float | None = None, **model: object) -> Setting:
    data: dict[str, object] = {"name": "digits", "n_train": 600, "n_test": 120}
    return Setting.model_validate(
        {
            "name": name,
            "dataset": data | ({"label_noise": {"fraction": noise}} if noise else {}),
            "model": model or {"name": "linear"},
            "recipe": {"learning_rate": 0.1, "epochs": 10, "batch_size": 20},
        }
    )


def panel(path: Path, *rows: tuple[object, ...]) -> Path:
    write_csv(path, PANEL_COLUMNS, [dict(zip(HEAD, row, strict=True)) for row in rows])
    return path


def table(path: Path, *settings: str, ceiling: str = CEILING) -> Path:
    tops = ceiling.split(",")
    known = [
        (name, method, value, value - 0.05, value + 0.05, *tops)
        for name in settings
        for method, value in VALUES.items()
    ]
    return panel(path, *known, *((name, "none", *["nan"] * 6) for name in settings))


def ranks(path: Path, *ties: tuple[str, str, str]) -> Path:
    """Write a table of ranks in which these methods are not told apart from the best."""
    rows = []
    for name, metric in dict.fromkeys((s, m) for s, m, _ in ties):
        ordered = sorted(VALUES, key=lambda method: -VALUES[method])
        for rank, method in enumerate(ordered, 1):
            tied = "yes" if (name, metric, method) in ties else "no"
            row = {"setting": name, "metric": metric, "method": method, "rank": f"{rank}"}
            rows.append(row | {"tied_with_best": tied, "n_settings": "2", "n_methods": "6"})
    write_csv(path, RANK_COLUMNS, rows)
    return path


def cards(page: str) -> list[str]:
    return re.findall(r"<section>(.*?)</section>", page, re.S)


def named(card: str) -> list[str]:
    return re.findall(r"<li[^>]*><span>(.*?)</span>", card)


def text(markup: str) -> str:
    return re.sub(r"<[^>]+>", "", markup)


def test_the_best_come_first_below_the_ceiling(tmp_path: Path) -> None:
    start_page([setting("a")], {"lds": table(tmp_path / "lds.csv", "a")}, tmp_path / "start.html")
    page = (tmp_path / "start.html").read_text()
    assert "a: logistic regression on digits, 600 training samples and 120 test samples" in text(
        page
    )
    assert "7 methods of training-data attribution" in page
    box, card = cards(page)
    assert named(card) == ["noise ceiling", "best", "near", "third", "fourth", "random"]
    assert "0.926 (0.918 to 0.933)" in text(card)
    assert "0.830 (0.780 to 0.880)" in text(card)
    assert "--low: 78.0%; --high: 88.0%" in card
    assert "5 of 7 methods, 1 without a value" in card
    assert "best 0.830 (ceiling 0.926)" in text(box)
    # nothing is said about differences where nobody has looked
    assert "told apart" not in text(box)
    assert "class=tied" not in page


def test_a_value_above_the_ceiling_says_why(tmp_path: Path) -> None:
    note = "between two models"
    high, low = (
        ("a", "best", 0.9, 0.8, 1.0, 0.5, 0.4, 0.6),
        ("b", "best", 0.4, 0.3, 0.5, 0.5, 0.4, 0.6),
    )
    rows = [dict(zip(HEAD, row, strict=True)) | {"ceiling_note": note} for row in (high, low)]
    write_csv(tmp_path / "pbrf.csv", PANEL_COLUMNS, rows)
    out = tmp_path / "start.html"
    start_page([setting("a"), setting("b")], {"pbrf": tmp_path / "pbrf.csv"}, out)
    page = out.read_text()
    assert f"best</strong> 0.900 <small>(ceiling 0.500, {note})" in page
    assert "best</strong> 0.400 <small>(ceiling 0.500)" in page


@pytest.mark.parametrize(
    ("tied", "said"),
    [
        (("best",), "told apart from all others"),
        (("best", "near"), "not told apart from near"),
        # who is not told apart is counted, however low its value, and is shown
        (tuple(VALUES), "not told apart from near, third, fourth and 2 more"),
    ],
)
def test_what_is_not_told_apart_is_said(tmp_path: Path, tied: tuple[str, ...], said: str) -> None:
    start_page(
        [setting("a")],
        {"lds": table(tmp_path / "lds.csv", "a")},
        tmp_path / "start.html",
        ranks(tmp_path / "r.csv", *(("a", "lds", method) for method in tied)),
    )
    box, card = cards((tmp_path / "start.html").read_text())
    assert re.search(rf"<dd><strong>best</strong>.*<span class='faint'>{said}</span></dd>", box)
    assert set(re.findall(r"<li class=tied[^>]*><span>(.*?)</span>", card)) == set(tied)


def test_each_setting_has_its_own_values(tmp_path: Path) -> None:
    tables = {
        "lds": table(tmp_path / "lds.csv", "a", "b"),
        "auc": table(tmp_path / "auc.csv", "b", ceiling="nan,nan,nan"),
    }
    path = ranks(tmp_path / "r.csv", ("b", "lds", "best"), ("all", "lds", "best"))
    out = tmp_path / "start.html"
    start_page([setting("b", name="mlp", hidden=[8]), setting("a")], tables, out, path)
    page = out.read_text()
    said = text(page)
    assert said.index("b: a perceptron on digits") < said.index("a: logistic regression")
    lds, flips, *rest = cards(page)
    assert re.findall(r"<dt>(.*?)</dt>", lds) == ["b", "a", "mean rank (6 methods, 2 settings)"]
    assert lds.count("told apart from all others") == 1  # of the other one nobody knows
    assert "<dd>best 1, near 2, third 3</dd>" in lds
    assert re.findall(r"<dt>(.*?)</dt>", flips) == ["b"]
    assert "ceiling" not in flips  # which labels are wrong is known
    assert [re.findall(r"<h3>(.*?)</h3>", card)[0] for card in rest] == [
        "LDS", "Flipped labels", "LDS",
    ]  # fmt: skip
    assert [named(card)[0] for card in rest] == ["noise ceiling", "best", "noise ceiling"]


def test_flipped_labels_are_said_of_the_setting(tmp_path: Path) -> None:
    out = tmp_path / "start.html"
    tables = {"auc": table(tmp_path / "auc.csv", "n", ceiling="nan,nan,nan")}
    start_page([setting("n", noise=0.1)], tables, out)
    said = (
        "n: logistic regression on digits, 600 training samples (10% of them with a flipped label) "
    )
    assert said in text(out.read_text())


def removed(method: str, k: int, flipped: float, chance: str = "0.02") -> dict[str, object]:
    share = {"flipped": flipped, "flipped_low": flipped - 0.1, "flipped_high": flipped + 0.1}
    return {"setting": "a", "method": method, "k": k, "random_flipped": chance, **share}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            # by the most samples taken out, and never by the baseline
            [removed("x", 10, 0.9), removed("x", 50, 0.4), removed("y", 50, 0.6),
             removed("random", 50, 0.8), removed("nil", 50, math.nan)],
            "a: 60% (50% to 70%) without the 50 that y names, 2% without 50 at random.",
        ),
        (
            [removed("x", 50, 0.4, ""), removed("y", 50, 0.4, "")],
            "a: 40% (30% to 50%) without the 50 that x, y names.",
        ),
        ([removed("nil", 50, math.nan)], None),
        ([removed("x", 50, 0.4) | {"setting": "another"}], None),
    ],
)  # fmt: skip
def test_who_flips_most_is_a_line(
    tmp_path: Path, rows: list[dict[str, object]], said: str | None
) -> None:
    write_csv(tmp_path / "b.csv", TABLE_COLUMNS, rows)
    tables = {"lds": table(tmp_path / "lds.csv", "a")}
    out = tmp_path / "start.html"
    start_page([setting("a")], tables, out, brittleness=tmp_path / "b.csv")
    page = out.read_text()
    assert ("Brittleness" in page) == (said is not None) == ("pages/brittleness.html" in page)
    assert said is None or said in text(page)


def test_links_lead_to_files_or_into_the_report(tmp_path: Path) -> None:
    start_page([setting("a")], {"lds": table(tmp_path / "lds.csv", "a")}, tmp_path / "start.html")
    page = (tmp_path / "start.html").read_text()
    links = re.findall(r'<a href="\.\./(.*?)" onclick="(.*?)">', page)
    assert [path for path, _ in links] == [
        "pages/lds.html", "figures/lds.svg", "pages/cost.html", "pages/setup.html",
    ]  # fmt: skip
    assert all(code.count(f"'results/{path}'") == 3 for path, code in links)
    # it is put into a script of the report, which this would end
    assert "<script" not in page
    # and its style touches nothing there
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style
    rules = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", style[1]))
    assert all(".start" in rule for rule in rules), rules


def test_every_metric_is_explained() -> None:
    assert set(MEANING) == set(PANELS) <= set(PAGES)


def test_no_method_has_a_value(tmp_path: Path) -> None:
    panel(tmp_path / "t.csv", ("a", "none", *["nan"] * 6))
    start_page([setting("a")], {"loo": tmp_path / "t.csv"}, tmp_path / "start.html")
    assert "No method has a value." in (tmp_path / "start.html").read_text()
    (tmp_path / "t.csv").write_text("setting,method,value,ci_low,ci_high\n")
    with pytest.raises(LeaveoutError, match="no column params, ceiling"):
        start_page([setting("a")], {"loo": tmp_path / "t.csv"}, tmp_path / "start.html")
