from __future__ import annotations

import csv
from xml.etree import ElementTree

import pytest

from leaveout.config.damping import COLUMNS as DAMPING_COLUMNS
from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import COLUMNS
from leaveout.reporting.dampings import damping_figure

GRID = {1.0: 0.6, 0.1: 0.8, 0.01: 0.7, 1e-5: 0.3}
METHODS = ("if_explicit", "if_cg", "if_ekfac")


def make(folder, settings=("toy",), metric="lds", ceiling=0.9, chosen="damping=0.01", methods=None):
    """Write dampings and metrics; on held-out samples 0.1 is best."""
    found = ([], [])
    for setting in settings:
        for shift, method in enumerate(methods or METHODS):
            dampings, rows = [], []
            for d, base in GRID.items():
                label, value = f"damping={d:g}", base - 0.05 * shift
                indicator = base if chosen else "nan"
                dampings.append(
                    (setting, metric, method, label, d, 0.02, 0.03, indicator, 9,
                     "yes" if label == chosen else "no")
                )  # fmt: skip
                rows += [
                    (setting, metric, method, label, truth, half, value, value - 0.02,
                     value + 0.02, ceiling, ceiling - 0.01, ceiling + 0.01, 9, 0, 0, 100, 2, 0, "",
                     "no", "")
                    for truth in ("mean", "single") for half in ("select", "report", "all")
                ]  # fmt: skip
            for k, (columns, content) in enumerate(((DAMPING_COLUMNS, dampings), (COLUMNS, rows))):
                found[k].append(folder / f"{setting}.{method}.{k}.csv")
                with found[k][-1].open("w", newline="") as handle:
                    csv.writer(handle).writerows([columns, *content])
    return found


@pytest.fixture
def drawn(tmp_path, saved):
    """Return a function that draws and gives the figure, as matplotlib has it."""

    def draw(metric="lds", **options):
        damping_figure(metric, *make(tmp_path, metric=metric, **options))
        return saved.pop()

    return draw


def test_svg_is_the_same_bytes_each_time_undated_with_text_as_text(tmp_path):
    files = make(tmp_path)
    content = damping_figure("lds", *files)
    assert content == damping_figure("lds", *files)
    assert "dc:date" not in content
    texts = [
        e.text for e in ElementTree.fromstring(content.encode()).iter() if e.tag.endswith("}text")
    ]
    for expected in (*METHODS, "toy", "damping", "chosen on held-out samples",
                     "chosen without retraining", "noise ceiling (bands: 95%)"):  # fmt: skip
        assert expected in texts


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
@pytest.mark.parametrize("settings", [("mnist_mlp_paired",), ("a", "b"), ("a", "b", "c")])
def test_no_two_labels_overlap_and_none_is_cut_off(drawn, check_labels, metric, settings):
    figure = drawn(metric=metric, settings=settings)
    _, named = check_labels(figure)
    assert named > 8


def test_points_and_marks_lie_where_the_files_say(drawn):
    axes = drawn(methods=("if_explicit",)).axes[0]
    assert axes.get_xscale() == "log"
    ceiling, = [line for line in axes.get_lines() if len(set(line.get_ydata())) == 1
                and len(line.get_xdata()) == 2]  # fmt: skip
    assert ceiling.get_ydata()[0] == 0.9
    curve, held_out, surrogate, expected = [
        line for line in axes.get_lines() if line is not ceiling
    ]
    assert list(curve.get_xdata()) == [1e-5, 0.01, 0.1, 1.0]
    assert list(curve.get_ydata()) == [0.3, 0.7, 0.8, 0.6]
    assert (list(held_out.get_xdata()), held_out.get_marker()) == ([0.1], "s")
    assert (list(surrogate.get_xdata()), surrogate.get_marker()) == ([0.01], "o")
    # scaled to the value at the choice, where the indicator is the value here
    assert list(expected.get_ydata()) == pytest.approx(list(curve.get_ydata()))


def test_without_a_ceiling_or_a_choice_the_rest_is_drawn(drawn):
    axes = drawn(methods=("if_explicit",), ceiling=float("nan"), chosen="").axes[0]
    assert [line.get_marker() for line in axes.get_lines()] == ["o", "s"]


def test_files_that_do_not_fit_are_named(tmp_path):
    dampings, metrics = make(tmp_path)
    with pytest.raises(LeaveoutError, match=r"not of the same methods: \[\('toy', 'if_ekfac'\)\]"):
        damping_figure("lds", dampings[:2], metrics)
    with pytest.raises(LeaveoutError, match="expected dampings for the loo of one method"):
        damping_figure("loo", dampings, metrics)
    with pytest.raises(LeaveoutError, match="of one method of one setting, once"):
        damping_figure("lds", [*dampings, dampings[0]], metrics)
    dampings[0].write_text(dampings[0].read_text().replace(",1.0,", ",one,"))
    with pytest.raises(LeaveoutError, match="column damping: 'one' is not a number"):
        damping_figure("lds", dampings, metrics)
