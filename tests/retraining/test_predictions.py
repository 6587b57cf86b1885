from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.retraining.models import train_models
from leaveout.retraining.predictions import margins, predict
from leaveout.store import artefacts
from leaveout.store.contents import save


def test_margins_are_the_lead_of_the_right_class() -> None:
    outputs = torch.tensor([[[3.0, 1.0, 2.5], [0.0, 4.0, 1.0]], [[1.0, 1.0, 0.0], [5.0, 2.0, 6.0]]])
    found = margins(outputs, torch.tensor([0, 2]))
    assert found.tolist() == [[0.5, -3.0], [0.0, 1.0]]
    assert found.dtype == torch.float64


def test_full_models_say_what_they_say_alone(
    make_setting: Callable[..., Setting], data: Path, tmp_path: Path, alone: Any
) -> None:
    setting = make_setting(model={"name": "cnn", "channels": (3,), "batch_norm": True})
    paths = [tmp_path / f"{name}.safetensors" for name in "01"]
    for name, path in zip("01", paths, strict=True):
        save(path, train_models(setting, "full", name, data, "cpu"))
    said = predict(setting, data, paths[::-1], "cpu").tensors
    labels = artefacts.read(data).tensors["test_labels"]
    np.testing.assert_array_equal(said["label"], labels)
    assert said["run_id"].tolist() == [0, 1, 2]
    for run in range(3):
        _, losses = alone(setting, ("tiny", "full", run))
        np.testing.assert_allclose(said["loss"][run], losses, atol=1e-5)
    right = said["predicted"] == labels
    np.testing.assert_array_equal(right, said["margin"] > 0)
    assert 0 < right.mean() < 1
    with pytest.raises(LeaveoutError, match="full run 0 is in another file too"):
        predict(setting, data, [paths[0], paths[0]], "cpu")
