from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout.config import Setting
from leaveout.config.metric_names import PANELS
from leaveout.errors import LeaveoutError
from leaveout.reporting.brittleness import TABLE_COLUMNS
from leaveout.reporting.pages import ABOVE_PBRF, PAGES
from leaveout.reporting.ranks import RANK_COLUMNS, rank_table
from leaveout.reporting.start import MEANING, start_page
from leaveout.reporting.tables import PANEL_COLUMNS, csv_text, panel_table, read_csv
from leaveout.store.contents import save

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
    save(path, csv_text(PANEL_COLUMNS, [dict(zip(HEAD, row, strict=True)) for row in rows]))
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
    """Write a table of ranks in which these do not differ significantly from the best."""
    rows = []
    for name, metric in dict.fromkeys((s, m) for s, m, _ in ties):
        ordered = sorted(VALUES, key=lambda method: -VALUES[method])
        for rank, method in enumerate(ordered, 1):
            tied = "yes" if (name, metric, method) in ties else "no"
            row = {"setting": name, "metric": metric, "method": method, "rank": f"{rank}"}
            rows.append(row | {"tied_with_best": tied, "n_settings": "2", "n_methods": "6"})
    save(path, csv_text(RANK_COLUMNS, rows))
    return path


def cards(page: str) -> list[str]:
    return re.findall(r"<section>(.*?)</section>", page, re.S)


def named(card: str) -> list[str]:
    return re.findall(r"<li[^>]*><span>(.*?)</span>", card)


def text(markup: str) -> str:
    return re.sub(r"<[^>]+>", "", markup)


def test_the_best_come_first_below_the_ceiling(tmp_path: Path) -> None:
    page = start_page([setting("a")], {"lds": table(tmp_path / "lds.csv", "a")})
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
    assert "significantly" not in text(box)
    assert "class=tied" not in page


def test_a_value_above_the_ceiling_says_why(tmp_path: Path) -> None:
    note = "of one and the same run"
    high, low = (
        ("a", "best", 0.9, 0.8, 1.0, 0.5, 0.4, 0.6),
        ("b", "best", 0.4, 0.3, 0.5, 0.5, 0.4, 0.6),
    )
    rows = [dict(zip(HEAD, row, strict=True)) | {"ceiling_note": note} for row in (high, low)]
    save(tmp_path / "t.csv", csv_text(PANEL_COLUMNS, rows))
    settings = [setting("a"), setting("b")]
    page = start_page(settings, {"loo": tmp_path / "t.csv"})
    assert f"best</strong> 0.900 <small>(ceiling 0.500, {note})" in page
    assert "best</strong> 0.400 <small>(ceiling 0.500)" in page
    # of PBRF it is said in a sentence, once
    page = start_page(settings, {"pbrf": tmp_path / "t.csv"})
    assert "best</strong> 0.900 <small>(ceiling 0.500)</small><br>" in page
    assert page.count(ABOVE_PBRF) == 1
    # and without a note nothing follows the number
    rows[0]["ceiling_note"] = ""
    save(tmp_path / "t.csv", csv_text(PANEL_COLUMNS, rows))
    page = start_page(settings, {"loo": tmp_path / "t.csv"})
    assert "best</strong> 0.900 <small>(ceiling 0.500)</small></dd>" in page


def noisy(method: str, value: float, ceiling: object = 0.014) -> tuple[object, ...]:
    return ("a", method, value, value - 0.04, value + 0.04, ceiling, ceiling, ceiling)


@pytest.mark.parametrize(
    ("metric", "values", "noise"),
    [
        # .05 is 2.45 standard errors above 0: much for one method, little for the best of six
        ("loo", [0.05], False),
        ("loo", [0.05, 0.0, -0.01, 0.02, 0.01, 0.03], True),
        ("loo", [0.09, 0.0, -0.01, 0.02, 0.01, 0.03], False),
        ("loo", [-0.2, -0.3], True),
        ("auc", [0.5, 0.45], True),
        ("auc", [0.6, 0.45], False),
    ],
)
def test_nobody_wins_a_panel_that_is_noise(
    tmp_path: Path, metric: str, values: list[float], noise: bool
) -> None:
    path = panel(tmp_path / "t.csv", *(noisy(f"m{k}", value) for k, value in enumerate(values)))
    box, card = cards(start_page([setting("a")], {metric: path}))
    assert ("This panel is noise, so nobody wins" in box) == noise == ("panel is noise" in card)
    assert ("<strong>m0</strong>" in box) != noise
    if noise and metric == "loo":
        assert (
            f"m0 {values[0]:.3f} ({values[0] - 0.04:.3f} to {values[0] + 0.04:.3f}), is not "
            in (text(box))
        )
        assert "significantly above chance. The noise ceiling is 0.014." in text(box)


