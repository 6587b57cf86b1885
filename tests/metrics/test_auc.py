from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from leaveout.errors import LeaveoutError
from leaveout.metrics.auc import (
    auc,
    bootstrap_interval,
    bootstrap_replicates,
    evaluate_auc,
    halves,
    rounded,
    weighted_auc,
)
from leaveout.metrics.evaluate import COLUMNS
from leaveout.seeds import generator
from leaveout.store import artefacts

RNG = np.random.default_rng(0)
POSITIVE = RNG.permutation(np.arange(200) < 30)


@pytest.mark.parametrize("levels", [2, 5, 50, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_against_scikit_learn_with_few_and_with_many_ties(levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(levels, size=200) + 0.3 * levels * POSITIVE * (seed % 2)
    found = auc(score.astype(np.float64), POSITIVE)
    assert found == pytest.approx(roc_auc_score(POSITIVE, score), abs=1e-13)


def test_constant_scores_are_chance_in_either_order() -> None:
    for positive in (POSITIVE, np.sort(POSITIVE), np.sort(POSITIVE)[::-1]):
        assert auc(np.ones(200), positive) == 0.5
        assert bootstrap_interval(
            bootstrap_replicates(np.ones(200), positive, 50, generator(0))
        ) == (0.5, 0.5)


def test_scores_that_differ_by_rounding_are_constant_and_no_others() -> None:
    noise = RNG.standard_normal(200)
    cosines = (1 + 1e-7 * noise).astype(np.float32)
    assert len(np.unique(cosines)) > 1
    assert auc(rounded(cosines), POSITIVE) == 0.5
    for score in (1 + 1e-3 * noise, 1e-30 * noise, noise):
        np.testing.assert_array_equal(rounded(score), score)
    assert len(rounded(np.empty(0))) == 0


def test_perfect_wrong_and_random() -> None:
    assert auc(POSITIVE + 0.5 * RNG.random(200), POSITIVE) == 1.0
    assert auc(0.5 * RNG.random(200) - POSITIVE, POSITIVE) == 0.0
    values = [auc(np.random.default_rng(k).standard_normal(200), POSITIVE) for k in range(400)]
    # the variance of the Mann-Whitney statistic, and four standard errors of a mean of 400
    error = np.sqrt((200 + 1) / (12 * 30 * 170))
    assert abs(np.mean(values) - 0.5) < 4 * error / 20
    assert np.std(values) == pytest.approx(error, rel=0.15)


def test_a_score_that_is_nan_has_no_rank_and_leaves_none() -> None:
    score = RNG.standard_normal(200) + 1.5 * POSITIVE
    for positive in (True, False):  # of either class
        broken = score.copy()
        broken[np.flatnonzero(positive == POSITIVE)[3]] = np.nan
        assert np.isnan(auc(broken, POSITIVE))
    assert np.isnan(auc(np.full(200, np.nan), POSITIVE))
    # a replicate that does not draw it has a value, as if it were not there
    counts = RNG.integers(3, size=(200, 40))
    found = weighted_auc(broken, POSITIVE, counts)
    missed = counts[np.isnan(broken)][0] == 0
    assert 5 < missed.sum() < 25
    np.testing.assert_array_equal(np.isfinite(found), missed)
    known = np.isfinite(broken)
    expected = weighted_auc(broken[known], POSITIVE[known], counts[known])
    np.testing.assert_array_equal(found[missed], expected[missed])


def test_neither_order_nor_a_rising_function_of_the_scores_changes_it() -> None:
    score = RNG.integers(20, size=200) + 5.0 * POSITIVE
    order = RNG.permutation(200)
    found = auc(score, POSITIVE)
    assert 0.5 < found < 1
    assert auc(score[order], POSITIVE[order]) == found
    assert auc(np.exp(score), POSITIVE) == found
    assert auc(-score, ~POSITIVE) == pytest.approx(found, abs=1e-15)
    assert auc(-score, POSITIVE) == pytest.approx(1 - found, abs=1e-15)


def test_weights_are_copies() -> None:
    score = RNG.integers(20, size=200) + 5.0 * POSITIVE
    counts = RNG.integers(4, size=(200, 6))
    copied = [auc(np.repeat(score, c), np.repeat(POSITIVE, c)) for c in counts.T]
    np.testing.assert_allclose(weighted_auc(score, POSITIVE, counts), copied, rtol=1e-14)
    assert len(set(copied)) == 6


def test_without_one_of_the_classes_there_is_none() -> None:
    for positive in (np.zeros(5, bool), np.ones(5, bool)):
        assert np.isnan(auc(np.arange(5.0), positive))
        assert np.isnan(bootstrap_replicates(np.arange(5.0), positive, 10, generator(0))).all()
    assert np.isnan(auc(np.empty(0), np.empty(0, bool)))


def test_intervals_hold_the_truth() -> None:
    """Two normal distributions a standard deviation apart have an AUC of Phi(1 / sqrt 2)."""
    from scipy.stats import norm

    truth, held, rounds = norm.cdf(1 / np.sqrt(2)), 0, 200
    for k in range(rounds):
        rng = np.random.default_rng(k)
        score = rng.standard_normal(200) + POSITIVE
        low, high = bootstrap_interval(bootstrap_replicates(score, POSITIVE, 200, rng))
        held += low <= truth <= high
    # .95 and four standard deviations of such a share (.015), and the interval's own error
    assert held / rounds > 0.88
    assert held < rounds


def test_halves_share_the_flipped_and_nothing_else() -> None:
    found = halves(POSITIVE, "s", 0)
    assert set(found) == {"select", "report", "all"}
    np.testing.assert_array_equal(found["select"], ~found["report"])
    assert found["all"].all()
    assert [int(part[POSITIVE].sum()) for part in found.values()] == [15, 15, 30]
    assert [int(part.sum()) for part in found.values()] == [100, 100, 200]
    for other in (halves(POSITIVE, "t", 0), halves(POSITIVE, "s", 1)):
        assert (other["select"] != found["select"]).any()


# files


def write_data(path: Path, flipped: NDArray[np.int64], order: NDArray[np.int64]) -> Path:
    tensors = {"train_id": 3 * order, "flipped_id": 3 * flipped}
    dims = {"train_id": ("train",), "flipped_id": ("flipped",)}
    artefacts.write(path, "data", tensors, dims, {})
    return path


def write_scores(path: Path, label: str, score: NDArray[Any], order: Any, **more: Any) -> Path:
    tensors = {"train_id": 3 * order, "self_influence": score[order].astype(np.float32)}
    if more:
        del tensors["self_influence"]
    meta = {"setting": "toy", "method": "m", "label": label, **more}
    artefacts.write(path, "self_influence", tensors, dict.fromkeys(tensors, ("train",)), meta)
    return path


def run(folder: Path, data: Path, scores: list[Path], **more: Any) -> list[dict[str, str]]:
    asked = {"setting": "toy", "method": "m", "root_seed": 0, "bootstrap": 20, **more}
    found = evaluate_auc(data, scores, [], **asked)
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    assert tuple(rows[0]) == COLUMNS
    draws = found["draws"]
    (row,) = (
        row for row in rows
        if (row["truth"], row["half"], row["params"]) == ("mean", "report", draws.facts["label"])
    )  # fmt: skip
    drawn = draws.tensors["replicate"].astype(np.float64)
    assert drawn.shape == (asked["bootstrap"],)
    np.testing.assert_allclose(
        bootstrap_interval(drawn),
        (float(row["ci_low"]), float(row["ci_high"])),
        atol=1e-6,  # written to six decimals
    )
    assert draws.facts["points"].keys() == {row["params"] for row in rows}
    if len(scores) > 1:  # each grid point has its own draws, whichever is chosen
        for score in scores:
            run(folder, data, [score], **more)
    return rows


SCORE = RNG.standard_normal(200) + 1.5 * POSITIVE
IN_ORDER = np.arange(200)


def test_a_file_has_a_row_for_each_point_truth_and_half(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.safetensors", np.flatnonzero(POSITIVE), IN_ORDER)
    scores = [
        write_scores(tmp_path / "a.safetensors", "a=1", SCORE, IN_ORDER),
        write_scores(tmp_path / "b.safetensors", "a=2", -SCORE, IN_ORDER),
    ]
    rows = run(tmp_path, data, scores)
    assert len(rows) == 12
    parts = halves(POSITIVE, "toy", 0)
    for row in rows:
        part = parts[row["half"]]
        sign = 1 if row["params"] == "a=1" else -1
        expected = roc_auc_score(POSITIVE[part], sign * SCORE[part].astype(np.float32))
        assert float(row["value"]) == pytest.approx(expected, abs=5e-7)  # six decimals
        assert float(row["ci_low"]) < float(row["value"]) < float(row["ci_high"])
        assert (row["metric"], row["n_nan"], row["not_computed"]) == ("auc", "0", "")
        assert (int(row["n_test"]), int(row["n_samples"])) == (part.sum(), POSITIVE[part].sum())
    single, mean = (
        [{**row, "truth": ""} for row in rows if row["truth"] == truth]
        for truth in ("single", "mean")
    )
    assert single == mean


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    order = RNG.permutation(200)
    found = []
    for name, rows, turned in (("a", IN_ORDER, IN_ORDER), ("b", order, order[::-1])):
        data = write_data(tmp_path / f"{name}.safetensors", np.flatnonzero(POSITIVE), rows)
        score = write_scores(tmp_path / f"{name}s.safetensors", "default", SCORE, turned)
        found.append(run(tmp_path, data, [score]))
    assert found[0] == found[1]


def test_nan_is_counted_and_not_ranked(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.safetensors", np.flatnonzero(POSITIVE), IN_ORDER)
    broken = SCORE.copy()
    broken[[3, 50]], broken[120] = np.nan, np.inf
    score = write_scores(tmp_path / "s.safetensors", "default", broken, IN_ORDER)
    row = next(row for row in run(tmp_path, data, [score]) if row["half"] == "all")
    known = np.isfinite(broken)
    expected = roc_auc_score(POSITIVE[known], broken[known].astype(np.float32))
    assert float(row["value"]) == pytest.approx(expected, abs=5e-7)
    assert (row["n_test"], row["n_nan"]) == ("200", "3")
    nothing = write_scores(tmp_path / "n.safetensors", "default", np.full(200, np.nan), IN_ORDER)
    for row in run(tmp_path, data, [nothing]):
        assert (row["value"], row["ci_low"], row["n_nan"]) == ("nan", "nan", row["n_test"])


def test_a_method_that_was_not_computed_says_why(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.safetensors", np.flatnonzero(POSITIVE), IN_ORDER)
    why = {"reason": "memory", "detail": "96 GB"}
    one = write_scores(tmp_path / "a.safetensors", "a=1", SCORE, IN_ORDER, not_computed=why)
    two = write_scores(tmp_path / "b.safetensors", "a=2", SCORE, IN_ORDER)
    rows = run(tmp_path, data, [one, two])
    assert {row["not_computed"] for row in rows if row["params"] == "a=1"} == {"memory: 96 GB"}
    assert {row["value"] for row in rows if row["params"] == "a=1"} == {"nan"}
    assert not {row["value"] for row in rows if row["params"] == "a=2"} & {"nan"}


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    clean = write_data(tmp_path / "c.safetensors", np.empty(0, np.int64), IN_ORDER)
    data = write_data(tmp_path / "d.safetensors", np.flatnonzero(POSITIVE), IN_ORDER)
    other = write_data(tmp_path / "o.safetensors", np.flatnonzero(POSITIVE), IN_ORDER + 1)
    score = write_scores(tmp_path / "s.safetensors", "default", SCORE, IN_ORDER)
    for arguments, message in (
        ((clean, [score]), "no label was flipped"),
        ((other, [score]), r"its train ids are not those of .*\(for example 0, 600\)"),
        ((data, [data]), "kind 'data', expected 'self_influence'"),
        ((data, [score, score]), "is also the label"),
        ((data, []), "no score file"),
    ):
        with pytest.raises(LeaveoutError, match=message):
            run(tmp_path, *arguments)
    with pytest.raises(LeaveoutError, match="its method is 'm', expected 'n'"):
        run(tmp_path, data, [score], method="n")
