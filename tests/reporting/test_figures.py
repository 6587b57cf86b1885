from __future__ import annotations

import base64
import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import COLUMNS
from leaveout.reporting import figures
from leaveout.reporting.figures import grid_figure, panel_figure, svg
from leaveout.reporting.tables import PUBLISHED_COLUMNS, panel_table
from leaveout.store.contents import save

GRID = ("1", "0.1", "0.01", "0.005", "0.001", "0.0001", "1e-05")
METHODS = {"random": 0.0, "grad_dot": 0.31, "grad_cos": 0.19, "broken": float("nan"), "if_cg": 0.78}
METHODS |= {"if_explicit": float("nan")}


def make(folder, settings=("toy",), n_runs=2, ceiling=0.84, scale=1.0, metric="lds"):
    """Write metric CSVs and their table."""
    paths = []
    for setting in settings:
        for method, value in METHODS.items():
            labels = (
                [f"damping={d}+iterations=10" for d in GRID] if method == "if_cg" else ["default"]
            )
            rows = []
            for k, label in enumerate(labels):
                for truth in ("mean", "single"):
                    top = min(ceiling + 0.07 * (truth == "mean" and n_runs > 1), 1.0)  # or NaN
                    for half in ("select", "report", "all"):
                        v = scale * value * (1 - 0.1 * abs(k - 1)) + 0.03 * (truth == "mean")
                        rows.append(
                            (
                                *(setting, metric, method, label, truth, half),
                                *(v, v - 0.02, v + 0.02, top, top - 0.01, top + 0.01),
                                *(500, 500 if v != v else 0, 0, 100, n_runs, 0, "", "no"),
                                "memory: much" if method == "if_explicit" else "",
                            )
                        )
            paths.append(folder / f"{setting}.{method}.csv")
            with paths[-1].open("w", newline="") as handle:
                csv.writer(handle).writerows([COLUMNS, *rows])
    published = folder / "published.csv"
    with published.open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [PUBLISHED_COLUMNS]
            + [("toy_lds", "toy", "lds", m, v, "paper") for m, v in
               (("grad_dot", "0.33"), ("grad_cos", "<=0.02"), ("if_cg", "0.8"))]
        )  # fmt: skip
    table = folder / "table.csv"
    save(table, panel_table(metric, paths, published))
    return table, paths


def drawn(element, above=()):
    """Return what an SVG draws, in order: each part with all that holds for it, numbers cut."""
    own = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
    items = re.split(r";\s*", own.pop("style", ""))
    style = dict(re.split(r":\s*", item, maxsplit=1) for item in items if item)
    for key in ("width", "height", "viewBox", "version", "id"):
        own.pop(key, None)
    family = style.pop("font-family", None)
    above = (*above, *sorted((own | style).items()))
    above = tuple(item for item in above if not (family and item[0] == "font")) + (
        (("font", family),) if family else ()
    )
    name = element.tag.rpartition("}")[2]
    # a text of several parts has no words of its own
    words = (element.text or "").strip()
    if name in ("path", "use", "rect") or (name in ("text", "tspan") and words):
        said = tuple(
            (key, tuple(re.findall(r"([A-Za-z#]+)|(-?\d+(?:\.\d{1,2})?)\d*", value)))
            for key, value in sorted(above)
            # paths have no text, so that their fonts say nothing
            if name in ("text", "tspan") or key != "font"
        )
        yield name, said, words
    for child in element:
        yield from drawn(child, above)


def named(svg):
    """Return an SVG whose names are numbers, in the order of what they name."""
    used = {*re.findall(r"(?:href=\"|url\()#([^\")]+)", svg)}
    names = [name for name in re.findall(r' id="([^"]*)"', svg) if name in used]
    for k, name in enumerate(names):
        svg = re.sub(rf'(?<=[#"]){name}(?=[")])', f"n{k}n", svg)
    return svg


@pytest.mark.parametrize("draw", [panel_figure, grid_figure])
def test_a_compact_drawing_draws_the_same(tmp_path, monkeypatch, draw):
    table, paths = make(tmp_path)
    given = ("lds", table, paths) if draw is panel_figure else ("lds", paths)
    small = draw(*given)
    monkeypatch.setattr(figures, "_compact", lambda text: text)
    large = draw(*given)
    one, two = ([*drawn(ElementTree.fromstring(named(text).encode()))] for text in (small, large))
    assert len(one) > 50
    assert one == two
    assert len(small) < 0.85 * len(large)
    # whatever is referred to is there
    assert {*re.findall(r"(?:href=\"|url\()#(\w+)", small)} <= {*re.findall(r' id="(\w+)"', small)}


