from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job_keys import prepare_key, train_key
from leaveout.config import Setting
from leaveout.data.prepare import prepare
from leaveout.retraining.items import chunks
from leaveout.retraining.loo import loo_trial, retrain_loo
from leaveout.retraining.truth import merge_truth
from leaveout.store import artefacts
from leaveout.store.contents import save

Make = Callable[..., Setting]
MLP = {"name": "mlp", "hidden": [6], "dropout": 0.2}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("pairing", ["mask", "drop", "none"])
def test_targets_are_the_losses_without_each_sample(
    make_setting: Make, data: Path, alone: Any, pairing: str, shuffle: bool
) -> None:
    setting = make_setting(model=MLP, loo={"pairing": pairing, "shuffle": shuffle})
    for name, wanted in chunks(setting, "loo").items():
        found = retrain_loo(setting, name, data, "cpu").tensors
        run = wanted[0][1]
        assert found["removed_id"].tolist() == [i for i, _ in wanted]
        assert found["run_id"].tolist() == [run]
        full = ("tiny", "full", run)
        _, losses = alone(setting, full, shuffle=shuffle)
        np.testing.assert_allclose(found["full_target"], losses, atol=1e-5)
        for row, (i, _) in enumerate(wanted):
            others = np.delete(np.arange(30), i)
            identity, rest = {
                "mask": (full, {"removed": i}),
                "drop": (full, {"kept": others}),
                "none": (("tiny", "loo", i, run), {"kept": others}),
            }[pairing]
            _, losses = alone(setting, identity, shuffle=shuffle, **rest)
            np.testing.assert_allclose(found["target"][row], losses, atol=1e-5)
            assert np.abs(losses - found["full_target"]).max() > 1e-3


def test_with_some_classes_the_ids_are_the_official_ones(
    make_setting: Make, tmp_path: Path
) -> None:
    setting = make_setting(dataset={"classes": (3, 8)}, loo={"ids": (2, 29), "replicate": 1})
    save(tmp_path / "data", prepare(setting), {"key": prepare_key(setting)})
    train_id = artefacts.read(tmp_path / "data").tensors["train_id"]
    paths = [tmp_path / "0-0", tmp_path / "1-0"]
    for path in paths:
        save(path, retrain_loo(setting, path.name, tmp_path / "data", "cpu"))
    found = merge_truth(setting, "loo", paths).tensors
    assert found["removed_id"].tolist() == [train_id[2], train_id[29]]
    assert found["replicate_removed_id"].tolist() == [train_id[2]]
    assert (found["train_id"] == train_id).all()
    assert train_id[29] > 100  # not the places


def test_pairing_takes_initialisation_and_order_out_of_the_difference(
    make_setting: Make, data: Path
) -> None:
    spread = {}
    for pairing in ("mask", "none"):
        setting = make_setting(loo={"pairing": pairing, "chunk": 5})
        found = retrain_loo(setting, "0-0", data, "cpu").tensors
        spread[pairing] = np.abs(found["target"] - found["full_target"]).mean()
    assert spread["mask"] < spread["none"] / 2


@pytest.mark.parametrize("pairing", ["mask", "drop", "none"])
def test_a_nudged_second_run_is_the_first_one_all_but_for_rounding(
    make_setting: Make, data: Path, tmp_path: Path, pairing: str
) -> None:
    made: dict[str, list[artefacts.Artefact]] = {}
    keys = []
    for second in ("seed", "nudge"):
        loo = {"pairing": pairing, "chunk": 5, "replicate": 5, "second": second}
        setting = make_setting(model=MLP, loo=loo)
        paths = [tmp_path / f"{second}{name}" for name in ("0-0", "1-0")]
        for path in paths:
            save(path, retrain_loo(setting, path.name.removeprefix(second), data, "cpu"))
        save(tmp_path / second, merge_truth(setting, "loo", paths))
        made[second] = [artefacts.read(path) for path in (*paths, tmp_path / second)]
        keys.append([train_key(setting, "loo", name) for name in ("0-0", "1-0")])
    (first, again, truth), (same, other, _) = made["nudge"], made["seed"]
    assert keys[0][0] == keys[1][0]  # the first run is not concerned
    for name in ("target", "full_target"):
        np.testing.assert_array_equal(first.tensors[name], same.tensors[name])
        moved = np.abs(again.tensors[name] - first.tensors[name])
        assert 0 < moved.max() < 1e-4
        assert np.abs(other.tensors[name] - first.tensors[name]).max() > 0.05
    assert truth.meta["second"] == "nudge"
    names = truth.meta["trainings"]
    assert len(set(names["models"])) == 10
    assert sum(name.endswith(" nudged") for name in names["models"]) == 5


def test_chunks_change_no_target(make_setting: Make, data: Path) -> None:
    targets = []
    for chunk, count in ((5, 1), (2, 3)):
        setting = make_setting(model=MLP, loo={"chunk": chunk})
        parts = []
        for number in range(count):
            parts.append(retrain_loo(setting, f"0-{number}", data, "cpu").tensors["target"])
        targets.append(np.concatenate(parts))
    np.testing.assert_allclose(targets[1], targets[0], atol=1e-5)


def test_ids_are_looked_up_and_not_taken_for_positions(
    make_setting: Make, data: Path, shuffled: Path
) -> None:
    setting = make_setting(
        loo={"chunk": 5, "replicate": 0}, recipe={"batch_size": 30, "epochs": 5}
    )  # one batch: the order of samples cannot matter
    outs = []
    for path in (data, shuffled):
        outs.append(retrain_loo(setting, "0-0", path, "cpu").tensors["target"])
    np.testing.assert_allclose(outs[1], outs[0], atol=1e-5)
    assert np.abs(np.diff(outs[0], axis=0)).max(axis=1).min() > 1e-3


def test_the_full_run_beside_is_the_pairs_own(make_setting: Make) -> None:
    setting = make_setting(loo={"shuffle": False})
    full, one = loo_trial(setting, None, 1), loo_trial(setting, 4, 1)
    assert full.order_identity() == one.order_identity()
    assert full.init_seed() == one.init_seed()
    assert (full.removed, one.removed) == (None, 4)
    assert loo_trial(setting, None, 0).init_seed() != full.init_seed()
