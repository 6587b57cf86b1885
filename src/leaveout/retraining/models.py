"""Full models, with checkpoints along their trajectories, and models of random halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaveout.config import Setting
from leaveout.retraining import trainings
from leaveout.retraining.common import Data, load_data, progress, warn_of_diverged
from leaveout.retraining.items import chunk
from leaveout.retraining.subsets import subset_mask
from leaveout.store.contents import Arrays
from leaveout.training.engine import train
from leaveout.training.losses import stacked_targets
from leaveout.training.optimisers import rates_at
from leaveout.training.trials import Trial


def train_models(
    setting: Setting,
    kind: Literal["full", "half"],
    name: str,
    data_path: Path,
    device: str,
) -> Arrays:
    """Train one chunk of full or half models: a ``models`` artefact.

    It holds ``state.NAME`` (run, checkpoint, ...) for every parameter and buffer, ``epoch`` and
    ``learning_rate`` by checkpoint, and ``mask`` (run, train), the samples each run was trained on.

    Args:
        setting: The setting.
        kind: Which models.
        name: Which chunk.
        data_path: The setting's ``data`` artefact.
        device: ``cpu`` or ``cuda``.
    """
    return models_chunk(setting, kind, name, load_data(setting, data_path, device))


def models_chunk(setting: Setting, kind: Literal["full", "half"], name: str, data: Data) -> Arrays:
    """Do the same with data at hand."""
    runs = [run for run, _ in chunk(setting, kind, name)]
    n = len(data.train.ids)
    if kind == "full":
        masks = np.ones((len(runs), n), dtype=bool)
        epochs: tuple[int, ...] = setting.checkpoint_epochs()
    else:
        masks = np.stack([subset_mask(setting, "half", run) for run in runs])
        epochs = (setting.recipe.epochs or setting.recipe.iterations or 0,)
    trials = [
        Trial(
            setting.seed,
            (setting.name, kind, run),
            kept=None if mask.all() else np.flatnonzero(mask),
        )
        for run, mask in zip(runs, masks, strict=True)
    ]
    stacks = train(data.build, trials, data.train, setting.recipe, epochs)
    parts, finite = [], []
    for trained in progress(stacks, len(trials), f"{kind} models"):
        losses = stacked_targets(trained.outputs(data.test.inputs), data.test)
        finite.append(losses.isfinite().all(dim=1).cpu().numpy())
        parts.append(
            {
                name: torch.stack([state[name] for state in trained.snapshots], dim=1).cpu().numpy()
                for name in trained.snapshots[0]
            }
        )
    states = {f"state.{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sound = [np.isfinite(array).reshape(len(trials), -1).all(axis=1) for array in states.values()]
    broken = int((~np.logical_and.reduce([np.concatenate(finite), *sound])).sum())
    warn_of_diverged(broken, len(trials), "a weight or a loss", "scores from them are undefined")
    return _arrays(setting, data, trials, states, masks, runs, epochs)


def kept_models(
    setting: Setting, data: Data, trials: Sequence[Trial], finals: Sequence[Mapping[str, Tensor]]
) -> Arrays:
    """Return retrained models as a ``models`` artefact, numbered in order.

    Its header's ``trainings`` says what each is.

    Args:
        setting: The setting.
        data: Its data.
        trials: What was trained.
        finals: Stacks of their final states, together all trials in order.
    """
    n = len(data.train.ids)
    masks = np.ones((len(trials), n), dtype=bool)
    for mask, trial in zip(masks, trials, strict=True):
        if trial.kept is not None:
            mask[:] = False
            mask[trial.kept] = True
        if trial.removed is not None:
            mask[trial.removed] = False
    states = {
        f"state.{name}": torch.cat([each[name] for each in finals])[:, None].cpu().numpy()
        for name in finals[0]
    }
    epochs = (setting.recipe.epochs or setting.recipe.iterations or 0,)
    return _arrays(setting, data, trials, states, masks, range(len(trials)), epochs)


def _arrays(
    setting: Setting,
    data: Data,
    trials: Sequence[Trial],
    states: Mapping[str, NDArray[np.generic]],
    masks: NDArray[np.bool_],
    runs: Sequence[int],
    epochs: Sequence[int],
) -> Arrays:
    n = len(data.train.ids)
    dims = {
        name: ("run", "checkpoint", *(f"{name}.{d}" for d in range(array.ndim - 2)))
        for name, array in states.items()
    }
    return Arrays(
        "models",
        {
            **states,
            "run_id": np.array(runs, dtype=np.int64),
            "epoch": np.array(epochs, dtype=np.int64),
            "learning_rate": np.array(rates_at(setting.recipe, trials[0].size(n), epochs)),
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
        trainings.record(trials, n),
    )
