"""Full models, with checkpoints along their trajectories, and models of random halves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from leaveout import artefacts, trainings
from leaveout.config import Setting
from leaveout.plan import chunk, train_key
from leaveout.provenance import by_name, provenance
from leaveout.retraining.common import load_data, progress
from leaveout.retraining.subsets import subset_mask
from leaveout.training.engine import train
from leaveout.training.trials import Trial


def train_models(
    setting: Setting,
    kind: Literal["full", "half"],
    name: str,
    data_path: Path,
    out: Path,
    device: str,
) -> None:
    """Train one chunk of full or half models and write the ``models`` artefact.

    It holds ``state.NAME`` (run, checkpoint, ...) for every parameter and buffer, ``epoch`` and
    ``learning_rate`` by checkpoint, and ``mask`` (run, train), the samples each run was trained on.

    Args:
        setting: The setting.
        kind: Which models.
        name: Which chunk.
        data_path: The setting's ``data`` artefact.
        out: The file to write.
        device: ``cpu`` or ``cuda``.
    """
    data = load_data(setting, data_path, device)
    runs = [run for run, _ in chunk(setting, kind, name)]
    n = len(data.train.ids)
    if kind == "full":
        masks = np.ones((len(runs), n), dtype=bool)
        epochs: tuple[int, ...] = setting.checkpoint_epochs()
    else:
        masks = np.stack([subset_mask(setting, "half", run) for run in runs])
        epochs = (setting.recipe.epochs,)
    trials = [
        Trial(
            setting.seed,
            (setting.name, kind, run),
            kept=None if mask.all() else np.flatnonzero(mask),
        )
        for run, mask in zip(runs, masks, strict=True)
    ]
    stacks = train(data.build, trials, data.train.inputs, data.train.labels, setting.recipe, epochs)
    parts = [
        {
            name: torch.stack([state[name] for state in trained.snapshots], dim=1).cpu().numpy()
            for name in trained.snapshots[0]
        }
        for trained in progress(stacks, len(trials), f"{kind} models")
    ]
    states = {f"state.{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
    dims = {
        name: ("run", "checkpoint", *(f"{name}.{d}" for d in range(array.ndim - 2)))
        for name, array in states.items()
    }
    artefacts.write(
        out,
        "models",
        {
            **states,
            "run_id": np.array(runs, dtype=np.int64),
            "epoch": np.array(epochs, dtype=np.int64),
            "learning_rate": np.full(len(epochs), setting.recipe.learning_rate),
            "mask": masks.astype(np.uint8),
            "train_id": data.train.ids,
        },
        {
            **dims,
            "run_id": ("run",),
            "epoch": ("checkpoint",),
            "learning_rate": ("checkpoint",),
            "mask": ("run", "train"),
            "train_id": ("train",),
        },
        {
            **provenance(setting, train_key(setting, kind, name), by_name([data.artefact]), device),
            **trainings.record(trials, n),
        },
    )
