from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from matplotlib.patches import Polygon, Rectangle

from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import COLUMNS
from leaveout.reporting.examples import (
    SIDE,
    TOP,
    chosen_tests,
    examples_figure,
    extremes,
    losses,
    scaled,
    self_influence_figure,
)
from leaveout.reporting.sheet import SIZE
from leaveout.store import artefacts

TRAIN, TEST, SIDE_PIXELS = 40, 5, 8
TRAIN_ID = np.random.default_rng(1).permutation(TRAIN) + 100
TEST_ID = np.array([7, 3, 5, 1, 9])
LOSS = np.array([0.1, 3.0, 0.7, 0.2, 0.9])
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 17, (TRAIN + TEST, SIDE_PIXELS, SIDE_PIXELS)).astype(np.float32)
LABELS = np.arange(TRAIN) % 3
FLIPPED = {int(TRAIN_ID[4]): 2, int(TRAIN_ID[11]): 1}
SCORE = {m: RNG.normal(size=(TRAIN, TEST)).astype(np.float32) for m in ("one", "other")}
RISE = RNG.normal(size=(TRAIN, TEST)).astype(np.float32)


def data(path, flipped=FLIPPED):
    tensors = {
        "train_inputs": IMAGES[:TRAIN], "train_labels": LABELS, "train_id": TRAIN_ID,
        "test_inputs": IMAGES[TRAIN:], "test_labels": np.arange(TEST) % 3, "test_id": TEST_ID,
        "flipped_id": np.array([*flipped], np.int64),
        "original_labels": np.array([*flipped.values()], np.int64),
    }  # fmt: skip
    image = ("height", "width")
    dims = {
        "train_inputs": ("train", *image), "train_labels": ("train",), "train_id": ("train",),
        "test_inputs": ("test", *image), "test_labels": ("test",), "test_id": ("test",),
        "flipped_id": ("flipped",), "original_labels": ("flipped",),
    }  # fmt: skip
    artefacts.write(path, "data", tensors, dims, {"pixels": {"full_scale": 16}})
    return path


def loo(path, removed=slice(None)):
    """Write a leave-one-out truth, its test samples in another order than the data's."""
    ids = TRAIN_ID[removed]
    full = LOSS[None, ::-1].astype(np.float32)
    target = (RISE[removed] + LOSS)[:, None, ::-1].astype(np.float32)
    tensors = {"target": target, "full_target": full, "removed_id": ids,
               "test_id": TEST_ID[::-1].copy()}  # fmt: skip
    dims = {"target": ("removed", "run", "test"), "full_target": ("run", "test"),
            "removed_id": ("removed",), "test_id": ("test",)}  # fmt: skip
    artefacts.write(path, "loo", tensors, dims, {})
    return path


def score(path, method, values, label="d=1", kind="score", setting="toy", **meta):
    meta = {"setting": setting, "method": method, "label": label, **meta}
    if kind == "score":
        tensors = {"score": values, "train_id": TRAIN_ID, "test_id": TEST_ID}
        dims = {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)}
    else:
        tensors = {"self_influence": values, "train_id": TRAIN_ID}
        dims = dict.fromkeys(tensors, ("train",))
    artefacts.write(path, kind, tensors, dims, meta)
    return path


def metric_csv(path, method, values, metric="lds"):
    """Write a metric; on the half used to choose it is values[label], on the other the opposite."""
    rows = [
        ("toy", metric, method, label, truth, half, v, v, v, 0.9, 0.9, 0.9, 5, 0, 0, 100, 2, 0, "",
         "no", "")
        for label, value in values.items()
        for truth in ("mean", "single")
        for half, v in (("select", value), ("report", -value), ("all", 0))
    ]  # fmt: skip
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([COLUMNS, *rows])
    return path


def files(folder, **more):
    csvs = [metric_csv(folder / f"{m}.csv", m, {"d=1": 0.5, "d=2": 0.1}) for m in SCORE]
    scores = [
        score(folder / f"{m}{label}.safetensors", m, values, label)
        for m, right in SCORE.items()
        for label, values in (("d=2", -right), ("d=1", right))
    ]
    return data(folder / "data.safetensors", **more), csvs, scores


@pytest.fixture
def drawn(tmp_path, saved):
    """Return a function that draws the examples and gives the only axes."""

    def draw(removed=slice(None), **more):
        of, csvs, scores = files(tmp_path, **more)
        truth = loo(tmp_path / "loo.safetensors", removed)
        examples_figure("toy", of, truth, csvs, scores)
        (axes,) = saved.pop().axes
        return axes

    return draw


