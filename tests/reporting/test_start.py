from __future__ import annotations

import re
from pathlib import Path

import pytest

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.reporting.start import start_page

HEAD = "setting,method,value,ci_low,ci_high,ceiling,ceiling_low,ceiling_high\n"
CEILING = "0.9262,0.9185,0.9332"
VALUES = {"random": 0.01, "best": 0.83, "near": 0.82, "third": 0.6, "low": -0.2, "fourth": 0.5}


def setting(name: str, /, **model: object) -> Setting:
    return Setting.model_validate(
        {
            "name": name,
            "dataset": {"name": "digits", "n_train": 600, "n_test": 120},
            "model": model or {"name": "linear"},
            "recipe": {"learning_rate": 0.1, "epochs": 10, "batch_size": 20},
        }
    )


def table(path: Path, *settings: str, ceiling: str = CEILING) -> Path:
    rows = [
        f"{name},{method},{value},{value - 0.05},{value + 0.05},{ceiling}\n"
        for name in settings
        for method, value in VALUES.items()
    ]
    rows += [f"{name},none,nan,nan,nan,nan,nan,nan\n" for name in settings]
    path.write_text(HEAD + "".join(rows))
    return path


def ranks(path: Path, *ties: tuple[str, str, str]) -> Path:
    """Write a table of ranks in which these methods are not told apart from the best."""
    lines = ["setting,metric,method,rank,tied_with_best\n"]
    for name, metric in dict.fromkeys((s, m) for s, m, _ in ties):
        ordered = sorted(VALUES, key=lambda method: -VALUES[method])
        for rank, method in enumerate(ordered, 1):
            tied = "yes" if (name, metric, method) in ties else "no"
            lines.append(f"{name},{metric},{method},{rank},{tied}\n")
    path.write_text("".join(lines))
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
    assert "a: logistic regression on digits, 600 training and 120 test samples" in page
    assert "7 methods of training-data attribution" in page
    (card,) = cards(page)
    assert named(card) == ["noise ceiling", "best", "near", "third", "fourth", "random"]
    assert "0.926 (0.918 to 0.933)" in text(card)
    assert "0.830 (0.780 to 0.880)" in text(card)
    assert "--low: 78.0%; --high: 88.0%" in card
    assert "all 7 methods, 1 without a value" in card
    # nothing is said about differences where nobody has looked
    assert "best has the highest value." in text(card)
    assert "told apart" not in page


@pytest.mark.parametrize(
    ("tied", "said"),
    [
        (("best",), "best is best, told apart from every other method."),
        (("best", "near"), "best is best, but not told apart from near."),
        # who is not told apart is named, however low its value, and is shown
        (tuple(VALUES), "best is best, but not told apart from near, third, fourth, random, low."),
    ],
)
def test_what_is_not_told_apart_is_said(tmp_path: Path, tied: tuple[str, ...], said: str) -> None:
    start_page(
        [setting("a")],
        {"lds": table(tmp_path / "lds.csv", "a")},
        tmp_path / "start.html",
        ranks(tmp_path / "r.csv", *(("a", "lds", method) for method in tied)),
    )
    (card,) = cards((tmp_path / "start.html").read_text())
    assert said in text(card)
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
    assert page.index("b: a perceptron on digits") < page.index("a: logistic regression")
    lds, flips, other, over_all = cards(page)
    assert "told apart from every other" in lds
    assert "told apart" not in other
    assert "noise ceiling" not in flips  # which labels are wrong is known
    assert "mean rank" in over_all
    assert named(over_all)[:2] == ["best", "near"]


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


def test_no_method_has_a_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEAD + "a,none,nan,nan,nan,nan,nan,nan\n")
    start_page([setting("a")], {"loo": tmp_path / "t.csv"}, tmp_path / "start.html")
    assert "No method has a value." in (tmp_path / "start.html").read_text()
    (tmp_path / "t.csv").write_text("setting,method,value,ci_low,ci_high\n")
    with pytest.raises(LeaveoutError, match="no column ceiling"):
        start_page([setting("a")], {"loo": tmp_path / "t.csv"}, tmp_path / "start.html")
