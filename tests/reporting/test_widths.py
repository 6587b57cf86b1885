from __future__ import annotations

import csv
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text

from leaveout.errors import LeaveoutError
from leaveout.metrics.width import COLUMNS
from leaveout.reporting.widths import width_figure

VALUES = {"if_explicit": 0.8, "grad_dot": 0.3, "if_explicit - grad_dot": 0.5}


def reached(ceiling, most, runs):
    """Return the ceiling at so many runs, by Spearman and Brown's rule from that at the most."""
    single = ceiling**2 / (most - (most - 1) * ceiling**2)
    return (runs * single / (1 + (runs - 1) * single)) ** 0.5


def make(path, runs=2, subsets=(10, 20, 50, 100), broken=(), ceiling=0.9, setting="toy"):
    rows = []
    for method, value in VALUES.items():
        for r in range(1, runs + 1):
            for m in subsets:
                width = (0.0001 + 0.4 / (m * r)) ** 0.5
                cell = dict.fromkeys(COLUMNS, "") | {
                    "setting": setting, "method": method, "kind": "measured",
                    "subsets": m, "runs": r, "trainings": m * r, "value": value,
                    "ci_low": value - width / 2, "ci_high": value + width / 2, "width": width,
                    "predicted_width": width,
                }  # fmt: skip
                if method in broken:
                    numbers = ("value", "ci_low", "ci_high", "width", "predicted_width")
                    cell |= dict.fromkeys(numbers, "nan")
                if "-" not in method:
                    top = reached(ceiling, runs, r) if runs > 1 else "nan"
                    cell |= dict.fromkeys(("ceiling", "ceiling_low", "ceiling_high"), top)
                rows.append(cell)
    rows.append(dict.fromkeys(COLUMNS, "") | {"kind": "needed", "method": "if_explicit"})
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def drawn(tmp_path, saved):
    """Return a function that draws a table and gives the figure, as matplotlib has it."""

    def draw(**options):
        width_figure(make(tmp_path / "width.csv", **options))
        return saved.pop()

    return draw


def test_svg_is_the_same_bytes_each_time_undated_with_text_as_text(tmp_path):
    table = make(tmp_path / "width.csv")
    content = width_figure(table)
    assert content == width_figure(table)
    assert "dc:date" not in content
    texts = [
        e.text for e in ElementTree.fromstring(content.encode()).iter() if e.tag.endswith("}text")
    ]
    for expected in (*VALUES, "toy: LDS", "difference, paired", "width of the 95% interval",
                     "ceiling 0.83 (1 run), 0.90 (2 runs)"):  # fmt: skip
        assert expected in texts


@pytest.mark.parametrize("runs", [1, 2, 5])
@pytest.mark.parametrize("ceiling", [0.85, 0.99])
def test_no_two_labels_overlap_and_none_is_cut_off(drawn, check_labels, runs, ceiling):
    figure = drawn(runs=runs, ceiling=ceiling, setting="mnist_mlp_paired")
    _, named = check_labels(figure, ticks=r"[−\d.]+")
    assert named > 9


def test_points_lie_where_the_table_says(drawn):
    figure = drawn(runs=3)
    left, middle, right, _ = figure.axes
    # two methods, the fewest and the most runs; the difference apart
    lines = [line for line in left.get_lines() if line.get_marker() in ("o", "s")]
    assert [list(line.get_ydata()) for line in lines] == [[v] * 4 for v in (0.8, 0.8, 0.3, 0.3)]
    triangles = [line for line in middle.get_lines() if line.get_marker() == "^"]
    assert [list(line.get_ydata()) for line in triangles] == [[0.5] * 4] * 2
    points = [line for line in right.get_lines() if line.get_linestyle() == "None"]
    assert len(points) == 6
    assert list(points[0].get_xdata()) == [10, 20, 50, 100]
    assert list(points[1].get_xdata()) == [30, 60, 150, 300]
    # the lines foreseen go through them (as made here) and level off at .01
    curves = [line for line in right.get_lines() if len(line.get_xdata()) == 100]
    assert len(curves) == 6
    assert curves[0].get_ydata()[0] == pytest.approx(points[0].get_ydata()[0], rel=1e-6)
    assert curves[0].get_ydata()[-1] == pytest.approx((0.0001 + 0.4 / 5000) ** 0.5, rel=1e-3)


def test_grey_print_tells_all_series_apart(drawn):
    marks = set()
    for axes in drawn().axes:
        for line in axes.get_lines():
            if line.get_marker() in ("o", "s", "^"):
                filled = line.get_markerfacecolor() != "white"
                marks.add((line.get_marker(), filled))
    assert len(marks) == 6


def test_ceiling_and_values_rise_with_the_runs_as_noise_falls(drawn):
    more = drawn(runs=3, ceiling=0.9).axes[3]
    foreseen = [line for line in more.get_lines() if len(line.get_xdata()) == 10]
    ceiling, first, second = (dict(zip(*line.get_data(), strict=True)) for line in foreseen)
    # the table's own at the runs there are, and by the rule of three runs taken three times over
    assert [ceiling[r] for r in (1, 2, 3)] == pytest.approx([reached(0.9, 3, r) for r in (1, 2, 3)])
    agreement = ceiling[3] ** 2
    assert ceiling[9] ** 2 == pytest.approx(3 * agreement / (1 + 2 * agreement))
    assert first[3] == pytest.approx(VALUES["if_explicit"])
    for line, name in ((first, "if_explicit"), (second, "grad_dot")):
        ratios = [line[r] / ceiling[r] for r in ceiling]
        assert ratios == pytest.approx([VALUES[name] / 0.9] * 10)
    measured = [line for line in more.get_lines() if line.get_marker() in ("o", "s")]
    assert [list(line.get_data()[1]) for line in measured] == [[0.8] * 3, [0.3] * 3]
    texts = {text.get_text() for text in more.texts}
    assert texts == {f"{1 - ceiling[r] ** 2:.0%}\nnoise" for r in (1, 3, 10)}


def test_without_a_second_run_no_ceiling_is_foreseen(drawn):
    more = drawn(runs=1).axes[3]
    assert "no noise ceiling" in more.texts[0].get_text()
    assert not more.get_lines()


def test_a_method_without_values_leaves_the_others(drawn):
    figure = drawn(broken=("grad_dot", "if_explicit - grad_dot"))
    curves = [line for line in figure.axes[2].get_lines() if len(line.get_xdata()) == 100]
    assert len(curves) == 2
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"no value of grad_dot", "no value of if_explicit - grad_dot"} <= texts
    drawn(broken=tuple(VALUES))
    drawn(subsets=(7,))  # one point, no line through it


def test_another_table_is_refused(tmp_path):
    table = tmp_path / "width.csv"
    with pytest.raises(LeaveoutError, match=r"width\.csv: no such file"):
        width_figure(table)
    with table.open("w", newline="") as handle:
        csv.writer(handle).writerow(COLUMNS)
    with pytest.raises(LeaveoutError, match="expected two methods and their difference"):
        width_figure(table)
