from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leaveout.config import ConfigError, Setting
from leaveout.retraining.models import train_models
from leaveout.retraining.subsets import subset_mask
from leaveout.store.contents import save

Make = Callable[..., Setting]
MODELS: list[dict[str, Any]] = [
    {"name": "linear"},
    {"name": "mlp", "hidden": [5], "dropout": 0.2},
    {"name": "cnn", "channels": [2], "batch_norm": True},
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_full_models_are_each_runs_trajectory(
    make_setting: Make, data: Path, alone: Any, model: dict[str, Any]
) -> None:
    setting = make_setting(model=model)
    found = train_models(setting, "full", "0", data, "cpu")
    assert found.tensors["run_id"].tolist() == [0, 1]
    assert found.tensors["epoch"].tolist() == [2, 3]
    assert found.tensors["learning_rate"].tolist() == [0.1, 0.1]
    assert found.tensors["mask"].all()
    for run in range(2):
        states, _ = alone(setting, ("tiny", "full", run))
        assert len(states) == 2
        for c, state in enumerate(states):
            assert {f"state.{name}" for name in state} == {
                name for name in found.tensors if name.startswith("state.")
            }
            for name, value in state.items():
                # float32, 12 steps: rounding of weights of order 1
                np.testing.assert_allclose(found.tensors[f"state.{name}"][run, c], value, atol=1e-5)


def test_half_models_are_trained_on_their_subset(
    make_setting: Make, data: Path, alone: Any
) -> None:
    setting = make_setting()
    found = train_models(setting, "half", "1", data, "cpu")
    assert found.tensors["run_id"].tolist() == [2]
    mask = subset_mask(setting, "half", 2)
    np.testing.assert_array_equal(found.tensors["mask"][0].astype(bool), mask)
    states, _ = alone(setting, ("tiny", "half", 2), kept=np.flatnonzero(mask))
    np.testing.assert_allclose(
        found.tensors["state.linear.weight"][0, 0], states[-1]["linear.weight"], atol=1e-5
    )


def test_chunks_change_no_model(make_setting: Make, data: Path) -> None:
    def weights(chunk: int, count: int) -> np.ndarray:
        setting = make_setting(full={"chunk": chunk})
        parts = [train_models(setting, "full", str(k), data, "cpu") for k in range(count)]
        return np.concatenate([part.tensors["state.linear.weight"] for part in parts])

    whole = weights(3, 1)
    np.testing.assert_allclose(weights(1, 3), whole, atol=1e-6)
    np.testing.assert_allclose(weights(2, 2), whole, atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 0.01


def test_written_twice_is_the_same_byte_for_byte(
    make_setting: Make, data: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for out in outs:
        save(out, train_models(make_setting(), "full", "0", data, "cpu"))
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.1, ""),
        # weights that overflow, and weights that are large enough for the losses to overflow
        (1e30, "warning: 2 of 2 models diverged (a weight or a loss that is not finite)"),
        (1e25, "warning: 2 of 2 models diverged (a weight or a loss that is not finite)"),
    ],
)
def test_models_that_diverge_are_kept_and_counted(
    make_setting: Make, data: Path, capsys: pytest.CaptureFixture[str], rate: float, said: str
) -> None:
    setting = make_setting(
        model={"name": "mlp", "hidden": [6]},
        recipe={"learning_rate": rate, "epochs": 20 if rate == 1e30 else 1, "batch_size": 30},
        full={"checkpoints": 1},
    )
    found = train_models(setting, "full", "0", data, "cpu")
    states = [array for name, array in found.tensors.items() if name.startswith("state.")]
    assert all(np.isfinite(array).all() for array in states) == (rate < 1e30)
    err = capsys.readouterr().err
    assert said in err
    assert ("warning" in err) == bool(said)


def test_there_is_no_such_chunk(make_setting: Make, data: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny: full has 2 chunks, 0 to 1 .* no chunk 9"):
        train_models(make_setting(), "full", "9", data, "cpu")


def test_gpu_models_are_the_cpus_to_rounding(make_setting: Make, data: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    found = []
    for device in ("cpu", "cuda"):
        models = train_models(make_setting(), "full", "0", data, device)
        found.append(models.tensors["state.linear.weight"])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
