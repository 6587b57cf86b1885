from __future__ import annotations

import csv
from xml.etree import ElementTree

import pytest
from matplotlib.text import Annotation

from leaveout.errors import LeaveoutError
from leaveout.reporting.quality import Dot, front, quality_figure
from leaveout.reporting.tables import COST_COLUMNS, PANEL_COLUMNS

DOTS = {"grad_dot": (0.2, 0.3), "trak_1": (1.0, 0.5), "if_cg": (20.0, 0.8), "tracin": (5.0, 0.4),
        "mine": (3.0, 0.3)}  # fmt: skip
FRONT = ["grad_dot", "trak_1", "if_cg"]


def write(path, columns, rows):
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def make(folder, dots=DOTS, settings=("toy",), ceiling=0.9, what="score"):
    """Write the tables; a value of None is a method that was not computed."""
    rows, costs = [], []
    other = "score" if what == "self_influence" else "self_influence"
    for setting in settings:
        for method, (seconds, value) in dots.items():
            v = "nan" if value is None else value
            rows.append(
                dict.fromkeys(PANEL_COLUMNS, "") | {
                    "setting": setting, "method": method, "params": "damping=1", "value": v,
                    "ci_low": v if value is None else v - 0.02,
                    "ci_high": v if value is None else v + 0.03, "ceiling": ceiling,
                    "ceiling_low": ceiling - 0.01, "ceiling_high": ceiling + 0.01,
                }
            )  # fmt: skip
            # another point, and another kind of job, are not what is shown
            for params, kind, wall in (
                ("damping=1", what, seconds), ("damping=2", what, 99), ("damping=1", other, 77)
            ):  # fmt: skip
                costs.append(
                    dict.fromkeys(COST_COLUMNS, 1) | {"setting": setting, "method": method,
                    "params": params, "wall_s": wall, "what": kind}
                )  # fmt: skip
    return (
        write(folder / "table.csv", PANEL_COLUMNS, rows),
        write(folder / "cost.csv", (*COST_COLUMNS, "what"), costs),
    )


@pytest.fixture
def drawn(tmp_path, saved):
    """Return a function that draws and gives the figure, as matplotlib has it."""

    def draw(metric="lds", **options):
        quality_figure(metric, *make(tmp_path, **options))
        return saved.pop()

    return draw


def names(axes):
    return [t for t in axes.texts if isinstance(t, Annotation) and "ceiling" not in t.get_text()]


def test_the_front_is_what_no_other_beats_in_as_little_time():
    dots = [Dot(m, s, v, v, v) for m, (s, v) in DOTS.items()]
    assert [dot.method for dot in front(dots)] == FRONT
    assert front(dots[::-1]) == front(dots)
    # a naive reference: dominated by none
    best = {
        a.method
        for a in dots
        if not any(b.seconds <= a.seconds and b.value >= a.value and b != a for b in dots)
    }
    assert best == set(FRONT)
    twins = [Dot("a", 1, 0.5, 0, 1), Dot("b", 1, 0.5, 0, 1), Dot("c", 1, 0.6, 0, 1)]
    assert [dot.method for dot in front(twins)] == ["c"]
    assert [dot.method for dot in front(twins[:2])] == ["a"]
    assert front([]) == []


def test_dots_lie_at_time_and_value_and_the_front_is_marked(drawn):
    (axes,) = drawn().axes
    dots = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    assert {tuple(line.get_xydata()[0]) for line in dots} == set(DOTS.values())
    marked = [line for line in dots if line.get_markeredgewidth() > 0]
    assert {tuple(line.get_xydata()[0]) for line in marked} == {DOTS[m] for m in FRONT}
    (steps,) = [line for line in axes.get_lines() if line.get_drawstyle() == "steps-post"]
    assert [tuple(p) for p in steps.get_xydata()[:-1]] == [DOTS[m] for m in FRONT]
    assert {t.get_text(): t.get_fontweight() for t in names(axes)} == {
        m: "bold" if m in FRONT else "normal" for m in DOTS
    }
    assert {t.get_text(): t.xy for t in names(axes)} == DOTS
    assert axes.get_xscale() == "log"
    bars = sorted(tuple(b.get_segments()[0][:, 1]) for b in axes.collections)
    assert bars[0] == pytest.approx((0.28, 0.33))


def test_families_differ_by_more_than_colour(drawn):
    (axes,) = drawn().axes
    dots = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    looks = {(line.get_color(), line.get_marker()) for line in dots}
    assert len(looks) == len({mark for _, mark in looks}) == 4  # two of five are of one family


def test_many_methods_are_named_without_overlap(drawn, check_labels):
    crowd = {f"tracin_cp_{i}": (1 + 0.05 * (i % 5), 0.3 + 0.004 * i) for i in range(25)}
    figure = drawn(dots={**crowd, **DOTS}, settings=("toy", "another"))
    check_labels(figure)
    for axes in figure.axes:
        assert {t.get_text() for t in names(axes)} == {*crowd, *DOTS}


def test_the_same_tables_give_the_same_bytes(tmp_path):
    tables = make(tmp_path)
    content = quality_figure("lds", *tables)
    assert content == quality_figure("lds", *tables)
    assert "dc:date" not in content
    texts = [
        e.text for e in ElementTree.fromstring(content.encode()).iter() if e.tag.endswith("}text")
    ]
    assert {*DOTS, "noise ceiling: 0.900", "others", "influence functions"} <= {*texts}


def test_a_method_without_a_value_is_listed(drawn):
    (axes,) = drawn(dots={**DOTS, "if_explicit": (3.0, None)}).axes
    assert "without a value: if_explicit" in axes.get_xlabel()
    assert "if_explicit" not in {t.get_text() for t in names(axes)}
    (axes,) = drawn(dots={"if_explicit": (3.0, None)}).axes
    assert "no method has a value" in {t.get_text() for t in axes.texts}


def test_flips_are_found_at_the_cost_of_self_influence_and_have_no_ceiling(drawn):
    figure = drawn("auc", what="self_influence", ceiling=float("nan"))
    (axes,) = figure.axes
    dots = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    assert {tuple(line.get_xydata()[0]) for line in dots} == set(DOTS.values())
    said = {t.get_text() for t in figure.legends[0].get_texts()}
    assert not [text for text in said if "ceiling" in text]


def test_tables_that_do_not_fit_are_refused(tmp_path):
    table, costs = make(tmp_path)
    short = write(tmp_path / "short.csv", (*COST_COLUMNS, "what"), [])
    with pytest.raises(LeaveoutError, match=r"short\.csv: no cost of toy grad_dot damping=1"):
        quality_figure("lds", table, short)
    empty = write(tmp_path / "empty.csv", PANEL_COLUMNS, [])
    with pytest.raises(LeaveoutError, match=r"empty\.csv: it has no rows"):
        quality_figure("lds", empty, costs)
