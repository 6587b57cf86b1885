from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from job_keys import prepare_key
from leaveout.config import Setting
from leaveout.data.prepare import prepare
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.store import artefacts
from leaveout.store.contents import save
from leaveout.training.reference import train_one
from leaveout.training.trials import Trial


@pytest.fixture(scope="session")
def data(make_setting: Callable[..., Setting], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.safetensors"
    save(path, prepare(make_setting()), {"key": prepare_key(make_setting())})
    return path


@pytest.fixture
def shuffled(data: Path, tmp_path: Path) -> Path:
    """The same data, the training samples in another order."""
    read = artefacts.read(data)
    order = np.random.default_rng(0).permutation(30)
    moved = {
        name: array[order] if name.startswith("train_") else array
        for name, array in read.tensors.items()
    }
    shuffled = tmp_path / "shuffled.safetensors"
    artefacts.write(shuffled, "data", moved, read.dims, read.meta)
    return shuffled


@pytest.fixture
def alone(data: Path) -> Callable[..., tuple[Any, np.ndarray]]:
    """Return a function that trains one model by itself: (its state, its test losses)."""
    arrays = artefacts.read(data, "data").tensors
    # tiny's digits reach 16 and have no mean or deviation to take out
    x, test_x = (
        torch.from_numpy(arrays[f"{part}_inputs"][:, None]) / 16 for part in ("train", "test")
    )
    y, test_y = (torch.from_numpy(arrays[f"{part}_labels"]) for part in ("train", "test"))

    def run(setting: Setting, identity: tuple[str | int, ...], **trial: Any) -> Any:
        asked = Trial(setting.seed, identity, **trial)
        module = initialise(setting.model, tuple(x.shape[1:]), 10, asked.init_seed())
        states = train_one(
            module,
            asked,
            Samples(x, y, CROSS_ENTROPY),
            setting.recipe,
            setting.checkpoint_epochs(),
        )
        with torch.no_grad():
            losses = functional.cross_entropy(module.eval()(test_x), test_y, reduction="none")
        return states, losses.numpy()

    return run