def thumbnails(axes):
    """Return (frame, pixels) of every picture, from the upper left, row by row."""
    (image,) = axes.images
    canvas, (left, right, bottom, _) = np.asarray(image.get_array()), image.get_extent()
    frames = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_width() > SIZE - 0.01]
    frames.sort(key=lambda p: (round(p.get_y(), 3), p.get_x()))
    found = []
    for frame in frames:
        step = canvas.shape[1] / (right - left)
        y, x = round(frame.get_y() * step), round(frame.get_x() * step)
        large = canvas[y : y + round(SIZE * step), x : x + round(SIZE * step)]
        assert large.shape[0] % SIDE_PIXELS == 0
        times = large.shape[0] // SIDE_PIXELS
        small = large[::times, ::times]
        np.testing.assert_array_equal(large, np.kron(small, np.ones((times, times))))
        found.append((frame, small))
    assert bottom >= frames[-1].get_y() + SIZE
    return found


def expected(tests, strips):
    """Return the training samples' places that ought to be shown, naively."""
    shown = []
    for test in tests:
        for values in strips:
            order = sorted(range(TRAIN), key=lambda i, v=values[:, test]: (-v[i], TRAIN_ID[i]))
            shown.append((test, values, [*order[:SIDE], *order[::-1][:SIDE]]))
    return shown


def test_pictures_labels_and_scores_are_those_of_the_extremes(drawn):
    axes = drawn()
    # the median loss, the one nearest to ln 2, and the highest; by place in the data
    shown = expected([2, 1], [RISE, SCORE["one"], SCORE["other"]])
    # .7 is both the median and nearest to ln 2: it is shown once
    pictures = thumbnails(axes)
    words = {(round(t.get_position()[0], 3), round(t.get_position()[1], 3)): t for t in axes.texts}
    per_test = 1 + 3 * 2 * SIDE
    assert len(pictures) == 2 * per_test
    for k, test in enumerate((2, 1)):
        np.testing.assert_array_equal(pictures[k * per_test][1], IMAGES[TRAIN + test])
    rest = [p for i, p in enumerate(pictures) if i % per_test]
    for k, (test, values, places) in enumerate(shown):
        row = rest[k * 2 * SIDE : (k + 1) * 2 * SIDE]
        for (frame, pixels), place in zip(row, places, strict=True):
            np.testing.assert_array_equal(pixels, IMAGES[place])
            same = LABELS[place] == test % 3
            assert (frame.get_linestyle() == "-") == same
            x, y = frame.get_x() + SIZE / 2, frame.get_y() + SIZE
            below = [
                words[round(x, 3), round(y + down, 3)].get_text() for down in (0.03, 0.03 + 0.125)
            ]
            was = FLIPPED.get(int(TRAIN_ID[place]))
            assert below[0] == (f"{LABELS[place]}" if was is None else f"{was}→{LABELS[place]}")
            value = float(below[1].replace("−", "-"))
            assert value == pytest.approx(values[place, test], abs=0.006)
    flips = sum(int(TRAIN_ID[i]) in FLIPPED for _, _, places in shown for i in places)
    corners = [p for p in axes.patches if isinstance(p, Polygon)]
    assert len(corners) == flips + 1  # and one in the legend
    assert flips > 0


def test_each_method_says_how_many_of_its_samples_are_the_truths(drawn):
    shown = expected([2, 1], [RISE, SCORE["one"], SCORE["other"]])
    said = [t.get_text() for t in drawn().texts if t.get_text().endswith("are the truth's")]
    found = []
    for k in (0, 3):
        true = shown[k][2]
        for _, _, places in shown[k + 1 : k + 3]:
            both = {*true[:SIDE]} & {*places[:SIDE]}, {*true[SIDE:]} & {*places[SIDE:]}
            found.append(f"{sum(map(len, both))} of {2 * SIDE} are the truth's")
    assert said == found


def test_of_samples_left_out_only_those_are_shown_and_said(drawn):
    axes = drawn(removed=slice(0, 6), flipped={})
    texts = [t.get_text() for t in axes.texts]
    assert texts.count("of 6 left out") == 2
    first = thumbnails(axes)[1:7]  # three supporters and three opponents
    assert {tuple(p.ravel()) for _, p in first} == {tuple(p.ravel()) for p in IMAGES[:6]}
    assert not [text for text in texts if "flipped" in text]
    assert not [p for p in axes.patches if isinstance(p, Polygon)]


def test_no_two_labels_overlap_and_none_is_cut_off(drawn, check_labels):
    count, _ = check_labels(drawn().get_figure(), ticks="")
    assert count > 100


def test_the_same_files_give_the_same_bytes_and_small_ones(tmp_path):
    of, csvs, scores = files(tmp_path)
    truth = loo(tmp_path / "loo.safetensors")
    content = examples_figure("toy", of, truth, csvs, scores)
    assert content == examples_figure("toy", of, truth, csvs, scores)
    assert "dc:date" not in content
    assert content.count("data:image/png;base64") == 1
    assert 'href="http' not in content
    assert len(content) < 300_000


