from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job_keys import train_key
from leaveout.config import Setting
from leaveout.retraining.items import chunks
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.subsets import subset_mask
from leaveout.store import artefacts

Make = Callable[..., Setting]


def bank(setting: Setting, data: Path) -> dict[str, np.ndarray]:
    """Train all chunks and put them together: targets are (subset, run, test)."""
    runs: dict[int, list[Any]] = {}
    for name in chunks(setting, "lds"):
        part = retrain_lds(setting, name, data, "cpu").tensors
        runs.setdefault(int(part["run_id"][0]), []).append(part)
    found = {
        name: np.stack([np.concatenate([p[name] for p in parts]) for parts in runs.values()], 1)
        for name in ("target", "mask", "subset_id")
    }
    for name in ("mask", "subset_id"):  # the same in every run
        assert (found[name] == found[name][:, :1]).all()
    return {name: a if name == "target" else a[:, 0] for name, a in found.items()}


@pytest.mark.parametrize("pairing", ["none", "drop"])
def test_targets_are_the_losses_of_models_trained_without_what_is_masked(
    make_setting: Make, data: Path, alone: Any, pairing: str
) -> None:
    setting = make_setting(
        model={"name": "mlp", "hidden": [6], "dropout": 0.2}, lds={"pairing": pairing}
    )
    found = bank(setting, data)
    assert found["subset_id"].tolist() == list(range(5))
    assert found["target"].shape == (5, 2, 6)
    for subset in range(5):
        mask = subset_mask(setting, "lds", subset)
        np.testing.assert_array_equal(found["mask"][subset].astype(bool), mask)
        for run in range(2):
            identity = ("tiny", "lds", subset, run) if pairing == "none" else ("tiny", "full", run)
            _, losses = alone(setting, identity, kept=np.flatnonzero(mask))
            np.testing.assert_allclose(found["target"][subset, run], losses, atol=1e-5)
    # two runs of one subset differ, and so do two subsets of one run
    assert np.abs(found["target"][:, 0] - found["target"][:, 1]).max(axis=1).min() > 1e-3
    assert np.abs(np.diff(found["target"][:, 0], axis=0)).max(axis=1).min() > 1e-3


def test_chunks_change_no_target(make_setting: Make, data: Path) -> None:
    whole = bank(make_setting(lds={"chunk": 5}), data)
    cut = bank(make_setting(lds={"chunk": 2}), data)
    np.testing.assert_allclose(cut["target"], whole["target"], atol=1e-5)
    np.testing.assert_array_equal(cut["mask"], whole["mask"])


@pytest.mark.parametrize("more", [{"subsets": 50}, {"runs": 3}], ids=str)
def test_a_larger_bank_leaves_what_is_there_as_it_is(
    make_setting: Make, data: Path, more: dict[str, int]
) -> None:
    settings = make_setting(), make_setting(lds=more)
    first, second = (retrain_lds(setting, "1-1", data, "cpu") for setting in settings)
    assert artefacts.digest(first.tensors) == artefacts.digest(second.tensors)
    assert first.facts == second.facts
    assert len({train_key(setting, "lds", "1-1") for setting in settings}) == 1