@pytest.mark.parametrize(("colours", "mode"), [("gray", "L"), ("viridis", "RGBA")])
def test_pictures_without_colours_have_none_and_the_same_pixels(monkeypatch, colours, mode):
    figure = Figure()
    figure.add_axes((0, 0, 1, 1)).imshow(np.arange(256.0).reshape(16, 16), cmap=colours)
    compact = svg(figure)
    monkeypatch.setattr(figures, "_compact", lambda text: text)
    small, large = (
        Image.open(io.BytesIO(base64.b64decode(*re.findall(r"base64,([^\"]+)\"", text))))
        for text in (compact, svg(figure))
    )
    assert (small.mode, large.mode) == (mode, "RGBA")
    np.testing.assert_array_equal(np.asarray(small.convert("RGBA")), np.asarray(large))


def test_svg_is_the_same_bytes_each_time_undated_with_text_as_text(tmp_path):
    table, paths = make(tmp_path)
    content = panel_figure("lds", table, paths)
    assert content == panel_figure("lds", table, paths)
    assert "dc:date" not in content
    texts = [
        e.text for e in ElementTree.fromstring(content.encode()).iter() if e.tag.endswith("}text")
    ]
    for expected in (
        *METHODS,
        "toy",
        "influence functions",
        "noise ceiling, 1 run: 0.84",
        "mean of 2: 0.91",
    ):
        assert expected in texts
    assert "no value: 500 NaN of 500 test samples" in texts
    assert "no value: memory" in texts
    assert "published: at most" in texts


def test_the_ceiling_of_pbrf_is_said_to_be_between_models(tmp_path):
    table, paths = make(tmp_path, n_runs=1, metric="pbrf")
    root = ElementTree.fromstring(panel_figure("pbrf", table, paths).encode())
    texts = [e.text for e in root.iter() if e.tag.endswith("}text")]
    assert "ceiling between two models: 0.84" in texts
    assert "ceiling between two models" in texts
    assert not [text for text in texts if text and "noise" in text]
    assert "published" not in texts  # nobody has


def test_flips_have_no_runs_no_ceiling_and_chance_at_a_half(tmp_path, saved):
    table, paths = make(tmp_path, n_runs=1, metric="auc", ceiling=float("nan"))
    root = ElementTree.fromstring(panel_figure("auc", table, paths).encode())
    texts = [e.text for e in root.iter() if e.tag.endswith("}text")]
    assert "no value: 500 NaN of 500 training samples" in texts
    assert "chosen and reported on all training samples" in texts
    assert not [text for text in texts if text and re.search("ceiling|test sample|run", text)]
    ((left,),) = [figure.axes for figure in saved]
    assert left.get_xlim()[1] > 1
    assert [line for line in left.lines if list(line.get_xdata()) == [0.5, 0.5]]


def test_the_figure_follows_the_data(tmp_path):
    table, paths = make(tmp_path)
    before = panel_figure("lds", table, paths)
    make(tmp_path, scale=0.9)
    assert panel_figure("lds", table, paths) != before


@pytest.mark.parametrize(("metric", "n_runs"), [("lds", 1), ("lds", 2), ("pbrf", 1), ("auc", 1)])
@pytest.mark.parametrize("ceiling", [0.08, 0.5, 0.97])
def test_no_two_labels_overlap_and_none_is_cut_off(
    tmp_path, saved, check_labels, metric, n_runs, ceiling
):
    table, paths = make(
        tmp_path,
        settings=("toy", "another_setting"),
        n_runs=n_runs,
        ceiling=ceiling,
        metric=metric,
    )
    panel_figure(metric, table, paths)
    (figure,) = saved
    count, _ = check_labels(figure)
    assert count > 30


def test_a_table_of_other_files_is_refused(tmp_path):
    table, paths = make(tmp_path)
    with pytest.raises(LeaveoutError, match=r"table\.csv: it was not made from"):
        panel_figure("lds", table, paths[1:])
    with pytest.raises(LeaveoutError, match=r"gone\.csv: no such file"):
        panel_figure("lds", tmp_path / "gone.csv", paths)