def test_noise_says_why_there_is_no_ceiling_and_has_no_bold_names(tmp_path: Path) -> None:
    rows = [
        dict(zip(HEAD, noisy(method, 0.01, "nan"), strict=True)) | {"ceiling_note": "one run"}
        for method in VALUES
    ]
    save(tmp_path / "t.csv", csv_text(PANEL_COLUMNS, rows))
    path = ranks(tmp_path / "r.csv", *(("a", "loo", method) for method in VALUES))
    page = start_page([setting("a")], {"loo": tmp_path / "t.csv"}, path)
    assert "There is no noise ceiling: one run." in text(page)
    assert "class=tied" not in page
    # a metric that never has a ceiling does not say so
    page = start_page([setting("a")], {"auc": tmp_path / "t.csv"})
    assert "nobody wins" in page
    assert "There is no noise ceiling" not in page


def test_the_share_of_top_samples_has_to_be_above_that_of_random_ones(tmp_path: Path) -> None:
    tables = {"loo_topk": table(tmp_path / "t.csv", "a", ceiling="nan,nan,nan")}
    for tied, noise in ((("best", "random"), True), (("best", "near"), False)):
        path = ranks(tmp_path / "r.csv", *(("a", "loo_topk", method) for method in tied))
        page = start_page([setting("a")], tables, path)
        assert ("is not significantly above that of random samples" in text(page)) == noise
    # where ranks say nothing, nothing is known of chance
    assert "nobody wins" not in start_page([setting("a")], tables)


