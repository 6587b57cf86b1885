from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from leaveout.artefacts import CorruptArtefactError
from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.retraining.common import load_data, train_targets
from leaveout.training.trials import Trial

Make = Callable[..., Setting]


@pytest.mark.parametrize("change", [{"n_train": 31}, {"std": 2.0}])
def test_data_of_another_setting_is_refused(
    make_setting: Make, data: Path, change: dict[str, float]
) -> None:
    with pytest.raises(LeaveoutError, match=r"data.safetensors: it was prepared from .* asks for"):
        load_data(make_setting(dataset=change), data, "cpu")


def test_data_of_another_kind_is_refused(make_setting: Make, data: Path, tmp_path: Path) -> None:
    from leaveout import artefacts

    other = tmp_path / "score.safetensors"
    read = artefacts.read(data)
    artefacts.write(other, "score", read.tensors, read.dims, read.meta)
    with pytest.raises(CorruptArtefactError, match="kind 'score', expected 'data'"):
        load_data(make_setting(), other, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error_and_no_fallback(make_setting: Make, data: Path) -> None:
    with pytest.raises(LeaveoutError, match="no GPU"):
        load_data(make_setting(), data, "cuda")


def test_diverged_models_are_kept_and_counted(
    make_setting: Make, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = make_setting(
        model={"name": "mlp", "hidden": [8]}, recipe={"learning_rate": 1e30, "epochs": 3}
    )
    trials = [Trial(0, ("a", k)) for k in range(3)]
    found = train_targets(setting, load_data(setting, data, "cpu"), trials, "models")
    assert found.shape == (3, 6)
    assert np.isnan(found).any(axis=1).all()
    assert "3 of 3 models diverged" in capsys.readouterr().err
