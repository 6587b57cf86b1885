from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from leaveout.config import Setting
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError

Make = Callable[..., Setting]
TABLES = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "wine": load_wine}


def table(make_setting: Make, name: str, n_train: int = 100, n_test: int = 30, **more: Any) -> Any:
    objective = {"name": "squared_error" if name == "diabetes" else "cross_entropy"}
    seed = more.pop("seed", 3)
    dataset = {"name": name, "n_train": n_train, "n_test": n_test, **more}
    return prepare(make_setting(dataset=dataset, objective=objective, seed=seed))


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_scikit_learns_by_id_and_standardised(make_setting: Make, name: str) -> None:
    found, whole = table(make_setting, name).tensors, TABLES[name]()
    train, test = found["train_id"], found["test_id"]
    assert (len(train), len(test), len({*train, *test})) == (100, 30, 130)
    assert (np.diff(train) > 0).all()
    mean, deviation = whole.data[train].mean(0), whole.data[train].std(0)
    for part, ids in (("train", train), ("test", test)):
        wanted = (whole.data[ids] - mean) / deviation
        np.testing.assert_allclose(found[f"{part}_inputs"], wanted, atol=1e-5)
        assert found[f"{part}_inputs"].dtype == np.float32
        if name == "diabetes":
            known = whole.target[train]
            wanted = (whole.target[ids] - known.mean()) / known.std()
            np.testing.assert_allclose(found[f"{part}_targets"], wanted, atol=1e-5)
            assert "train_labels" not in found
        else:
            np.testing.assert_array_equal(found[f"{part}_labels"], whole.target[ids])


def test_the_split_does_not_follow_the_order_of_the_file(make_setting: Make) -> None:
    labels = table(make_setting, "wine").tensors["train_labels"]  # the file is sorted by class
    assert np.bincount(labels, minlength=3).min() > 20


def test_more_training_samples_keep_the_test_samples_and_the_others(make_setting: Make) -> None:
    few, many = (table(make_setting, "wine", n).tensors for n in (60, 120))
    np.testing.assert_array_equal(few["test_id"], many["test_id"])
    assert {*few["train_id"]} < {*many["train_id"]}
    other = table(make_setting, "wine", 60, seed=4).tensors
    np.testing.assert_array_equal(few["train_id"], other["train_id"])


def test_some_classes_of_a_table(make_setting: Make) -> None:
    found, whole = table(make_setting, "wine", 60, classes=(2, 0)), load_wine()
    np.testing.assert_array_equal(
        found.tensors["train_labels"], np.where(whole.target[found.tensors["train_id"]] == 2, 0, 1)
    )
    assert found.facts["n_classes"] == 2


def test_flipped_labels_of_a_table(make_setting: Make) -> None:
    found = table(make_setting, "breast_cancer", label_noise={"fraction": 0.1}).tensors
    whole = load_breast_cancer().target[found["train_id"]]
    changed = found["train_id"][found["train_labels"] != whole]
    assert changed.tolist() == found["flipped_id"].tolist()
    assert len(changed) == 10


def test_too_many(make_setting: Make) -> None:
    with pytest.raises(LeaveoutError, match=r"n_test: 30 is more than the 28 of .*178 at most"):
        table(make_setting, "wine", 150)
    with pytest.raises(LeaveoutError, match=r"n_train: 178 is more than the 177"):
        table(make_setting, "wine", 178)
