from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaveout.config import ConfigError, Setting
from leaveout.data.halves import split
from leaveout.errors import LeaveoutError
from leaveout.retraining.brittleness import drawn_tests, most_helpful, retrain_brittleness
from leaveout.retraining.models import train_models
from leaveout.retraining.predictions import predict
from leaveout.store import artefacts
from leaveout.store.contents import save

Make = Callable[..., Setting]
ASKED = {"n_test": 9, "k": (2, 5), "runs": 2}
DIMS = {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)}


@pytest.fixture(scope="module")
def setting(make_setting: Make) -> Setting:
    return make_setting(brittleness=ASKED)


@pytest.fixture(scope="module")
def said(setting: Setting, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("said")
    paths = [folder / f"{name}.safetensors" for name in "01"]
    for name, path in zip("01", paths, strict=True):
        save(path, train_models(setting, "full", name, data, "cpu"))
    save(folder / "said.safetensors", predict(setting, data, paths, "cpu"))
    return folder / "said.safetensors"


def write_score(path: Path, data: Path, score: Any, label: str = "default", **meta: Any) -> Path:
    """Write scores whose rows and columns lie in another order than the data's."""
    read = artefacts.read(data).tensors
    rows, columns = np.arange(30)[::-1], np.array([3, 0, 5, 1, 4, 2])
    tensors = {
        "score": score[rows][:, columns].astype(np.float32),
        "train_id": read["train_id"][rows],
        "test_id": read["test_id"][columns],
    }
    header = {"setting": "tiny", "method": "m", "label": label, "spec": "s", "key": "{}",
              "inputs": {}}  # fmt: skip
    artefacts.write(path, "score", tensors, DIMS, header | meta)
    return path


def test_outcomes_are_of_models_trained_without_the_top_samples(
    setting: Setting, data: Path, said: Path, tmp_path: Path, alone: Any
) -> None:
    score = np.random.default_rng(5).normal(size=(30, 6))
    path = write_score(tmp_path / "s.safetensors", data, score)
    found = retrain_brittleness(setting, "m", data, said, [path], None, "cpu")
    arrays, full = found.tensors, artefacts.read(said).tensors
    assert found.facts["chosen_by"] == "only one"
    assert found.facts["not_computed"] is None
    right = full["margin"][:2].mean(axis=0) > 0
    report = split(full["test_id"], "tiny", setting.seed)["report"]
    assert sorted(arrays["test_id"]) == full["test_id"][right & report].tolist()
    assert len(arrays["test_id"])  # else nothing is tested
    for t, name in enumerate(arrays["test_id"]):
        test = int(np.flatnonzero(full["test_id"] == name)[0])
        order = np.argsort(-score[:, test])
        np.testing.assert_array_equal(arrays["removed_id"][t], order[:5])
        np.testing.assert_array_equal(arrays["full_loss"][t], full["loss"][:2, test])
        np.testing.assert_array_equal(arrays["full_margin"][t], full["margin"][:2, test])
        for s, k in enumerate(ASKED["k"]):
            for run in range(2):
                kept = np.sort(order[k:])
                _, losses = alone(setting, ("tiny", "full", run), kept=kept)
                assert arrays["loss"][t, s, run] == pytest.approx(losses[test], abs=1e-5)
                # p / (1 - p) is at most exp(margin), and the margin is that of one class alone
                odds = np.log(np.expm1(losses[test]))
                assert arrays["margin"][t, s, run] >= -odds - 1e-4
                assert arrays["margin"][t, s, run] <= -odds + np.log(9) + 1e-4
    names = found.facts["trainings"]["models"]
    assert len(set(names)) == arrays["loss"].size
    assert all(name.startswith("full:") and " on " in name for name in names)


def test_lds_chooses_the_scores_on_the_other_half(
    setting: Setting, data: Path, said: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(6)
    scores = [rng.normal(size=(30, 6)) for _ in "ab"]
    paths = [
        write_score(tmp_path / f"{label}.safetensors", data, score, label)
        for label, score in zip("ab", scores, strict=True)
    ]
    table = tmp_path / "lds.csv"
    with table.open("w", newline="") as handle:
        rows = [("a", 0.1), ("b", 0.2)]
        csv.writer(handle).writerows(
            [("params", "truth", "half", "value"), *((p, "mean", "select", v) for p, v in rows)]
        )
    for by, label, why in ((table, "b", "lds"), (None, "a", "first of the grid")):
        found = retrain_brittleness(setting, "m", data, said, paths, by, "cpu")
        assert (found.facts["label"], found.facts["chosen_by"]) == (label, why)
        test = np.flatnonzero(
            artefacts.read(said).tensors["test_id"] == found.tensors["test_id"][0]
        )
        top = np.argsort(-scores["ab".index(label)][:, test[0]])[:5]
        np.testing.assert_array_equal(found.tensors["removed_id"][0], top)


def test_ties_are_broken_alike_for_all_methods_and_nested(setting: Setting) -> None:
    score = np.repeat([1.0, 3.0, 2.0], 10)
    first = most_helpful(setting, score, 7, 15)
    assert set(first[:10]) == set(range(10, 20))
    assert set(first[10:]) < set(range(20, 30))
    np.testing.assert_array_equal(most_helpful(setting, score * 5, 7, 12), first[:12])
    assert most_helpful(setting, score, 8, 15).tolist() != first.tolist()
    constant = np.array([most_helpful(setting, np.zeros(30), test, 5) for test in range(400)])
    # 2000 draws of 30: each about 67 times, give or take 8
    assert np.abs(np.bincount(constant.flatten(), minlength=30) - 2000 / 30).max() < 40


def test_test_samples_are_correct_ones_of_the_reported_half(make_setting: Make) -> None:
    ids = np.arange(200)
    margin = np.where(ids % 3 == 0, -1.0, 1.0)
    margin[1] = np.nan
    few, many = (
        drawn_tests(make_setting(brittleness=ASKED | {"n_test": n}), ids, margin) for n in (9, 500)
    )
    report = split(ids, "tiny", 3)["report"]
    assert sorted(many) == np.flatnonzero(report & (margin > 0)).tolist()
    np.testing.assert_array_equal(few, many[:9])


@pytest.mark.parametrize("broken", ["nan", "not computed"])
def test_where_there_are_no_scores_nothing_is_trained(
    setting: Setting, data: Path, said: Path, tmp_path: Path, broken: str
) -> None:
    score = np.random.default_rng(7).normal(size=(30, 6))
    meta = {"not_computed": {"reason": "time", "detail": "x"}} if broken != "nan" else {}
    score[4] = np.nan
    path = write_score(tmp_path / "s.safetensors", data, score, **meta)
    found = retrain_brittleness(setting, "m", data, said, [path], None, "cpu")
    assert np.isnan(found.tensors["margin"]).all()
    assert (found.tensors["removed_id"] == -1).all()
    assert found.facts["trainings"]["models"] == []
    assert found.facts["not_computed"] == meta.get("not_computed")


def test_what_does_not_fit_together_is_refused(
    setting: Setting, make_setting: Make, data: Path, said: Path, tmp_path: Path
) -> None:
    path = write_score(tmp_path / "s.safetensors", data, np.zeros((30, 6)))
    with pytest.raises(ConfigError, match="tiny: it has no section `brittleness`"):
        retrain_brittleness(make_setting(), "m", data, said, [path], None, "cpu")
    with pytest.raises(LeaveoutError, match="its method is not 'other'"):
        retrain_brittleness(setting, "other", data, said, [path], None, "cpu")
    with pytest.raises(LeaveoutError, match="give each grid point once"):
        retrain_brittleness(setting, "m", data, said, [path, path], None, "cpu")
    read = artefacts.read(path)
    artefacts.write(
        path, "score", read.tensors | {"train_id": read.tensors["train_id"] + 1}, DIMS, read.meta
    )
    with pytest.raises(LeaveoutError, match="its train ids are not those of"):
        retrain_brittleness(setting, "m", data, said, [path], None, "cpu")