def test_methods_stand_below_their_families_with_their_own_values(tmp_path, saved):
    table, paths = make(tmp_path)
    panel_figure("lds", table, paths)
    (figure,) = saved
    (axes,) = figure.axes
    rows = {y: label.get_text() for y, label in enumerate(axes.get_yticklabels())}
    assert list(rows.values()) == [
        "baselines", "random", "gradient similarity", "grad_dot", "grad_cos",
        "influence functions", "if_cg", "if_explicit", "others", "broken",
    ]  # fmt: skip
    squares = {
        rows[round(float(line.get_ydata()[0]))]: line.get_xdata()[0]
        for line in axes.get_lines()
        if line.get_marker() == "s"
    }
    # held out are the means of both runs; of a grid, its best point
    assert squares == pytest.approx(
        {m: (1 if m == "if_cg" else 0.9) * v + 0.03 for m, v in METHODS.items() if v == v}
    )
    diamonds = [line for line in axes.get_lines() if line.get_marker() == "D"]
    assert {
        (rows[round(float(line.get_ydata()[0]))], line.get_xdata()[0]) for line in diamonds
    } == {("grad_dot", 0.33), ("if_cg", 0.8)}


def grids(tmp_path, saved, cells):
    """Draw grids: cells[method][label] is the value on the half used to choose."""
    paths = []
    for method, values in cells.items():
        rows = [
            ("toy", "lds", method, label, truth, half, v, v - 0.02, v + 0.01, 0.9, 0.89, 0.91,
             9, 0, 0, 100, 2, 0, "", "no", "")
            for label, value in values.items()
            for truth in ("mean", "single")
            for half, v in (("select", value), ("report", -value), ("all", 0.0))
        ]  # fmt: skip
        paths.append(tmp_path / f"{method}.csv")
        with paths[-1].open("w", newline="") as handle:
            csv.writer(handle).writerows([COLUMNS, *rows])
    grid_figure("lds", paths)
    return [axes for axes in saved.pop().axes if axes.get_title(loc="left")]


def test_every_grid_has_a_panel_and_every_choice_beside_it_too(tmp_path, saved):
    cells = {
        "if_ekfac": {
            "damping=1+fisher=true": 0.5, "damping=1+fisher=empirical": 0.4,
            "damping=0.01+fisher=true": 0.6, "damping=0.01+fisher=empirical": 0.7,
        },
        "grad_dot": {"default": 0.3},
        "magic": {"shuffle=True": 0.8, "shuffle=False": 0.75},
        "knn_shapley": {"k=100": 0.1, "k=5": 0.2, "k=1e+06": 0.15},
    }  # fmt: skip
    panels = {axes.get_title(loc="left"): axes for axes in grids(tmp_path, saved, cells)}
    # families in order, methods as given, nothing for one without a choice
    assert list(panels) == [
        "knn_shapley", "if_ekfac\nfisher=true", "if_ekfac\nfisher=empirical", "magic"
    ]  # fmt: skip
    drawn, rings = {}, {}
    for name, axes in panels.items():
        look = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
        rings[name] = [tuple(line.get_xydata()[0]) for line in look]
        curve = next(line for line in axes.get_lines() if line not in look)
        drawn[name] = [tuple(point) for point in curve.get_xydata()]
    assert drawn == {
        "knn_shapley": [(5, 0.2), (100, 0.1), (1e6, 0.15)],
        "if_ekfac\nfisher=true": [(0.01, 0.6), (1, 0.5)],
        "if_ekfac\nfisher=empirical": [(0.01, 0.7), (1, 0.4)],
        "magic": [(0, 0.8), (1, 0.75)],
    }
    assert rings == {
        "knn_shapley": [(5, 0.2)], "if_ekfac\nfisher=true": [],
        "if_ekfac\nfisher=empirical": [(0.01, 0.7)], "magic": [(0, 0.8)],
    }  # fmt: skip
    assert [t.get_text() for t in panels["magic"].get_xticklabels()] == ["True", "False"]
    assert panels["magic"].get_xlabel() == "shuffle"
    assert panels["knn_shapley"].get_xscale() == "log"
    assert {axes.get_ylim() for axes in panels.values()} == {panels["magic"].get_ylim()}


def test_where_nothing_can_be_chosen_no_grid_is_drawn(tmp_path, saved):
    with pytest.raises(LeaveoutError, match="no method of the lds files given"):
        grids(tmp_path, saved, {"grad_dot": {"default": 0.3}})


def test_no_two_labels_of_many_grids_overlap(tmp_path, saved, check_labels):
    many = {f"damping={d}+norm={n}": 0.5 for d in GRID for n in ("theta", "l")}
    cells = {"relatif": many, "tracin_cp_projected": {"projection=64": 0.1, "projection=256": 0.2}}
    (first, *_) = grids(tmp_path, saved, cells)
    check_labels(first.get_figure(root=True))
