from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leaveout.config import Setting
from leaveout.data import mnist, slices
from leaveout.data.prepare import prepare
from leaveout.store import artefacts
from leaveout.store.contents import save

MNIST = {"name": "mnist", "n_train": 40, "n_test": 7, "mean": 0.1307, "std": 0.3081}


def test_pixels_stay_the_bytes_of_their_source(
    make_setting: Callable[..., Setting], tmp_path: Path
) -> None:
    found = read(make_setting(dataset=MNIST), tmp_path / "data.safetensors")
    train, test = slices.read_slice(mnist.MNIST)
    assert found.tensors["train_inputs"].dtype == np.uint8
    np.testing.assert_array_equal(found.tensors["train_inputs"], train.images[:40])
    np.testing.assert_array_equal(found.tensors["test_inputs"], test.images[:7])
    np.testing.assert_array_equal(found.tensors["train_labels"], train.labels[:40])
    assert found.dims["train_inputs"] == ("train", "height", "width")
    assert found.meta["pixels"] == {"full_scale": 255, "mean": 0.1307, "std": 0.3081}
    assert found.path.stat().st_size < 47 * (28 * 28 + 2 * 8) + 4096  # samples and a header


def read(setting: Setting, path: Path) -> artefacts.Artefact:
    save(path, prepare(setting))
    return artefacts.read(path, "data")


NOISE = {"label_noise": {"fraction": 0.1}}


def test_without_noise_nothing_is_flipped(
    make_setting: Callable[..., Setting], tmp_path: Path
) -> None:
    found = read(make_setting(), tmp_path / "d").tensors
    assert found["flipped_id"].tolist() == found["original_labels"].tolist() == []
    assert found["flipped_id"].dtype == found["original_labels"].dtype == np.int64


def test_noise_flips_training_labels_only_and_says_which(
    make_setting: Callable[..., Setting], tmp_path: Path
) -> None:
    clean = read(make_setting(dataset=MNIST), tmp_path / "clean").tensors
    noisy = read(make_setting(dataset={**MNIST, **NOISE}), tmp_path / "noisy")
    changed = np.flatnonzero(noisy.tensors["train_labels"] != clean["train_labels"])
    assert len(changed) == 4  # 10% of 40
    np.testing.assert_array_equal(noisy.tensors["flipped_id"], noisy.tensors["train_id"][changed])
    np.testing.assert_array_equal(noisy.tensors["original_labels"], clean["train_labels"][changed])
    for name in ("test_labels", "train_inputs", "test_inputs", "train_id", "test_id"):
        np.testing.assert_array_equal(noisy.tensors[name], clean[name])
    assert noisy.dims["flipped_id"] == noisy.dims["original_labels"] == ("flipped",)


def test_flips_are_shared_by_settings_on_the_same_data(
    make_setting: Callable[..., Setting], tmp_path: Path
) -> None:
    def flipped(**changes: object) -> list[int]:
        dataset = {**MNIST, **NOISE, **changes.pop("dataset", {})}
        found = read(make_setting(dataset=dataset, **changes), tmp_path / "d").tensors
        return [*found["flipped_id"].tolist(), *found["train_labels"].tolist()]

    first = flipped()
    assert flipped(name="other", dataset={"n_test": 5, "mean": 0.0}) == first
    assert flipped(model={"name": "mlp", "hidden": [4]}) == first
    assert flipped(seed=4) != first
    assert flipped(dataset={"label_noise": {"fraction": 0.2}}) != first


def test_some_classes(make_setting: Callable[..., Setting], tmp_path: Path) -> None:
    dataset = {**MNIST, "name": "fashion_mnist", "classes": (2, 4), "n_train": 300, **NOISE}
    found = read(make_setting(dataset=dataset), tmp_path / "d")
    assert found.meta["n_classes"] == 2
    assert found.tensors["train_id"][:4].tolist() == [5, 7, 19, 22]
    assert set(found.tensors["train_labels"].tolist()) == {0, 1}
    assert len(found.tensors["flipped_id"]) == 30
    # two classes: whatever is flipped becomes the other
    place = np.searchsorted(found.tensors["train_id"], found.tensors["flipped_id"])
    np.testing.assert_array_equal(
        found.tensors["train_labels"][place], 1 - found.tensors["original_labels"]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_pixels_keep_their_own_type(
    make_setting: Callable[..., Setting],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: type,
) -> None:
    from leaveout.data import digits

    load = digits.load

    def retyped(n_train: int, n_test: int, classes: None):
        raw = load(n_train, n_test)
        for part in ("train_inputs", "test_inputs"):
            object.__setattr__(raw, part, getattr(raw, part).astype(dtype))
        return raw

    monkeypatch.setattr(digits, "load", retyped)
    found = read(make_setting(), tmp_path / "data.safetensors")
    assert found.tensors["train_inputs"].dtype == found.tensors["test_inputs"].dtype == dtype
    np.testing.assert_array_equal(found.tensors["train_inputs"], load(30, 6).train_inputs)
