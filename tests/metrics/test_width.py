from __future__ import annotations

import csv
import io
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from leaveout.errors import LeaveoutError
from leaveout.metrics.correlation import correlate
from leaveout.metrics.evaluate import evaluate
from leaveout.metrics.uncertainty import interval, resample_counts
from leaveout.metrics.width import COLUMNS, TARGETS, Split, grid, lds_width, measure
from leaveout.store import artefacts

TRAIN, TEST, SUBSETS = 30, 20, 25
TRAIN_ID, TEST_ID, SUBSET_ID = np.arange(100, 100 + TRAIN), np.arange(7, 7 + TEST), np.arange(25)


def write(folder, target, mask, scores, order=None, **more):
    """Write a truth and the scores {(method, label): array}, their rows in some order."""
    order = order or {}
    train = order.get("train", np.arange(TRAIN))
    test = order.get("test", np.arange(TEST))
    subset = order.get("subset", np.arange(len(mask)))
    arrays = {
        "target": target[subset][:, :, test],
        "mask": mask[subset][:, train],
        "train_id": TRAIN_ID[train],
        "test_id": TEST_ID[test],
        "subset_id": SUBSET_ID[subset],
    }
    dims = {name: (name.removesuffix("_id"),) for name in arrays}
    dims |= {"target": ("subset", "run", "test"), "mask": ("subset", "train")}
    artefacts.write(folder / "lds.safetensors", "lds", arrays, dims, {"setting": "toy"} | more)
    paths = []
    for (method, label), score in scores.items():
        paths.append(folder / f"{method}-{label}.safetensors")
        arrays = {"score": score[train][:, test], "train_id": TRAIN_ID[train],
                  "test_id": TEST_ID[test]}  # fmt: skip
        dims = {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)}
        meta = {"setting": "toy", "method": method, "label": label, "params": {}}
        artefacts.write(paths[-1], "score", arrays, dims, meta | more)
    return folder / "lds.safetensors", paths


def run(folder, truth, scores, compare=("good", "poor"), bootstrap=40, seed=3):
    asked = {"setting": "toy", "compare": compare, "root_seed": seed, "bootstrap": bootstrap}
    return list(csv.DictReader(io.StringIO(lds_width(truth, scores, **asked))))


def row(rows, method, subsets, runs, kind="measured"):
    (found,) = (
        r for r in rows
        if (r["method"], r["subsets"], r["runs"], r["kind"])
        == (method, str(subsets), str(runs), kind)
    )  # fmt: skip
    return found