def test_what_cannot_be_ranked_is_said(tmp_path, saved):
    of, csvs, scores = files(tmp_path)
    holes = SCORE["one"].copy()
    holes[:30] = math.nan
    score(tmp_path / "oned=1.safetensors", "one", holes)
    why = {"not_computed": {"reason": "memory", "detail": "much"}}
    score(tmp_path / "otherd=1.safetensors", "other", SCORE["other"], **why)
    truth = loo(tmp_path / "loo.safetensors")
    examples_figure("toy", of, truth, csvs, scores)
    (axes,) = saved.pop().axes
    texts = [t.get_text() for t in axes.texts]
    assert texts.count("30 NaN") == 2
    assert texts.count("no scores: memory") == 2


def test_losses_come_from_whole_models_or_else_from_all_subsets(tmp_path):
    whole = artefacts.read(loo(tmp_path / "loo.safetensors"), leave=["target"])
    loss, whose = losses(whole)
    np.testing.assert_allclose(loss, LOSS[::-1], rtol=1e-6)
    assert whose == "the model"
    target = RNG.random((6, 2, TEST)).astype(np.float32)
    artefacts.write(
        tmp_path / "lds.safetensors", "lds", {"target": target},
        {"target": ("subset", "run", "test")}, {},
    )  # fmt: skip
    loss, whose = losses(artefacts.read(tmp_path / "lds.safetensors", leave=["target"]))
    np.testing.assert_allclose(loss, target.mean(axis=(0, 1), dtype=np.float64), rtol=1e-6)
    assert "on average" in whose


def test_tests_are_chosen_by_loss_then_id_whatever_their_order():
    loss = np.array([0.1, 0.05, 2.0, 0.69, 2.0, 0.2, 0.1])
    ids = np.array([30, 10, 21, 50, 20, 60, 29])
    places = [place for place, _ in chosen_tests(loss, ids)]
    assert [int(ids[p]) for p in places] == [60, 50, 20]
    order = np.random.default_rng(3).permutation(len(ids))
    again = [place for place, _ in chosen_tests(loss[order], ids[order])]
    assert [int(ids[order][p]) for p in again] == [60, 50, 20]
    loss[2:5] = (math.nan, math.inf, math.nan)
    assert {int(ids[p]) for p, _ in chosen_tests(loss, ids)} == {29, 60}
    assert chosen_tests(np.full(3, math.nan), np.arange(3)) == []


def test_extremes_are_apart_and_of_equals_the_lowest_id_comes_first():
    values = np.array([1.0, 5.0, 5.0, math.nan, -2.0, 0.0])
    ids = np.array([6, 5, 4, 3, 2, 1])
    high, low = extremes(values, ids, 2)
    assert [ids[high].tolist(), ids[low].tolist()] == [[4, 5], [2, 1]]
    high, low = extremes(values, ids, 9)
    assert len(high) == len(low) == 2
    high, low = extremes(np.zeros(6), ids, 2)
    assert [ids[high].tolist(), ids[low].tolist()] == [[1, 2], [3, 4]]
    assert [len(part) for part in extremes(np.full(3, math.nan), ids[:3], 2)] == [0, 0]


def test_scores_are_short_and_their_power_of_ten_is_said():
    assert scaled(np.array([0.31, -0.048])) == (["+0.31", "−0.05"], "")
    assert scaled(np.array([8.04e-3, -9.1e-4])) == (["+8.0", "−0.9"], "×10⁻³")
    assert scaled(np.array([12.0, -941.0])) == (["+0.1", "−9.4"], "×10²")
    assert scaled(np.array([16.72, -3.0])) == (["+16.7", "−3.0"], "")
    assert scaled(np.zeros(2)) == (["+0.00", "+0.00"], "")
    assert scaled(np.zeros(0)) == ([], "")


def test_files_that_do_not_fit_are_refused(tmp_path):
    of, csvs, scores = files(tmp_path)
    truth = loo(tmp_path / "loo.safetensors")
    with pytest.raises(LeaveoutError, match="no scores were given of other at d=1"):
        examples_figure("toy", of, truth, csvs, scores[:2])
    with pytest.raises(LeaveoutError, match="it is of toy, not of else"):
        examples_figure("else", of, truth, csvs, scores)
    less = {"score": SCORE["one"][:, :2], "train_id": TRAIN_ID, "test_id": TEST_ID[:2]}
    dims = {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)}
    meta = {"setting": "toy", "method": "one", "label": "d=1"}
    artefacts.write(tmp_path / "oned=1.safetensors", "score", less, dims, meta)
    with pytest.raises(LeaveoutError, match="it has no test sample 5, which"):
        examples_figure("toy", of, truth, csvs, scores)