def test_mean_ranks_are_the_tables_own_and_leave_out_noise(
    measured: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    values = {
        "one": {"a": 0.9, "b": 0.8, "c": 0.7, "only": 0.95},
        "two": {"a": 0.3, "b": 0.6, "c": 0.2},
        "three": {"a": 0.0, "b": 0.01, "c": 0.02},
    }
    made = {
        name: [
            measured(
                method,
                {"d=1": {("mean", "report"): value}},
                value + 0.001 * rng.normal(size=50),
                setting=name,
                ci_low=value - 0.1,
                ci_high=value + 0.1,
            )
            for method, value in methods.items()
        ]
        for name, methods in values.items()
    }
    (tmp_path / "published.csv").write_text("panel,setting,metric,method,value,source\n")

    def page(*names: str) -> tuple[list[dict[str, str]], str]:
        csvs, draws = zip(*(pair for name in names for pair in made[name]), strict=True)
        save(tmp_path / "t.csv", panel_table("lds", csvs, tmp_path / "published.csv"))
        save(tmp_path / "r.csv", rank_table(csvs, draws))
        rows = [r for r in read_csv(tmp_path / "r.csv", RANK_COLUMNS) if r["setting"] == "all"]
        return rows, start_page(
            map(setting, names), {"lds": tmp_path / "t.csv"}, tmp_path / "r.csv"
        )

    over, shown = page("one", "two")
    theirs = ", ".join(f"{r['method']} {float(r['rank']):g}" for r in over if r["rank"])
    assert theirs == "a 1.5, b 1.5, c 3"
    mean = f"<dt>mean rank (3 methods, 2 settings)</dt><dd>{theirs}"
    assert f"{mean}</dd>" in shown
    over, shown = page("one", "two", "three")
    assert [r["rank"] for r in over] != ["1.50", "1.50", "3.00", ""]  # the table counts noise
    assert f"{mean}<br><span class='faint'>without three: noise</span></dd>" in shown
    assert "mean rank (" not in page("one", "three")[1]


@pytest.mark.parametrize(
    ("tied", "said"),
    [
        (("best",), "significantly better than all others"),
        (("best", "near"), "not significantly different from near"),
        # all of them are counted and shown, however low their values
        (
            tuple(VALUES),
            "not significantly different from near, third, fourth and 2 more",
        ),
    ],
)
def test_what_is_not_significantly_different_is_said(
    tmp_path: Path, tied: tuple[str, ...], said: str
) -> None:
    page = start_page(
        [setting("a")],
        {"lds": table(tmp_path / "lds.csv", "a")},
        ranks(tmp_path / "r.csv", *(("a", "lds", method) for method in tied)),
    )
    box, card = cards(page)
    assert re.search(rf"<dd><strong>best</strong>.*<span class='faint'>{said}</span></dd>", box)
    assert set(re.findall(r"<li class=tied[^>]*><span>(.*?)</span>", card)) == set(tied)


def test_each_setting_has_its_own_values(tmp_path: Path) -> None:
    tables = {
        "lds": table(tmp_path / "lds.csv", "a", "b"),
        "auc": table(tmp_path / "auc.csv", "b", ceiling="nan,nan,nan"),
    }
    path = ranks(tmp_path / "r.csv", ("b", "lds", "best"), ("all", "lds", "best"))
    page = start_page([setting("b", name="mlp", hidden=[8]), setting("a")], tables, path)
    said = text(page)
    assert said.index("b: a perceptron on digits") < said.index("a: logistic regression")
    lds, flips, *rest = cards(page)
    assert re.findall(r"<dt>(.*?)</dt>", lds) == ["b", "a"]
    assert lds.count("significantly better than all others") == 1  # of the other one nobody knows
    assert re.findall(r"<dt>(.*?)</dt>", flips) == ["b"]
    assert "ceiling" not in flips  # which labels are wrong is known
    assert [re.findall(r"<h3>(.*?)</h3>", card)[0] for card in rest] == [
        "LDS", "Flipped labels", "LDS",
    ]  # fmt: skip
    assert [named(card)[0] for card in rest] == ["noise ceiling", "best", "noise ceiling"]


def test_settings_with_ranks_share_a_mean_rank(tmp_path: Path) -> None:
    tables = {"lds": table(tmp_path / "lds.csv", "a", "b")}
    path = ranks(tmp_path / "r.csv", ("b", "lds", "best"), ("a", "lds", "best"))
    lds, *_ = cards(start_page([setting("b"), setting("a")], tables, path))
    assert re.findall(r"<dt>(.*?)</dt>", lds) == ["b", "a", "mean rank (6 methods, 2 settings)"]
    assert "<dd>best 1, near 2, third 3</dd>" in lds


def test_flipped_labels_are_said_of_the_setting(tmp_path: Path) -> None:
    tables = {"auc": table(tmp_path / "auc.csv", "n", ceiling="nan,nan,nan")}
    page = start_page([setting("n", noise=0.1)], tables)
    said = (
        "n: logistic regression on digits, 600 training samples (10% of them with a flipped label) "
    )
    assert said in text(page)


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
            "a: 60% (50% to 70%) without the 50 samples named by y, 2% without 50 random ones.",
        ),
        (
            [removed("x", 50, 0.4, ""), removed("y", 50, 0.4, "")],
            "a: 40% (30% to 50%) without the 50 samples named by x, y.",
        ),
        ([removed("nil", 50, math.nan)], None),
        ([removed("x", 50, 0.4) | {"setting": "another"}], None),
    ],
)  # fmt: skip
def test_who_flips_most_is_a_line(
    tmp_path: Path, rows: list[dict[str, object]], said: str | None
) -> None:
    save(tmp_path / "b.csv", csv_text(TABLE_COLUMNS, rows))
    tables = {"lds": table(tmp_path / "lds.csv", "a")}
    page = start_page([setting("a")], tables, brittleness=tmp_path / "b.csv")
    assert ("Brittleness" in page) == (said is not None) == ("pages/brittleness.html" in page)
    assert said is None or said in text(page)


def test_links_lead_to_files_or_into_the_report(tmp_path: Path) -> None:
    page = start_page([setting("a")], {"lds": table(tmp_path / "lds.csv", "a")})
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
    page = start_page([setting("a")], {"loo": tmp_path / "t.csv"})
    assert "No method has a value." in page
    (tmp_path / "t.csv").write_text("setting,method,value,ci_low,ci_high\n")
    with pytest.raises(LeaveoutError, match="no column params, ceiling"):
        start_page([setting("a")], {"loo": tmp_path / "t.csv"})
