from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaveout import artefacts
from leaveout.config import Setting
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.subsets import subset_mask

Make = Callable[..., Setting]


def chunks(setting: Setting, data: Path, folder: Path) -> dict[str, np.ndarray]:
    count = -(-setting.lds.subsets // setting.lds.chunk)
    parts = []
    for number in range(count):
        out = folder / f"{setting.lds.chunk}-{setting.lds.pairing}-{number}.safetensors"
        retrain_lds(setting, number, data, out, "cpu")
        parts.append(artefacts.read(out, "lds").tensors)
    return {
        name: np.concatenate([p[name] for p in parts]) for name in ("target", "mask", "subset_id")
    }


@pytest.mark.parametrize("pairing", ["none", "drop"])
def test_targets_are_the_losses_of_models_trained_without_what_is_masked(
    make_setting: Make, data: Path, tmp_path: Path, alone: Any, pairing: str
) -> None:
    setting = make_setting(
        model={"name": "mlp", "hidden": [6], "dropout": 0.2}, lds={"pairing": pairing}
    )
    found = chunks(setting, data, tmp_path)
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


def test_chunks_change_no_target(make_setting: Make, data: Path, tmp_path: Path) -> None:
    whole = chunks(make_setting(lds={"chunk": 5}), data, tmp_path)
    cut = chunks(make_setting(lds={"chunk": 2}), data, tmp_path)
    np.testing.assert_allclose(cut["target"], whole["target"], atol=1e-5)
    np.testing.assert_array_equal(cut["mask"], whole["mask"])


def test_more_subsets_leave_the_first_ones_as_they_are(
    make_setting: Make, data: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.safetensors"
    many = tmp_path / "many.safetensors"
    retrain_lds(make_setting(), 0, data, few, "cpu")
    retrain_lds(make_setting(lds={"subsets": 50}), 0, data, many, "cpu")
    first, second = artefacts.read(few), artefacts.read(many)
    assert first.sha256 == second.sha256
    assert first.meta["key"] == second.meta["key"]
