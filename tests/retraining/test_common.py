from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from job_keys import prepare_key
from leaveout.config import Setting
from leaveout.data import sources
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError
from leaveout.retraining.common import load_data, train_targets
from leaveout.store import artefacts
from leaveout.store.artefacts import CorruptArtefactError
from leaveout.store.contents import save
from leaveout.training.trials import Trial

Make = Callable[..., Setting]


def write(setting: Setting, path: Path) -> None:
    save(path, prepare(setting), {"key": prepare_key(setting)})


def test_inputs_are_normalised_to_the_bit(make_setting: Make, tmp_path: Path) -> None:
    setting = make_setting(
        dataset={"name": "mnist", "n_train": 30, "n_test": 5, "mean": 0.1307, "std": 0.3081}
    )
    write(setting, tmp_path / "data.safetensors")
    data = load_data(setting, tmp_path / "data.safetensors", "cpu")
    raw = sources.load("mnist", "bundled", 30, 5)
    for samples, pixels in ((data.train, raw.train_inputs), (data.test, raw.test_inputs)):
        expected = pixels.astype(np.float32) / np.float32(255)
        expected = ((expected - np.float32(0.1307)) / np.float32(0.3081))[:, None]
        assert samples.inputs.dtype == torch.float32
        assert samples.inputs.numpy().tobytes() == expected.tobytes()
        assert samples.inputs.shape == expected.shape


def test_data_that_do_not_say_what_they_are_are_refused(make_setting: Make, tmp_path: Path) -> None:
    save(tmp_path / "data", prepare(make_setting()))
    with pytest.raises(LeaveoutError, match="it was prepared from None"):
        load_data(make_setting(), tmp_path / "data", "cpu")


def test_data_without_its_scale_are_refused(make_setting: Make, data: Path, tmp_path: Path) -> None:
    read = artefacts.read(data)
    meta = {key: value for key, value in read.meta.items() if key != "pixels"}
    artefacts.write(tmp_path / "old.safetensors", "data", read.tensors, read.dims, meta)
    with pytest.raises(CorruptArtefactError, match=r"old\.safetensors: an older version"):
        load_data(make_setting(), tmp_path / "old.safetensors", "cpu")


@pytest.mark.parametrize(
    "change",
    [{"n_train": 31}, {"std": 2.0}, {"classes": (3, 8)}, {"label_noise": {"fraction": 0.1}}],
    ids=str,
)
def test_data_of_another_setting_is_refused(
    make_setting: Make, data: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(LeaveoutError, match=r"data.safetensors: it was prepared from .* asks for"):
        load_data(make_setting(dataset=change), data, "cpu")


def test_noise_of_another_seed_is_refused(make_setting: Make, tmp_path: Path) -> None:
    noise = {"label_noise": {"fraction": 0.1}}
    write(make_setting(dataset=noise), tmp_path / "data")
    load_data(make_setting(dataset=noise, name="other"), tmp_path / "data", "cpu")
    with pytest.raises(LeaveoutError, match="it was prepared from"):
        load_data(make_setting(dataset=noise, seed=4), tmp_path / "data", "cpu")


def test_data_of_another_kind_is_refused(make_setting: Make, data: Path, tmp_path: Path) -> None:
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
