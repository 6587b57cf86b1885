from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout import artefacts
from leaveout.config import Setting
from leaveout.data import mnist
from leaveout.data.prepare import prepare

MNIST = {"name": "mnist", "n_train": 40, "n_test": 7, "mean": 0.1307, "std": 0.3081}


def test_pixels_stay_the_bytes_of_their_source(
    make_setting: Callable[..., Setting], tmp_path: Path
) -> None:
    prepare(make_setting(dataset=MNIST), tmp_path / "data.safetensors")
    found = artefacts.read(tmp_path / "data.safetensors", "data")
    raw = mnist.read_slice()
    assert found.tensors["train_inputs"].dtype == np.uint8
    np.testing.assert_array_equal(found.tensors["train_inputs"], raw["train_inputs"][:40])
    np.testing.assert_array_equal(found.tensors["test_inputs"], raw["test_inputs"][:7])
    np.testing.assert_array_equal(found.tensors["train_labels"], raw["train_labels"][:40])
    assert found.dims["train_inputs"] == ("train", "height", "width")
    assert found.meta["pixels"] == {"full_scale": 255, "mean": 0.1307, "std": 0.3081}
    assert found.path.stat().st_size < 47 * (28 * 28 + 2 * 8) + 4096  # samples and a header


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_pixels_keep_their_own_type(
    make_setting: Callable[..., Setting],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: type,
) -> None:
    from leaveout.data import digits

    load = digits.load

    def retyped(n_train: int, n_test: int):
        raw = load(n_train, n_test)
        for part in ("train_inputs", "test_inputs"):
            object.__setattr__(raw, part, getattr(raw, part).astype(dtype))
        return raw

    monkeypatch.setattr(digits, "load", retyped)
    prepare(make_setting(), tmp_path / "data.safetensors")
    found = artefacts.read(tmp_path / "data.safetensors", "data")
    assert found.tensors["train_inputs"].dtype == found.tensors["test_inputs"].dtype == dtype
    np.testing.assert_array_equal(found.tensors["train_inputs"], load(30, 6).train_inputs)
