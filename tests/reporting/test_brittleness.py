from __future__ import annotations

import csv
import io

import pytest

from leaveout.errors import LeaveoutError
from leaveout.metrics.brittleness import COLUMNS
from leaveout.metrics.subgroups import COLUMNS as GROUPED
from leaveout.reporting.brittleness import TABLE_COLUMNS, brittleness_figure, brittleness_table
from leaveout.reporting.subgroups import subgroups_table

SIZES = (10, 20, 50, 100, 200)


def make(folder, settings=("toy",), methods=("random", "grad_dot", "if_explicit")):
    found = []
    for setting in settings:
        for m, method in enumerate(methods):
            rows = []
            for s, k in enumerate(SIZES):
                share, loss = m * s / 10, 0.1 * m * s
                rows.append(
                    (setting, "brittleness", method, "a=1", "lds", k, share, max(0, share - 0.1),
                     share + 0.1, loss, loss - 0.05, loss + 0.05, -loss, -loss - 0.05,
                     -loss + 0.05, 50, 0, 3, "")
                )  # fmt: skip
            found.append(folder / f"{setting}-{method}.csv")
            with found[-1].open("w", newline="") as handle:
                csv.writer(handle).writerows([COLUMNS, *rows])
    return found


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_each_row_has_that_of_random_samples_beside_it(tmp_path):
    rows = read(brittleness_table(make(tmp_path, ("one", "two"))))
    assert tuple(rows[0]) == TABLE_COLUMNS
    assert [(r["setting"], r["method"], r["k"]) for r in rows[:6]] == [
        *(("one", "random", str(k)) for k in SIZES), ("one", "grad_dot", "10")
    ]  # fmt: skip
    beside = {(r["setting"], r["k"]): r for r in rows if r["method"] == "random"}
    for row in rows:
        other = beside[row["setting"], row["k"]]
        for name in ("flipped", "flipped_high", "loss_change", "margin_change_low"):
            assert row[f"random_{name}"] == other[name]
    alone = read(brittleness_table(make(tmp_path, methods=("grad_dot",))))
    assert {row["random_flipped"] for row in alone} == {""}


def test_what_is_no_such_file_is_refused(tmp_path):
    csvs = make(tmp_path)
    with pytest.raises(LeaveoutError, match="toy, random is given twice"):
        brittleness_table([csvs[0], csvs[0]])
    with pytest.raises(LeaveoutError, match="no brittleness file given"):
        brittleness_figure([])
    csvs[0].write_text(csvs[0].read_text().replace(",brittleness,", ",lds,"))
    with pytest.raises(LeaveoutError, match="expected brittleness of one method"):
        brittleness_table(csvs)
    csvs[1].write_text(csvs[1].read_text().replace(",0.05,", ",x,", 1))
    with pytest.raises(LeaveoutError, match="is not a number"):
        brittleness_figure(csvs[1:2])


def test_the_picture_has_a_line_a_method_and_no_label_on_another(tmp_path, saved, check_labels):
    names = ("random", "grad_dot", "if_explicit", "trak_50", "knn_shapley")
    for settings in (("toy",), ("digits_lr", "mnist_lr")):
        text = brittleness_figure(make(tmp_path, settings, names))
        figure = saved[-1]
        assert len(figure.axes) == 2 * len(settings)
        for axes in figure.axes:
            assert len(axes.containers) == len(names)
        lines = [container[0] for container in figure.axes[0].containers]
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(looks) == len(names)
        assert lines[0].get_ydata().tolist() == [0] * 5
        assert lines[2].get_ydata().tolist() == [0, 0.2, 0.4, 0.6, 0.8]
        check_labels(figure, r"[−\d.%]+|\$.*\$")
        assert brittleness_figure(make(tmp_path, settings, names)) == text


def test_subgroups_are_put_together_as_they_are(tmp_path):
    row = ("toy", "lds", "m", "a=1", "class", "3", "x", ".5", ".4", ".6", "9", "0", "0", "")
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, value in zip(paths, (".5", "nan"), strict=True):
        with path.open("w", newline="") as handle:
            csv.writer(handle).writerows([GROUPED, (*row[:7], value, *row[8:])])
    assert [r["value"] for r in read(subgroups_table(paths))] == [".5", "nan"]
    paths[1].write_text(paths[1].read_text().replace(",nan,", ",none,"))
    with pytest.raises(LeaveoutError, match=r"b\.csv, column value: 'none' is not a number"):
        subgroups_table(paths)
