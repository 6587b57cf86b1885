from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from leaveout.data.halves import chosen, split
from leaveout.errors import LeaveoutError
from leaveout.metrics import evaluate as evaluate_module
from leaveout.metrics import uncertainty
from leaveout.metrics.draws import read_draws
from leaveout.metrics.evaluate import COLUMNS, evaluate
from leaveout.metrics.lds import lds
from leaveout.metrics.loo import loo
from leaveout.metrics.pbrf import pbrf
from leaveout.retraining.layout import PBRF_DIMS
from leaveout.store import artefacts, contents

TRAIN, TEST, UNITS = 40, 24, 30
TRAIN_ID = np.arange(100, 100 + TRAIN)
TEST_ID = np.arange(7, 7 + TEST)


@pytest.fixture
def truth():
    """Scores that are true, and the losses of both ground truths with training noise."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=(TRAIN, TEST))
    mask = (np.argsort(rng.random((UNITS, TRAIN)), axis=1) < TRAIN // 2).astype(np.uint8)
    full, again_full = rng.random((1, TEST)), rng.random((1, TEST))
    again_id = TRAIN_ID[::2]
    return {
        "score": score,
        "lds": {
            "target": -(mask @ score)[:, None] + 3 * rng.normal(size=(UNITS, 2, TEST)),
            "mask": mask,
            "train_id": TRAIN_ID,
            "test_id": TEST_ID,
            "subset_id": np.arange(UNITS),
        },
        "loo": {
            "target": full + score[:, None] + rng.normal(size=(TRAIN, 1, TEST)),
            "full_target": full,
            "removed_id": TRAIN_ID,
            "replicate_target": again_full
            + score[::2, None]
            + rng.normal(size=(len(again_id), 1, TEST)),
            "replicate_full_target": again_full,
            "replicate_removed_id": again_id,
            "train_id": TRAIN_ID,
            "test_id": TEST_ID,
        },
        "pbrf": {
            "target": full + score[:, None] + 0.1 * rng.normal(size=(TRAIN, 1, TEST)),
            "full_target": full,
            "point_id": TRAIN_ID,
            "converged": np.ones(TRAIN, dtype=np.uint8),
            "replicate_target": again_full
            + score[::2, None]
            + rng.normal(size=(len(again_id), 1, TEST)),
            "replicate_full_target": again_full,
            "replicate_point_id": again_id,
            "replicate_converged": np.ones(len(again_id), dtype=np.uint8),
            "train_id": TRAIN_ID,
            "test_id": TEST_ID,
        },
    }


DIMS = {
    "score": ("train", "test"),
    "mask": ("subset", "train"),
    "train_id": ("train",),
    "test_id": ("test",),
    "subset_id": ("subset",),
    "removed_id": ("removed",),
    "full_target": ("run", "test"),
    "replicate_target": ("replicate_removed", "replicate_run", "test"),
    "replicate_full_target": ("replicate_run", "test"),
    "replicate_removed_id": ("replicate_removed",),
}


def dims_of(kind, name):
    if kind == "pbrf" and name in PBRF_DIMS:
        return PBRF_DIMS[name]
    return DIMS.get(name, ("subset" if kind == "lds" else "removed", "run", "test"))


def write_truth(path, kind, tensors, **meta):
    dims = {name: dims_of(kind, name) for name in tensors}
    artefacts.write(path, kind, tensors, dims, {"setting": "toy"} | meta)
    return path


def write_score(path, score, label="default", train_id=TRAIN_ID, test_id=TEST_ID, **meta):
    artefacts.write(
        path,
        "score",
        {"score": score, "train_id": train_id, "test_id": test_id},
        {name: DIMS[name] for name in ("score", "train_id", "test_id")},
        {"setting": "toy", "method": "grad_dot", "label": label, "params": {}} | meta,
    )
    return path


def rows_of(found):
    """Return the rows of what a metric returned."""
    return list(csv.DictReader(io.StringIO(found["csv"])))


def run(tmp_path, metric, tensors, *scores, bootstrap=50, seed=3, method="grad_dot", **meta):
    path = write_truth(tmp_path / f"{metric}.safetensors", metric, tensors, **meta)
    asked = {"setting": "toy", "method": method, "root_seed": seed, "bootstrap": bootstrap}
    return rows_of(evaluate(metric, path, scores, [], **asked))


def cell(rows, truth, half, params="default"):
    (row,) = (r for r in rows if (r["truth"], r["half"], r["params"]) == (truth, half, params))
    return row


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_values_are_those_of_the_metric_per_truth_and_half(tmp_path, truth, metric):
    noisy = truth["score"] + np.random.default_rng(1).normal(size=(TRAIN, TEST))
    scores = [
        write_score(tmp_path / "a", truth["score"], "damping=1"),
        write_score(tmp_path / "b", noisy, "damping=0.1"),
    ]
    rows = run(tmp_path, metric, truth[metric], *scores)
    assert tuple(rows[0]) == COLUMNS
    assert [row["params"] for row in rows] == ["damping=1"] * 6 + ["damping=0.1"] * 6
    tensors = truth[metric]
    target = tensors["target"]

    def per_test(score, losses, full):
        if metric == "lds":
            return lds(score, tensors["mask"], losses)
        if metric == "pbrf":
            return pbrf(score, losses, full, tensors["converged"].astype(bool))
        return loo(score, losses, full)

    full = tensors.get("full_target", np.zeros((2, TEST)))
    halves = split(TEST_ID, "toy", 3)
    for label, score in (("damping=1", truth["score"]), ("damping=0.1", noisy)):
        mean = per_test(score, target.mean(axis=1), full.mean(axis=0))
        runs = range(target.shape[1])
        single = np.mean([per_test(score, target[:, r], full[r]) for r in runs], axis=0)
        for half, mask in halves.items():
            for name, values in (("mean", mean), ("single", single)):
                row = cell(rows, name, half, label)
                # Six decimals are written.
                assert float(row["value"]) == pytest.approx(values[mask].mean(), abs=6e-7)
                assert float(row["ci_low"]) < float(row["value"]) < float(row["ci_high"])
                assert (row["n_test"], row["n_nan"], row["n_constant"]) == (
                    str(mask.sum()),
                    "0",
                    "0",
                )
                assert row["n_samples"] == str(len(target))
                assert row["n_runs"] == str(target.shape[1])
                assert row["n_unconverged"] == "0"


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_order_of_rows_in_any_file_changes_nothing(tmp_path, truth, metric):
    score = truth["score"] + np.random.default_rng(1).normal(size=(TRAIN, TEST))
    rows = run(tmp_path, metric, truth[metric], write_score(tmp_path / "a", score))
    rng = np.random.default_rng(2)
    train, test = rng.permutation(TRAIN), rng.permutation(TEST)
    moved = write_score(
        tmp_path / "b", score[train][:, test], train_id=TRAIN_ID[train], test_id=TEST_ID[test]
    )
    assert run(tmp_path, metric, truth[metric], moved) == rows
    order = {name: rng.permutation(size) for name, size in
             {"train": TRAIN, "test": TEST, "subset": UNITS, "removed": TRAIN, "point": TRAIN,
              "replicate_removed": TRAIN // 2, "replicate_point": TRAIN // 2}.items()}  # fmt: skip
    shuffled = {}
    for name, array in truth[metric].items():
        for axis, dim in enumerate(dims_of(metric, name)):
            array = np.take(array, order[dim], axis=axis) if dim in order else array
        shuffled[name] = array
    assert run(tmp_path, metric, shuffled, moved) == rows


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_the_replicates_returned_are_those_of_the_value_shown(tmp_path, truth, metric):
    path = write_truth(tmp_path / "truth.safetensors", metric, truth[metric])
    noise = np.random.default_rng(1).normal(size=(TRAIN, TEST))
    scores = {
        "a": write_score(tmp_path / "a", truth["score"] + noise, "a"),
        "b": write_score(tmp_path / "b", truth["score"] + 2 * noise, "b"),
    }
    asked = {"setting": "toy", "root_seed": 3, "bootstrap": 60}
    both = evaluate(metric, path, [*scores.values()], [], method="grad_dot", **asked)
    rows = rows_of(both)
    assert list(both["draws"].facts["points"]) == ["a", "b"]
    found = {}
    for label, score in scores.items():
        alone = evaluate(metric, path, [score], [], method="grad_dot", **asked)["draws"]
        assert alone.facts["label"] == label
        found[label] = replicates = alone.tensors["replicate"]
        row = cell(rows, "mean", "report", label)
        low, high = uncertainty.interval(replicates.astype(np.float64), float(row["value"]))
        assert replicates.shape == (60,)
        assert low == pytest.approx(float(row["ci_low"]), abs=2e-6)  # written to six decimals
        assert high == pytest.approx(float(row["ci_high"]), abs=2e-6)
    # beside other grid points, the chosen one has the same
    draws = both["draws"]
    np.testing.assert_array_equal(draws.tensors["replicate"], found[draws.facts["label"]])
    # another method that says the same is resampled alike, and what both have in common cancels
    other = write_score(tmp_path / "c", truth["score"] + noise, "x", method="other")
    again = evaluate(metric, path, [other], [], method="other", **asked)["draws"]
    np.testing.assert_array_equal(again.tensors["replicate"], found["a"])
    assert (found["a"] - found["b"]).std() < np.hypot(found["a"].std(), found["b"].std())


def test_what_is_returned_is_saved_and_read_again(tmp_path, truth):
    path = write_truth(tmp_path / "truth.safetensors", "lds", truth["lds"])
    scores = [write_score(tmp_path / f"{k}", truth["score"], f"d={k}", seed=k) for k in (2, 1)]
    costs = []
    for k in (2, 1):
        costs.append(tmp_path / f"{k}.cost.json")
        record = {"setting": "toy", "method": "grad_dot", "params": f"d={k}", "wall_s": 0.5 * k}
        costs[-1].write_text(json.dumps(record))
    asked = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 20}
    found = evaluate("lds", path, scores, costs, **asked)
    assert list(found) == ["csv", "draws", "costs"]
    assert json.loads(found["costs"]) == [json.loads(cost.read_text()) for cost in costs]
    assert json.loads(evaluate("lds", path, scores, [], **asked)["costs"]) == []
    contents.save(tmp_path / "out.csv", found["csv"])
    assert chosen(tmp_path / "out.csv") == "d=2"  # the first of equals
    contents.save(tmp_path / "draws", found["draws"], {"commit": "c"})
    draws = read_draws(tmp_path / "draws")
    assert (draws.setting, draws.metric, draws.method, draws.label) == (
        "toy",
        "lds",
        "grad_dot",
        "d=2",
    )
    assert {label: point["seed"] for label, point in draws.points.items()} == {
        "d=2": "2",
        "d=1": "1",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "not the record of a cost"),
        ('{"setting": "toy", "method": "other"}', "its method is 'other', expected 'grad_dot'"),
        ('{"method": "grad_dot"}', "its setting is None, expected 'toy'"),
        (None, "no such file"),
    ],
)
def test_a_cost_that_does_not_fit_is_named(tmp_path, truth, text, message):
    path = write_truth(tmp_path / "truth.safetensors", "lds", truth["lds"])
    score, cost = write_score(tmp_path / "a", truth["score"]), tmp_path / "a.cost.json"
    if text is not None:
        cost.write_text(text)
    asked = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 5}
    with pytest.raises(LeaveoutError, match=rf"a\.cost\.json: {message}"):
        evaluate("lds", path, [score], [cost], **asked)


@pytest.mark.parametrize("metric", ["lds", "lds_variance", "lds_kendall"])
def test_a_run_that_diverged_is_named_and_its_subset_left_out_and_counted(tmp_path, truth, metric):
    tensors = truth["lds"] | {"target": np.repeat(truth["lds"]["target"], 2, axis=1)}
    tensors["target"] += np.random.default_rng(3).normal(size=tensors["target"].shape)
    tensors["subset_id"] = 10 + np.arange(UNITS)
    broken = tensors | {"target": tensors["target"].copy()}
    broken["target"][4, 1] = np.nan
    broken["target"][20, 0], broken["target"][20, 2] = np.inf, np.nan
    kept = np.delete(np.arange(UNITS), [4, 20])
    fewer = {
        name: array[kept] if dims_of("lds", name)[0] == "subset" else array
        for name, array in tensors.items()
    }
    score = write_score(tmp_path / "a", truth["score"])
    asked = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 20}
    found, expected = (
        rows_of(evaluate(metric, write_truth(tmp_path / "t", "lds", of), [score], [], **asked))
        for of in (broken, fewer)
    )
    note = "left out 2 of 30 subsets, without a finite outcome: 14 (run 1), 30 (run 0), 30 (run 2)"
    for row, other in zip(found, expected, strict=True):
        assert (row["n_samples"], row["n_unconverged"], row["n_nan"]) == ("28", "2", "0")
        assert np.isfinite(float(row["value"]))
        # the same as if they had never been trained
        notes = "; ".join(filter(None, (other["ceiling_note"], note)))
        assert row == other | {"ceiling_note": notes, "n_unconverged": "2"}


def test_a_removed_samples_run_that_diverged_is_left_out_too(tmp_path, truth):
    tensors = truth["loo"] | {
        name: truth["loo"][name].copy() for name in ("target", "replicate_target")
    }
    tensors["target"][6], tensors["replicate_target"][5] = np.nan, np.nan  # ids 106 and 110
    rows = run(tmp_path, "loo", tensors, write_score(tmp_path / "a", truth["score"]))
    kept, again = np.delete(np.arange(TRAIN), 6), np.delete(np.arange(TRAIN // 2), 5)
    fewer = {
        name: array[again if name.startswith("replicate_") else kept]
        if "removed" in dims_of("loo", name)[0]
        else array
        for name, array in tensors.items()
    }
    expected = run(tmp_path, "loo", fewer, tmp_path / "a")
    note = (
        "left out 1 of 40 removed samples, without a finite outcome: 106 (run 0); left out 1 of 20 "
        "removed samples with a second run, without a finite outcome: 110 (run 0)"
    )
    assert rows == [row | {"ceiling_note": note, "n_unconverged": "1"} for row in expected]
    assert (rows[0]["n_samples"], rows[0]["n_nan"]) == ("39", "0")
    assert float(rows[0]["value"]) > 0.3


@pytest.mark.parametrize("metric", ["lds", "loo"])
def test_where_all_diverged_all_is_undefined_and_the_reason_is_there(tmp_path, truth, metric):
    tensors = truth[metric] | {"target": np.full_like(truth[metric]["target"], np.nan)}
    rows = run(tmp_path, metric, tensors, write_score(tmp_path / "a", truth["score"]))
    count, what = (30, "subsets") if metric == "lds" else (40, "removed samples")
    for row in rows:
        assert {row[name] for name in ("value", "ci_low", "ci_high", "ceiling")} == {"nan"}
        assert (row["n_samples"], row["n_unconverged"]) == ("0", str(count))
        assert row["n_nan"] == row["n_test"]
        assert (
            f"left out {count} of {count} {what}, without a finite outcome" in row["ceiling_note"]
        )


def test_one_run_has_no_ceiling_and_what_was_left_out_is_said_as_well(tmp_path, truth):
    tensors = truth["lds"] | {"target": truth["lds"]["target"][:, :1].copy()}
    tensors["target"][0] = np.nan
    (row, *_) = run(tmp_path, "lds", tensors, write_score(tmp_path / "a", truth["score"]))
    assert row["ceiling_note"] == (
        "one run of each subset; two or more give a ceiling; left out 1 of 30 subsets, without a "
        "finite outcome: 0 (run 0)"
    )


@pytest.mark.parametrize("metric", ["lds", "lds_kendall", "loo", "loo_topk"])
def test_no_interval_leaves_the_limits_of_its_correlation(tmp_path, metric):
    rng = np.random.default_rng(4)
    units, tests = (10, 5) if metric[:3] == "lds" else (12, 5)
    score = rng.normal(size=(units, tests))
    ids = {"train_id": np.arange(units), "test_id": np.arange(tests)}
    noise = 0.05 * rng.normal(size=(units, 2, tests))
    if metric[:3] == "lds":
        mask = np.eye(units, dtype=np.uint8)  # a subset predicts what its one sample says
        tensors = {"target": -score[:, None] + noise, "mask": mask, "subset_id": np.arange(units)}
    else:
        tensors = {
            "target": score[:, None] + noise,
            "full_target": np.zeros((2, tests)),
            "removed_id": np.arange(units),
        }
    path = write_truth(tmp_path / "t", metric[:3], tensors | ids)
    scored = write_score(tmp_path / "a", score, train_id=np.arange(units), test_id=np.arange(tests))
    asked = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 200, "top_k": 3}
    rows = rows_of(evaluate(metric, path, [scored], [], **asked))
    highs = [float(row["ci_high"]) for row in rows]
    assert max(highs) == 1  # without the limit it would be more
    for row in rows:
        assert float(row["ci_low"]) <= float(row["value"]) <= float(row["ci_high"])
        assert not float(row["ceiling_high"]) > 1


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_a_perfect_predictor_gives_one_and_its_negative_minus_one(tmp_path, truth, metric):
    tensors = truth[metric].copy()
    if metric == "lds":
        tensors["target"] = np.repeat(-(tensors["mask"] @ truth["score"])[:, None], 2, axis=1)
    else:
        tensors["target"] = tensors["full_target"] + truth["score"][:, None]
    for sign in (1, -1):
        rows = run(tmp_path, metric, tensors, write_score(tmp_path / "a", sign * truth["score"]))
        assert {float(row["value"]) for row in rows} == {sign}
        assert {float(row["ci_low"]) for row in rows} == {sign}


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_undefined_test_samples_are_counted_by_cause_and_left_out(tmp_path, truth, metric):
    score = truth["score"].copy()
    score[5, 0], score[6, 1], score[:, 2], score[:, 3] = np.nan, np.inf, 0.1, np.nan
    tensors = truth[metric] | {"target": truth[metric]["target"].copy()}
    tensors["target"][4, 0, 4] = np.nan
    tensors["target"][:, :, 5] = 2.0
    rows = run(tmp_path, metric, tensors, write_score(tmp_path / "a", score))
    for name in ("mean", "single"):
        row = cell(rows, name, "all")
        assert (row["n_test"], row["n_nan"], row["n_constant"]) == ("24", "4", "2")
        parts = [cell(rows, name, half) for half in ("select", "report")]
        assert sum(int(part["n_nan"]) for part in parts) == 4
        assert sum(int(part["n_constant"]) for part in parts) == 2
    keep = np.arange(6, TEST)
    if metric == "lds":
        expected = lds(score[:, keep], tensors["mask"], tensors["target"].mean(axis=1)[:, keep])
    else:
        expected = loo(
            score[:, keep], tensors["target"][:, 0, keep], tensors["full_target"][0, keep]
        )
    assert float(cell(rows, "mean", "all")["value"]) == pytest.approx(expected.mean(), abs=6e-7)


def test_all_nan_scores_give_nan_everywhere_and_are_all_counted(tmp_path, truth):
    rows = run(tmp_path, "lds", truth["lds"], write_score(tmp_path / "a", truth["score"] * np.nan))
    for row in rows:
        assert (row["value"], row["ci_low"], row["ci_high"]) == ("nan", "nan", "nan")
        assert row["n_nan"] == row["n_test"]
        assert float(row["ceiling"]) > 0  # the truth is sound all the same


def test_a_constant_beside_one_bad_run_is_left_out_of_single_as_of_mean(tmp_path, truth):
    tensors = truth["lds"] | {"target": truth["lds"]["target"].copy()}
    tensors["target"][:, 1, 0] = 1.0  # constant in one run only: no correlation against that run
    rows = run(tmp_path, "lds", tensors, write_score(tmp_path / "a", truth["score"]))
    assert cell(rows, "single", "all")["n_constant"] == "1"
    assert cell(rows, "mean", "all")["n_constant"] == "0"


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_ceiling_comes_from_pairs_of_runs(tmp_path, truth, metric):
    rows = run(tmp_path, metric, truth[metric], write_score(tmp_path / "a", truth["score"]))
    single, mean = (float(cell(rows, name, "all")["ceiling"]) for name in ("single", "mean"))
    tensors = truth[metric]
    if metric == "lds":
        from scipy.stats import spearmanr

        pairs = [spearmanr(*tensors["target"][:, :, j].T).statistic for j in range(TEST)]
        rho = np.mean(pairs)
        assert mean == pytest.approx(np.sqrt(2 * rho / (1 + rho)), abs=1e-6)
    else:
        one = tensors["target"][::2, 0] - tensors["full_target"][0]
        two = tensors["replicate_target"][:, 0] - tensors["replicate_full_target"][0]
        rho = np.mean([np.corrcoef(one[:, j], two[:, j])[0, 1] for j in range(TEST)])
        assert mean == pytest.approx(single, abs=1e-6)  # its truth is one run
    assert single == pytest.approx(np.sqrt(rho), abs=1e-6)
    row = cell(rows, "single", "all")
    assert float(row["ceiling_low"]) < single < float(row["ceiling_high"])


def test_points_that_did_not_converge_are_left_out_by_id_and_counted(tmp_path, truth):
    missed = np.isin(TRAIN_ID, [100, 107, 120])
    tensors = truth["pbrf"] | {"converged": (~missed).astype(np.uint8)}
    tensors["target"] = np.where(missed[:, None, None], 1e3, tensors["target"])
    again = tensors["replicate_point_id"]
    tensors["replicate_converged"] = (again != 104).astype(np.uint8)
    tensors["replicate_target"] = np.where(
        (again == 104)[:, None, None], 1e3, tensors["replicate_target"]
    )
    score = truth["score"] + np.random.default_rng(1).normal(size=(TRAIN, TEST))
    rows = run(tmp_path, "pbrf", tensors, write_score(tmp_path / "a", score))
    row = cell(rows, "mean", "all")
    assert (row["n_samples"], row["n_unconverged"]) == (str(TRAIN - 3), "3")
    expected = pbrf(score, tensors["target"][:, 0], tensors["full_target"][0], ~missed)
    assert float(row["value"]) == pytest.approx(expected.mean(), abs=6e-7)
    both = ~np.isin(again, [100, 104, 120])
    one = (tensors["target"][::2, 0] - tensors["full_target"])[both]
    two = (tensors["replicate_target"][:, 0] - tensors["replicate_full_target"])[both]
    rho = np.mean([np.corrcoef(one[:, j], two[:, j])[0, 1] for j in range(TEST)])
    assert float(row["ceiling"]) == pytest.approx(np.sqrt(rho), abs=1e-6)
    # the same as if they had never been asked for
    kept = {
        name: array[~missed] if PBRF_DIMS[name][0] == "point" else array
        for name, array in tensors.items()
    }
    fewer = run(tmp_path, "pbrf", kept, write_score(tmp_path / "a", score))
    assert [r | {"n_unconverged": "3"} for r in fewer] == rows


def test_where_no_point_converged_all_is_undefined_and_the_reason_is_there(tmp_path, truth):
    tensors = truth["pbrf"] | {"converged": np.zeros(TRAIN, dtype=np.uint8)}
    rows = run(tmp_path, "pbrf", tensors, write_score(tmp_path / "a", truth["score"]))
    for row in rows:
        assert {row[name] for name in ("value", "ci_low", "ci_high", "ceiling")} == {"nan"}
        assert (row["n_samples"], row["n_unconverged"]) == ("0", str(TRAIN))
        assert row["n_nan"] == row["n_test"]
        assert row["ceiling_note"] == f"none of {TRAIN} points converged"


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
def test_scores_that_could_not_be_computed_have_no_value_and_a_reason(tmp_path, truth, metric):
    absent = tmp_path / "b"
    ids = {"train_id": TRAIN_ID, "test_id": TEST_ID}
    why = {"reason": "memory", "detail": "the Hessian would take 96 GB"}
    header = {"setting": "toy", "method": "grad_dot", "label": "damping=2", "params": {}}
    dims = {name: DIMS[name] for name in ids}
    artefacts.write(absent, "score", ids, dims, header | {"not_computed": why})
    score = write_score(tmp_path / "a", truth["score"])
    alone, without = (run(tmp_path, metric, truth[metric], *s) for s in ([score], [absent]))
    both = run(tmp_path, metric, truth[metric], score, absent)
    assert both == alone + without
    assert {row["not_computed"] for row in alone} == {""}
    for row, other in zip(without, alone, strict=True):
        assert row["not_computed"] == "memory: the Hessian would take 96 GB"
        assert {row[name] for name in ("value", "ci_low", "ci_high")} == {"nan"}
        assert row["n_nan"] == row["n_test"]
        assert (row["ceiling"], row["n_samples"]) == (other["ceiling"], other["n_samples"])


def test_the_ceiling_between_two_models_is_none_for_a_method_that_uses_the_very_one(
    tmp_path, truth
):
    own = truth["pbrf"]["target"][:, 0] - truth["pbrf"]["full_target"]
    rows = run(tmp_path, "pbrf", truth["pbrf"], write_score(tmp_path / "a", own))
    row = cell(rows, "mean", "all")
    assert float(row["value"]) == pytest.approx(1, abs=1e-6)
    assert float(row["ceiling"]) < 0.9
    assert row["ceiling_note"] == (
        "between two full models; a method that uses the very one can exceed it"
    )


def test_without_a_second_run_the_ceiling_is_nan_with_a_reason(tmp_path, truth):
    score = write_score(tmp_path / "a", truth["score"])
    tensors = truth["lds"] | {"target": truth["lds"]["target"][:, :1]}
    rows = run(tmp_path, "lds", tensors, score)
    assert {row["ceiling"] for row in rows} == {"nan"}
    assert all("one run of each subset" in row["ceiling_note"] for row in rows)
    assert cell(rows, "mean", "all")["value"] == cell(rows, "single", "all")["value"]
    tensors = {k: v for k, v in truth["loo"].items() if not k.startswith("replicate")}
    rows = run(tmp_path, "loo", tensors, score)
    assert all("one run of each removed" in row["ceiling_note"] for row in rows)
    tensors = truth["pbrf"] | {
        "replicate_point_id": np.zeros(0, np.int64),
        "replicate_converged": np.zeros(0, np.uint8),
        "replicate_target": np.zeros((0, 0, TEST)),
        "replicate_full_target": np.zeros((0, TEST)),
    }
    rows = run(tmp_path, "pbrf", tensors, score)
    assert all("one run of each point" in row["ceiling_note"] for row in rows)


def test_the_ceiling_says_what_the_second_run_was(tmp_path, truth):
    score = write_score(tmp_path / "a", truth["score"])
    for second, note in (("seed", ""), ("nudge", "of one and the same run: its initial weights")):
        (row, *_) = run(tmp_path, "loo", truth["loo"], score, second=second)
        assert row["ceiling_note"][: len(note)] == note
        assert bool(row["ceiling_note"]) == bool(note)
        assert 0 < float(row["ceiling"]) < 1


def test_methods_share_the_draws_so_that_a_monotone_rescaling_has_the_same_interval(
    tmp_path, truth
):
    one = run(tmp_path, "lds", truth["lds"], write_score(tmp_path / "a", truth["score"]))
    scaled = write_score(tmp_path / "b", 5 * truth["score"] + 1, method="x")
    other = run(tmp_path, "lds", truth["lds"], scaled, method="x")
    assert [r["ci_low"] for r in one] == [r["ci_low"] for r in other]
    moved = run(tmp_path, "lds", truth["lds"], write_score(tmp_path / "a", truth["score"]), seed=4)
    assert cell(moved, "mean", "all")["value"] == cell(one, "mean", "all")["value"]
    assert cell(moved, "mean", "all")["ci_low"] != cell(one, "mean", "all")["ci_low"]


@pytest.mark.parametrize("metric", ["lds", "loo", "pbrf"])
@pytest.mark.parametrize("size", [1, 500, 5000])  # bytes; a test sample's columns take 720 or more
def test_blocks_of_any_size_change_nothing(tmp_path, truth, metric, size, monkeypatch):
    other = truth["score"] + np.random.default_rng(1).normal(size=(TRAIN, TEST))
    other[3, 5] = np.nan
    rng = np.random.default_rng(2)
    train, test = rng.permutation(TRAIN), rng.permutation(TEST)
    scores = [
        write_score(tmp_path / "a", truth["score"], "damping=1"),
        write_score(
            tmp_path / "b", other[train][:, test], "damping=2", TRAIN_ID[train], TEST_ID[test]
        ),
    ]
    rows = run(tmp_path, metric, truth[metric], *scores)
    assert cell(rows, "mean", "all", "damping=2")["n_nan"] == "1"
    monkeypatch.setattr(artefacts, "BLOCK_BYTES", size)
    monkeypatch.setattr(evaluate_module, "_BLOCK_BYTES", size)
    monkeypatch.setattr(uncertainty, "_CHUNK_BYTES", size)
    assert run(tmp_path, metric, truth[metric], *scores) == rows


@pytest.mark.parametrize("size", [2, 24, 501])
def test_the_halves_are_disjoint_cover_all_and_are_stable(size):
    halves = split(np.arange(size), "toy", 0)
    assert not (halves["select"] & halves["report"]).any()
    assert (halves["select"] | halves["report"]).all()
    assert halves["all"].all()
    assert halves["select"].sum() == size // 2
    again = split(np.arange(size), "toy", 0)
    np.testing.assert_array_equal(again["select"], halves["select"])
    if size > 2:
        assert (split(np.arange(size), "other", 0)["select"] != halves["select"]).any()
        assert (split(np.arange(size), "toy", 1)["select"] != halves["select"]).any()


@pytest.mark.parametrize(
    ("metric", "part", "message"),
    [
        ("lds", "train", r"no score for train ids 100, 103"),
        ("loo", "train", r"no score for train ids 100, 103"),
        ("pbrf", "train", r"no score for train ids 100, 103"),
        ("lds", "test", r"no score for test ids 7, 10"),
    ],
)
def test_missing_ids_are_named(tmp_path, truth, metric, part, message):
    keep_train = np.setdiff1d(np.arange(TRAIN), [0, 3] if part == "train" else [])
    keep_test = np.setdiff1d(np.arange(TEST), [0, 3] if part == "test" else [])
    path = write_score(
        tmp_path / "short",
        truth["score"][keep_train][:, keep_test],
        train_id=TRAIN_ID[keep_train],
        test_id=TEST_ID[keep_test],
    )
    with pytest.raises(LeaveoutError, match=rf"short: {message}"):
        run(tmp_path, metric, truth[metric], path)


def test_scores_of_other_training_samples_do_not_fit_lds_but_loo_may_remove_a_few(tmp_path, truth):
    wide = np.vstack([truth["score"], truth["score"][:1]])
    path = write_score(tmp_path / "wide", wide, train_id=np.append(TRAIN_ID, 999))
    with pytest.raises(LeaveoutError, match=r"wide: scores train ids 999"):
        run(tmp_path, "lds", truth["lds"], path)
    narrow = write_score(tmp_path / "narrow", truth["score"])
    rows = run(tmp_path, "loo", truth["loo"], path)
    assert rows == run(tmp_path, "loo", truth["loo"], narrow)


def test_wrong_inputs_are_errors_that_name_the_file(tmp_path, truth):
    score = write_score(tmp_path / "a", truth["score"])
    with pytest.raises(LeaveoutError, match="method is 'grad_dot', expected 'tracin'"):
        run(tmp_path, "lds", truth["lds"], score, method="tracin")
    with pytest.raises(LeaveoutError, match="'default' is also the label"):
        run(tmp_path, "lds", truth["lds"], score, write_score(tmp_path / "b", truth["score"]))
    with pytest.raises(LeaveoutError, match="no score file"):
        run(tmp_path, "lds", truth["lds"])
    twice = write_score(tmp_path / "twice", truth["score"], test_id=np.zeros(TEST, dtype=int))
    with pytest.raises(LeaveoutError, match="twice: test_id"):
        run(tmp_path, "lds", truth["lds"], twice)
    with pytest.raises(LeaveoutError, match="has no array 'mask'"):
        run(tmp_path, "lds", {k: v for k, v in truth["lds"].items() if k != "mask"}, score)
    with pytest.raises(LeaveoutError, match="has no array 'converged'"):
        run(tmp_path, "pbrf", {k: v for k, v in truth["pbrf"].items() if k != "converged"}, score)
    with pytest.raises(LeaveoutError, match="gone: no such file"):
        run(tmp_path, "lds", truth["lds"], tmp_path / "gone")
    asked = {"setting": "toy", "method": "m", "root_seed": 0, "bootstrap": 5}
    with pytest.raises(LeaveoutError, match="unknown 'auc'"):
        evaluate("auc", score, [score], [], **asked)
    loo_truth = write_truth(tmp_path / "truth", "loo", truth["loo"])
    with pytest.raises(LeaveoutError, match="kind 'loo', expected 'lds'"):
        evaluate("lds", loo_truth, [score], [], **asked)


@pytest.fixture
def unsteady():
    """A bank in which some samples steady training: where they are kept, runs differ less."""
    rng = np.random.default_rng(11)
    units, runs = 60, 16
    calm = rng.normal(size=(TRAIN, TEST))
    mask = (np.argsort(rng.random((units, TRAIN)), axis=1) < TRAIN // 2).astype(np.uint8)
    spread = np.exp(-(mask @ calm - calm.sum(axis=0) / 2) / 8)
    target = 5 + spread[:, None] * rng.normal(size=(units, runs, TEST))
    tensors = {
        "target": target,
        "mask": mask,
        "train_id": TRAIN_ID,
        "test_id": TEST_ID,
        "subset_id": np.arange(units),
    }
    return calm, tensors


def evaluate_variance(tmp_path, tensors, score, **options):
    path = write_truth(tmp_path / "truth", "lds", tensors)
    scores = [write_score(tmp_path / "s", score)]
    asked = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 30}
    return rows_of(evaluate("lds_variance", path, scores, [], **asked, **options))


def test_lds_variance_finds_the_samples_that_steady_training(tmp_path, unsteady):
    calm, tensors = unsteady
    row = cell(evaluate_variance(tmp_path, tensors, calm), "mean", "all")
    variance = tensors["target"].var(axis=1, ddof=1)
    expected = lds(calm, tensors["mask"], variance).mean()
    assert float(row["value"]) == pytest.approx(expected, abs=6e-7)
    assert expected > 0.6
    assert (row["n_runs"], row["n_samples"], row["ceiling_note"]) == ("16", "60", "")
    # scores that know the truth reach the ceiling: 24 x 60 correlations, 7 against 15 degrees of
    # freedom, and Spearman-Brown is exact for Pearson and normal errors only
    assert float(row["value"]) == pytest.approx(float(row["ceiling"]), abs=0.05)
    half = tensors["target"][:, :8], tensors["target"][:, 8:]
    agreement = np.mean([lds_of(*(h.var(axis=1, ddof=1)[:, j] for h in half)) for j in range(TEST)])
    worth = 15 / 7
    top = np.sqrt(worth * agreement / (1 + (worth - 1) * agreement))
    assert float(row["ceiling"]) == pytest.approx(top, abs=1e-6)
    # the mean says nothing of it
    mean = run(tmp_path, "lds", tensors, tmp_path / "s")
    assert abs(float(cell(mean, "mean", "all")["value"])) < 0.15
    turned = cell(evaluate_variance(tmp_path, tensors, -calm), "mean", "all")
    assert float(turned["value"]) == pytest.approx(-float(row["value"]), abs=1e-6)


def lds_of(one, other):
    from scipy.stats import spearmanr

    return spearmanr(one, other).statistic


def test_lds_variance_of_few_runs(tmp_path, unsteady):
    calm, tensors = unsteady
    few = tensors | {"target": tensors["target"][:, :3]}
    row = cell(evaluate_variance(tmp_path, few, calm), "mean", "all")
    assert (row["ceiling"], row["n_runs"]) == ("nan", "3")
    assert "four or more give a ceiling" in row["ceiling_note"]
    assert 0 < float(row["value"]) < 1
    one = tensors | {"target": tensors["target"][:, :1]}
    with pytest.raises(LeaveoutError, match="truth: one run of each subset has no variance"):
        evaluate_variance(tmp_path, one, calm)


@pytest.mark.parametrize("metric", ["lds_pearson", "lds_kendall", "loo_kendall", "loo_topk"])
def test_variants_differ_in_the_correlation_alone(tmp_path, truth, metric):
    reference = {
        "lds_pearson": lambda a, b: stats.pearsonr(a, b).statistic,
        "lds_kendall": lambda a, b: stats.kendalltau(a, b).statistic,
        "loo_kendall": lambda a, b: stats.kendalltau(a, b).statistic,
        "loo_topk": lambda a, b: len({*np.argsort(a)[-5:]} & {*np.argsort(b)[-5:]}) / 5,
    }[metric]
    base = metric[:3]
    noisy = truth["score"] + np.random.default_rng(1).normal(size=(TRAIN, TEST))
    path = write_truth(tmp_path / f"{base}.safetensors", base, truth[base])
    score = write_score(tmp_path / "a", noisy)
    asked = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 50, "top_k": 5}
    rows = rows_of(evaluate(metric, path, [score], [], **asked))
    tensors = truth[base]
    outcome = -tensors["target"] if base == "lds" else tensors["target"] - tensors["full_target"]
    x = tensors["mask"] @ noisy if base == "lds" else noisy
    y = outcome.mean(axis=1)
    for half, members in split(TEST_ID, "toy", 3).items():
        row = cell(rows, "mean", half)
        expected = np.mean([reference(x[:, j], y[:, j]) for j in np.flatnonzero(members)])
        assert float(row["value"]) == pytest.approx(expected, abs=1e-6)
        assert float(row["ci_low"]) < expected < float(row["ci_high"])
        assert row["metric"] == metric
        assert np.isnan(float(row["ceiling"])) == (metric == "loo_topk")
    assert ("overlap" in row["ceiling_note"]) == (metric == "loo_topk")


def test_constant_scores_have_the_top_k_of_chance(tmp_path, truth):
    path = write_truth(tmp_path / "loo.safetensors", "loo", truth["loo"])
    scores = [write_score(tmp_path / "a", np.zeros((TRAIN, TEST)))]
    names = {"setting": "toy", "method": "grad_dot", "root_seed": 3, "bootstrap": 20}
    row = cell(rows_of(evaluate("loo_topk", path, scores, [], top_k=10, **names)), "mean", "all")
    assert (row["value"], row["n_nan"], row["n_constant"]) == ("0.250000", "0", "0")
    with pytest.raises(LeaveoutError, match="40 samples were left out; the 40 that matter most"):
        evaluate("loo_topk", path, scores, [], top_k=40, **names)
