"""Retraining on random subsets: the ground truth of LDS (Park et al. 2023, arXiv:2303.14186)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leaveout.config import Setting
from leaveout.retraining import trainings
from leaveout.retraining.common import Data, load_data, train_targets
from leaveout.retraining.items import chunk
from leaveout.retraining.layout import LDS_DIMS
from leaveout.retraining.subsets import subset_mask
from leaveout.store.contents import Arrays
from leaveout.training.trials import Identity, Trial


def _identity(setting: Setting, subset: int, run: int) -> Identity:
    """Return whose random streams a run of a subset uses: its own, or (paired) the full run's."""
    if setting.lds.pairing == "drop":
        return (setting.name, "full", run)
    return (setting.name, "lds", subset, run)


def retrain_lds(setting: Setting, name: str, data_path: Path, device: str) -> Arrays:
    """Train one chunk of models and return their targets: an ``lds-chunk`` artefact.

    It holds ``target`` (subset, test) of one run, and ``mask`` (subset, train).

    Args:
        setting: The setting.
        name: Which chunk; all its models belong to one run.
        data_path: The setting's ``data`` artefact.
        device: ``cpu`` or ``cuda``.
    """
    return lds_chunk(setting, name, load_data(setting, data_path, device))


def lds_chunk(setting: Setting, name: str, data: Data) -> Arrays:
    """Do the same with data at hand."""
    wanted = chunk(setting, "lds", name)
    run = wanted[0][1]
    subsets = [subset for subset, _ in wanted]
    masks = np.stack([subset_mask(setting, "lds", subset) for subset in subsets])
    trials = [
        Trial(setting.seed, _identity(setting, subset, run), kept=np.flatnonzero(mask))
        for subset, mask in zip(subsets, masks, strict=True)
    ]
    targets = train_targets(setting, data, trials, "LDS models")
    return Arrays(
        "lds-chunk",
        {
            "target": targets,
            "mask": masks.astype(np.uint8),
            "subset_id": np.array(subsets, dtype=np.int64),
            "run_id": np.array([run], dtype=np.int64),
            "train_id": data.train.ids,
            "test_id": data.test.ids,
        },
        {**LDS_DIMS, "target": ("subset", "test"), "run_id": ("run",)},
        trainings.record(trials, len(data.train.ids)),
    )