@pytest.fixture
def bank():
    """Targets of three runs, and two methods: the poor one's second grid point is the better."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(TRAIN, TEST))
    mask = (np.argsort(rng.random((SUBSETS, TRAIN)), axis=1) < TRAIN // 2).astype(np.uint8)
    target = -(mask @ true)[:, None] + 2 * rng.normal(size=(SUBSETS, 3, TEST))
    scores = {
        ("good", "default"): true + 0.3 * rng.normal(size=true.shape),
        ("poor", "damping=1"): true + 9 * rng.normal(size=true.shape),
        ("poor", "damping=0.1"): true + 2 * rng.normal(size=true.shape),
    }
    return target, mask, scores


def test_the_grid_ends_with_all_subsets():
    assert grid(100) == [10, 20, 50, 100]
    assert grid(101) == [10, 20, 50, 100, 101]
    assert grid(1500) == [10, 20, 50, 100, 200, 500, 1000, 1500]
    assert grid(10) == [10]
    assert grid(7) == [7]


def test_with_all_subsets_the_rows_are_the_tables(tmp_path, bank):
    truth, scores = write(tmp_path, *bank)
    rows = run(tmp_path, truth, scores)
    assert tuple(rows[0]) == COLUMNS
    values = {}
    for method, paths in (("good", scores[:1]), ("poor", scores[1:])):
        asked = {"setting": "toy", "method": method, "root_seed": 3, "bootstrap": 40}
        text = evaluate("lds", truth, paths, [], **asked)["csv"]
        cells = [r for r in csv.DictReader(io.StringIO(text)) if r["params"] != "damping=1"]
        mean, single = (
            next(r for r in cells if (r["truth"], r["half"]) == (truth_of, "report"))
            for truth_of in ("mean", "single")
        )
        ours = row(rows, method, SUBSETS, 3)
        names = ("params", "value", "ci_low", "ci_high", "ceiling", "ceiling_low", "ceiling_high")
        for name in (*names, "n_test"):
            assert ours[name] == mean[name], name
        assert row(rows, method, SUBSETS, 1)["value"] == single["value"]
        assert row(rows, method, SUBSETS, 1)["ceiling"] == single["ceiling"]
        values[method] = float(mean["value"])
    both = row(rows, "good - poor", SUBSETS, 3)
    # six decimals are written of each
    assert float(both["value"]) == pytest.approx(values["good"] - values["poor"], abs=2e-6)
    assert both["params"] == "default - damping=0.1"
    assert both["ceiling"] == ""


def test_rows_are_whole_and_say_what_is_needed(tmp_path, bank):
    rows = run(tmp_path, *write(tmp_path, *bank))
    for method in ("good", "poor", "good - poor"):
        for r in (1, 2, 3):
            for m in (10, 20, 25):
                cell = row(rows, method, m, r)
                low, high = float(cell["ci_low"]), float(cell["ci_high"])
                assert low < float(cell["value"]) < high
                assert float(cell["width"]) == pytest.approx(high - low, abs=2e-6)
                assert cell["trainings"] == str(m * r)
                assert cell["draws"] == ("1" if m == SUBSETS else "10")
                shares = [float(cell[f"share_{what}"]) for what in ("tests", "subsets", "runs")]
                assert sum(shares) == pytest.approx(1, abs=3e-6)
                assert min(shares) >= 0
        wide, narrow = (float(row(rows, method, m, 3)["width"]) for m in (10, 25))
        assert wide > 1.2 * narrow  # the root of 2.5 is 1.6
        needed = [r for r in rows if (r["method"], r["kind"]) == (method, "needed")]
        assert [float(r["width"]) for r in needed] == [*TARGETS] * 3
        for cell in needed:
            if cell["subsets"]:
                assert float(cell["predicted_width"]) <= float(cell["width"])
                assert int(cell["trainings"]) == int(cell["subsets"]) * int(cell["runs"])
            else:
                assert "endless subsets leave" in cell["note"]


def test_order_of_rows_in_any_file_changes_nothing(tmp_path, bank):
    rows = run(tmp_path, *write(tmp_path, *bank))
    rng = np.random.default_rng(1)
    order = {"train": rng.permutation(TRAIN), "test": rng.permutation(TEST),
             "subset": rng.permutation(SUBSETS)}  # fmt: skip
    assert run(tmp_path, *write(tmp_path, *bank, order)) == rows
    truth, scores = write(tmp_path, *bank)
    assert run(tmp_path, truth, scores[::-1]) == rows
    assert run(tmp_path, truth, scores, seed=4) != rows


def test_a_method_does_not_differ_from_its_own_rescaling(tmp_path, bank):
    target, mask, scores = bank
    good = scores["good", "default"]
    rows = run(tmp_path, *write(tmp_path, target, mask, {("good", "default"): good,
                                                          ("poor", "x"): 3 * good}))  # fmt: skip
    for m, r in ((10, 1), (25, 3)):
        cell = row(rows, "good - poor", m, r)
        assert [float(cell[n]) for n in ("value", "ci_low", "ci_high", "width")] == [0, 0, 0, 0]
        assert float(row(rows, "good", m, r)["width"]) > 0.01


def naive(x, y, counts, test_counts):
    """Copy out what is drawn and correlate with scipy: the mean in every replicate."""
    found = []
    for units, tests in zip(counts.T.astype(int), test_counts.T.astype(int), strict=True):
        rows = np.repeat(np.arange(len(x)), units)
        columns = np.repeat(np.arange(x.shape[1]), tests)
        found.append(np.mean([stats.spearmanr(x[rows, j], y[rows, j]).statistic for j in columns]))
    return np.array(found)


def test_the_interval_of_the_difference_is_of_a_paired_bootstrap():
    rng = np.random.default_rng(2)
    a, b, noise = rng.normal(size=(3, 12, 5))
    runs = np.stack([a + noise, a + b + rng.normal(size=(12, 5))])
    counts, tests = resample_counts(rng, 12, 15), resample_counts(rng, 5, 15)
    got = measure([a, b], runs, counts, tests)
    drawn = [naive(x, runs.mean(axis=0), counts, tests) for x in (a, b)]
    values = [correlate("spearman", x, runs.mean(axis=0)).mean() for x in (a, b)]
    drawn.append(drawn[0] - drawn[1])
    values.append(values[0] - values[1])
    np.testing.assert_allclose(got.value[2], [values], atol=1e-12)
    for q in range(3):
        low, high = interval(drawn[q], values[q])
        assert (got.low[2][0, q], got.high[2][0, q]) == pytest.approx((low, high), abs=1e-9)
    # one run: both, as two groups
    each = [[correlate("spearman", x, y).mean() for x in (a, b)] for y in runs]
    np.testing.assert_allclose(got.value[1][:, :2], each, atol=1e-12)


def test_a_test_sample_that_one_method_lacks_counts_for_neither(tmp_path, bank):
    target, mask, scores = bank
    rows = run(tmp_path, *write(tmp_path, target, mask, scores))
    spoilt = {key: score.copy() for key, score in scores.items()}
    spoilt["poor", "damping=0.1"][3, :10] = np.nan
    spoilt["poor", "damping=1"][3] = np.nan
    some = run(tmp_path, *write(tmp_path, target, mask, spoilt))
    dropped = int(row(some, "good", 25, 3)["n_dropped"])
    assert 0 < dropped < 10
    assert row(some, "good", 25, 3)["n_test"] == row(rows, "good", 25, 3)["n_test"] == "10"
    assert row(some, "good", 25, 3)["value"] != row(rows, "good", 25, 3)["value"]
    nothing = {("good", "default"): scores["good", "default"],
               ("poor", "x"): np.full((TRAIN, TEST), np.nan)}  # fmt: skip
    none = run(tmp_path, *write(tmp_path, target, mask, nothing))
    for cell in none:
        assert cell["value"] in ("nan", "")
    assert row(none, "good", 25, 3)["n_dropped"] == "10"
    assert all(
        r["note"] == "no test sample has a correlation" for r in none if r["kind"] == "needed"
    )


def test_one_run_has_no_ceiling_and_its_noise_is_not_told_apart(tmp_path, bank):
    target, mask, scores = bank
    rows = run(tmp_path, *write(tmp_path, target[:, :1], mask, scores))
    cell = row(rows, "good", 25, 1)
    assert (cell["ceiling"], cell["share_runs"]) == ("nan", "nan")
    assert "one run of each subset" in cell["note"]
    assert 0 <= float(cell["share_tests"]) < 1
    assert float(cell["width"]) > 0
    assert {r["runs"] for r in rows} == {"1"}


def test_what_does_not_fit_is_named(tmp_path, bank):
    target, mask, scores = bank
    truth, paths = write(tmp_path, target, mask, scores)
    with pytest.raises(LeaveoutError, match="no scores of 'fair' given"):
        run(tmp_path, truth, paths, compare=("good", "fair"))
    with pytest.raises(LeaveoutError, match="expected two methods, got good, good"):
        run(tmp_path, truth, paths, compare=("good", "good"))
    truth, paths = write(tmp_path, target[:2], mask[:2], scores)
    with pytest.raises(LeaveoutError, match=r"lds\.safetensors: it has 2 subsets"):
        run(tmp_path, truth, paths)


def test_scores_of_the_ground_truths_own_models_are_refused(tmp_path, bank):
    truth, paths = write(tmp_path, *bank, seed=0, trainings={"models": ["full 0"]})
    with pytest.raises(LeaveoutError, match="of the models it was computed from are the ground"):
        run(tmp_path, truth, paths)


def test_three_subsets_are_enough_to_say_something(tmp_path, bank):
    target, mask, scores = bank
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = run(tmp_path, *write(tmp_path, target[:3], mask[:3], scores))
    assert {r["subsets"] for r in rows if r["kind"] == "measured"} == {"3"}


def test_a_subset_with_a_run_that_diverged_is_left_out_and_noted(tmp_path, bank):
    target, mask, scores = bank
    broken = target.copy()
    broken[5, 2] = np.nan
    rows = run(tmp_path, *write(tmp_path, broken, mask, scores))
    kept = np.delete(np.arange(SUBSETS), 5)
    expected = run(tmp_path, *write(tmp_path, target, mask, scores, {"subset": kept}))
    note = "left out 1 of 25 subsets, without a finite outcome: 5 (run 2)"
    for found, other in zip(rows, expected, strict=True):
        assert found == other | ({"note": note} if found["kind"] == "measured" else {})
    truth, paths = write(tmp_path, broken[3:6], mask[3:6], scores)
    with pytest.raises(LeaveoutError, match=r"it has 2 subsets \(left out 1 of 3 subsets"):
        run(tmp_path, truth, paths)


def test_intervals_keep_to_the_limits_of_correlations_and_of_differences():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(10, 5))
    runs = truth + 0.1 * rng.normal(size=(2, 10, 5))
    counts, tests = resample_counts(rng, 10, 200), resample_counts(rng, 5, 200)
    got = measure([truth, -truth], runs, counts, tests)
    for r in (1, 2):
        assert (got.high[r][:, 0] == 1).all()  # without the limits, these are beyond
        assert (got.low[r][:, 1] == -1).all()
        assert (got.high[r][:, 2] == 2).all()
        assert got.ceilings[r][2] <= 1


def test_needed_is_the_least_number_of_subsets_for_a_width():
    split = Split(subsets=50, tests=1e-6, alike=4e-5, own=1e-5)
    for width in (0.1, 0.02, 0.006):
        count = split.needed(width)
        assert split.width(count) <= width < split.width(count - 1)
    assert split.needed(0.0039) is None  # 2 x 1.96 x sqrt(1e-6)
    assert split.width(math.inf) == pytest.approx(0.00392, abs=1e-5)
    tests, subsets, runs = split.shares(100, noise=3e-5)
    assert (tests, subsets, runs) == pytest.approx((1 / 26, 10 / 26, 15 / 26))
    assert split.shares(100, noise=1.0)[1] == 0  # no more noise than there is variance


class Toy:
    """Tests and subsets drawn from an endless population of both; the truth is known."""

    def __init__(self, rng, subsets, tests):
        self.rng = rng
        load = rng.normal(size=(2, 3, tests)) * rng.uniform(0.2, 1.5, size=tests)
        common = rng.normal(size=(2, subsets, 3))
        self.signal = common[0] @ load[0] + rng.normal(size=(subsets, tests))
        other = common[1] @ load[1] + rng.normal(size=(subsets, tests))
        self.predictions = [self.signal + 0.5 * other, 0.4 * self.signal + other]

    def runs(self, count=2):
        subsets, tests = self.signal.shape
        shared = self.rng.normal(size=(count, subsets, 1))
        return self.signal + shared + 0.8 * self.rng.normal(size=(count, subsets, tests))


@pytest.mark.slow
def test_a_simulation_with_a_known_truth():
    rng, subsets, tests, draws = np.random.default_rng(5), 50, 20, 100
    truth = np.zeros(3)
    for _ in range(40):
        toy = Toy(rng, 1000, 60)
        outcome = toy.runs().mean(axis=0)
        a, b = (correlate("spearman", x, outcome).mean() for x in toy.predictions)
        truth += np.array([a, b, a - b]) / 40

    def measured(count):
        toy = Toy(rng, count, tests)
        counts, test_counts = (resample_counts(rng, size, 150) for size in (count, tests))
        return measure(toy.predictions, toy.runs(), counts, test_counts)

    estimates, held, widths, foreseen, variance, farther = ([] for _ in range(6))
    for k in range(draws):
        got = measured(subsets)
        estimates.append(got.value[2][0])
        held.append((got.low[2][0] <= truth) & (truth <= got.high[2][0]))
        widths.append(got.high[2][0] - got.low[2][0])
        foreseen.append([[s.width(subsets), s.width(3 * subsets)] for s in got.splits[2][0]])
        variance.append([s.tests + s.alike + s.own for s in got.splits[2][0]])
        if k < 25:
            far = measured(3 * subsets)
            farther.append(far.high[2][0] - far.low[2][0])

    # 95% nominal, 100 trials: standard error 2.2%; the bootstrap is wider than need be
    assert (np.mean(held, axis=0) > 0.90).all()
    # but not by more than the root of three, were all of it own; and 7% for the error of `actual`
    actual = np.var(estimates, axis=0, ddof=1)
    assert (np.mean(widths, axis=0) < 1.07 * 3**0.5 * 2 * 1.96 * np.sqrt(actual)).all()
    # the variance of 100 estimates has a standard error of 14%
    np.testing.assert_allclose(np.mean(variance, axis=0), actual, rtol=0.4)
    # the split's own width, and that of three times the subsets, against measured ones
    here, there = np.mean(foreseen, axis=0).T
    np.testing.assert_allclose(here, np.mean(widths, axis=0), rtol=0.1)
    np.testing.assert_allclose(there, np.mean(farther, axis=0), rtol=0.1)


@pytest.mark.slow
def test_noise_of_runs_is_what_other_runs_of_the_same_subsets_change():
    rng, subsets, tests = np.random.default_rng(6), 100, 30
    counts, test_counts = resample_counts(rng, subsets, 100), resample_counts(rng, tests, 100)
    found, units, changed = [], [], []
    for k in range(300):
        toy = Toy(rng, subsets, tests)
        if k < 30:
            got = measure(toy.predictions, toy.runs(), counts, test_counts)
            found.append([got.noise[1], got.noise[2]])
            units.append([s.alike + s.own for s in got.splits[1][0]])
        again = []
        for _ in range(2):
            runs = toy.runs()
            values = np.array([[correlate("spearman", x, y).mean() for x in toy.predictions]
                               for y in (runs[0], runs.mean(axis=0))])  # fmt: skip
            again.append(np.column_stack([values, values[:, 0] - values[:, 1]]))
        changed.append((again[0] - again[1]) ** 2 / 2)
    # 300 squared differences have a standard error of 8%, 30 estimates of as much; the split is a
    # first-order one, off by some 1 / subsets of the whole
    np.testing.assert_allclose(np.mean(found, axis=0), np.mean(changed, axis=0), rtol=0.3)
    # nothing trivial: more runs make less noise, and the subsets themselves are a good part
    one, two = np.mean(found, axis=0)
    assert (two < 0.8 * one).all()
    assert (one < 0.75 * np.mean(units, axis=0)).all()