def test_the_most_self_influential_are_shown_in_order_with_what_was_flipped(tmp_path, saved):
    values = RNG.permutation(TRAIN).astype(np.float32)
    values[3] = math.nan
    csvs = [metric_csv(tmp_path / "one.csv", "one", {"d=1": 0.2, "d=2": 0.9}, "auc")]
    kind = "self_influence"
    scores = [
        score(tmp_path / "a.safetensors", "one", -values, "d=1", kind),
        score(tmp_path / "b.safetensors", "one", values, "d=2", kind),
    ]
    of = data(tmp_path / "data.safetensors")
    content = self_influence_figure("toy", of, csvs, scores)
    assert content == self_influence_figure("toy", of, csvs, scores)
    (axes,) = saved.pop().axes
    order = sorted((i for i in range(TRAIN) if i != 3), key=lambda i: -values[i])[:TOP]
    pictures = thumbnails(axes)
    for (_, pixels), place in zip(pictures, order, strict=True):
        np.testing.assert_array_equal(pixels, IMAGES[place])
    found = [i for i in order if int(TRAIN_ID[i]) in FLIPPED]
    texts = [t.get_text() for t in axes.texts]
    assert f"{len(found)} of these {TOP} are flipped, 1 NaN" in texts
    thick = [frame.get_linewidth() > 1 for frame, _ in pictures]
    assert thick == [i in found for i in order]
    assert len([p for p in axes.patches if isinstance(p, Polygon)]) == len(found) + 1
    assert "2 of 40 labels (5%) are flipped" in texts[1]


COLOURS = np.random.default_rng(2).integers(0, 200, (TRAIN + TEST, 8, 8, 3)).astype(np.uint8)
SHOWN = {
    "colour": COLOURS,
    "grey": COLOURS[..., 0],
    "floats": COLOURS / np.float32(255),
    "texts": [f"text{k}" for k in range(TRAIN + TEST)],
    "ids": None,
}


@pytest.mark.parametrize("kind", SHOWN)
@pytest.mark.parametrize("labelled", [True, False])
def test_samples_that_are_no_pixels(tmp_path, saved, kind, labelled):
    of, csvs, scores = files(tmp_path)
    shown, facts = SHOWN[kind], {"form": {}}
    tensors = {
        "train_inputs": np.zeros((TRAIN, 3)), "train_id": TRAIN_ID,
        "test_inputs": np.zeros((TEST, 3)), "test_id": TEST_ID,
    }  # fmt: skip
    if labelled:
        tensors |= {"train_labels": LABELS, "test_labels": np.arange(TEST) % 3}
    for part, rows in (("train", slice(TRAIN)), ("test", slice(TRAIN, None))):
        if kind == "texts":
            facts.setdefault("show", {})[part] = shown[rows]
        elif shown is not None:
            tensors[f"{part}_show"] = shown[rows]
    dims = {
        n: (n.split("_")[0], *(f"{n}{k}" for k in range(1, a.ndim))) for n, a in tensors.items()
    }
    artefacts.write(of, "data", tensors, dims, facts)
    examples_figure("toy", of, loo(tmp_path / "loo.safetensors"), csvs, scores, likely=False)
    (axes,) = saved.pop().axes
    words = [text.get_text() for text in axes.texts]
    test = int(np.argsort(LOSS, kind="stable")[(TEST - 1) // 2])  # not the undecided one
    assert f"test sample {TEST_ID[test]}" + (f", of class {test % 3}" if labelled else "") in words
    assert "its loss under the model is 0.7," in words
    assert "the highest loss: the one it gets least right" in words
    places = expected([test], [RISE])[0][2]
    if kind in ("texts", "ids"):
        wanted = [f"text{i}" if kind == "texts" else f"id {TRAIN_ID[i]}" for i in places]
        cells = [t.get_text() for t in axes.texts if t.get_fontsize() == 5.5]
        assert cells[1 : 1 + len(wanted)] == wanted
    else:
        canvas = np.asarray(axes.images[0].get_array())
        frames = [
            p for p in axes.patches if isinstance(p, Rectangle) and p.get_width() > SIZE - 0.01
        ]
        frames.sort(key=lambda p: (round(p.get_y(), 3), p.get_x()))
        step = canvas.shape[1] / (axes.images[0].get_extent()[1])
        for frame, place in zip(frames[1:], places, strict=False):
            y, x = round(frame.get_y() * step), round(frame.get_x() * step)
            pixels = canvas[y : y + round(SIZE * step), x : x + round(SIZE * step)]
            times = len(pixels) // 8
            wanted = COLOURS[place] / 255
            wanted = wanted[..., :1].repeat(3, 2) if kind == "grey" else wanted
            np.testing.assert_allclose(pixels[::times, ::times], wanted, atol=1e-6)
    named = "id" if not labelled else "label"
    assert any(f"below a picture: its {named};" in word for word in words)
