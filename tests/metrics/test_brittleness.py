from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy import stats

from leaveout.errors import LeaveoutError
from leaveout.metrics.brittleness import COLUMNS, evaluate_brittleness, wilson
from leaveout.store import artefacts

TESTS, SIZES, RUNS = 12, 2, 3
DIMS = {
    **dict.fromkeys(("loss", "margin"), ("test", "size", "run")),
    **dict.fromkeys(("full_loss", "full_margin"), ("test", "run")),
    "removed_id": ("test", "rank"),
    "k": ("size",),
    "run_id": ("run",),
    "test_id": ("test",),
}
NAMES = {"setting": "toy", "method": "grad_dot", "root_seed": 1, "bootstrap": 300}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    full_margin = rng.uniform(0.5, 2, size=(TESTS, RUNS))
    fall = np.array([0.2, 1.5])[:, None] + 0.3 * rng.normal(size=(TESTS, SIZES, RUNS))
    return {
        "margin": full_margin[:, None] - fall,
        "loss": 1 + fall + rng.normal(size=fall.shape),
        "full_margin": full_margin,
        "full_loss": np.ones((TESTS, RUNS)),
        "removed_id": np.tile(np.arange(4), (TESTS, 1)),
        "k": np.array([2, 4]),
        "run_id": np.arange(RUNS),
        "test_id": rng.permutation(100)[:TESTS],
    }


def measured(tmp_path, tensors, **meta):
    path = tmp_path / "b.safetensors"
    header = {"setting": "toy", "method": "grad_dot", "label": "a=1", "chosen_by": "lds"}
    artefacts.write(path, "brittleness", tensors, DIMS, header | meta)
    return list(csv.DictReader(io.StringIO(evaluate_brittleness(path, **NAMES))))


@pytest.mark.parametrize(("flipped", "n"), [(0, 7), (7, 7), (3, 50), (1, 1)])
def test_wilsons_interval_is_scipys(flipped, n):
    expected = stats.binomtest(flipped, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(wilson(flipped, n), [expected.low, expected.high], atol=1e-12)
    # its ends are where the share lies z standard errors off, those of the end itself
    ends, z = np.array(wilson(flipped, n)), stats.norm.ppf(0.975)
    np.testing.assert_allclose((ends - flipped / n) ** 2, z**2 * ends * (1 - ends) / n, atol=1e-12)
    assert np.isnan(wilson(0, 0)).all()


def test_shares_and_changes_are_those_of_the_means_over_runs(tmp_path):
    tensors = arrays()
    rows = measured(tmp_path, tensors)
    assert tuple(rows[0]) == COLUMNS
    assert [row["k"] for row in rows] == ["2", "4"]
    for size, row in enumerate(rows):
        flips = changes = 0
        for test in range(TESTS):
            flips += np.mean(tensors["margin"][test, size]) <= 0
            changes += np.mean(tensors["loss"][test, size] - tensors["full_loss"][test]) / TESTS
        assert float(row["flipped"]) == pytest.approx(flips / TESTS, abs=1e-6)
        assert float(row["loss_change"]) == pytest.approx(changes, abs=1e-6)
        fall = tensors["margin"][:, size].mean() - tensors["full_margin"].mean()
        assert float(row["margin_change"]) == pytest.approx(fall, abs=1e-6)
        for name in ("flipped", "loss_change", "margin_change"):
            assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
        # a percentile bootstrap of a mean: about the normal interval, to a fifth at 12 samples
        own = (tensors["loss"][:, size] - 1).mean(axis=1)
        width = float(row["loss_change_high"]) - float(row["loss_change_low"])
        assert width == pytest.approx(3.92 * own.std() / np.sqrt(TESTS), rel=0.2)
    assert 0 < float(rows[1]["flipped"]) < 1
    assert float(rows[0]["flipped"]) < float(rows[1]["flipped"])


def test_the_order_of_test_samples_changes_nothing(tmp_path):
    tensors = arrays()
    order = np.random.default_rng(2).permutation(TESTS)
    moved = {n: a[order] if DIMS[n][0] == "test" else a for n, a in tensors.items()}
    assert measured(tmp_path, moved) == measured(tmp_path, tensors)


def test_what_has_no_outcome_is_counted_and_left_out(tmp_path):
    tensors = arrays()
    tensors["margin"][3, 0, 1] = np.nan
    tensors["loss"][5, 0, 0] = np.nan
    first, second = measured(tmp_path, tensors)
    assert (first["n_test"], first["n_nan"], second["n_nan"]) == ("12", "2", "0")
    known = np.delete(np.arange(TESTS), [3, 5])
    expected = (tensors["margin"][known, 0].mean(axis=1) <= 0).mean()
    assert float(first["flipped"]) == pytest.approx(expected, abs=1e-6)
    none = tensors | {name: np.full((TESTS, SIZES, RUNS), np.nan) for name in ("loss", "margin")}
    row = measured(tmp_path, none, not_computed={"reason": "time", "detail": "too long"})[0]
    assert (row["flipped"], row["loss_change_low"], row["n_nan"]) == ("nan", "nan", "12")
    assert row["not_computed"] == "time: too long"


def test_another_methods_file_is_refused(tmp_path):
    with pytest.raises(LeaveoutError, match="its method is 'random', expected 'grad_dot'"):
        measured(tmp_path, arrays(), method="random")
