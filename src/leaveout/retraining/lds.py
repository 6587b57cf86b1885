"""Retraining on random subsets: the ground truth of LDS (Park et al. 2023, arXiv:2303.14186)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leaveout import artefacts
from leaveout.config import Setting
from leaveout.plan import chunk, train_key
from leaveout.provenance import by_name, provenance
from leaveout.retraining.common import load_data, train_targets
from leaveout.retraining.layout import LDS_DIMS
from leaveout.retraining.subsets import subset_mask
from leaveout.training.trials import Identity, Trial


def _identity(setting: Setting, subset: int, run: int) -> Identity:
    """Return whose random streams a run of a subset uses: its own, or (paired) the full run's."""
    if setting.lds.pairing == "drop":
        return (setting.name, "full", run)
    return (setting.name, "lds", subset, run)


def retrain_lds(setting: Setting, number: int, data_path: Path, out: Path, device: str) -> None:
    """Train the runs of one chunk of subsets and write the ``lds`` artefact of these subsets.

    Args:
        setting: The setting.
        number: Which chunk.
        data_path: The setting's ``data`` artefact.
        out: The file to write.
        device: ``cpu`` or ``cuda``.
    """
    data = load_data(setting, data_path, device)
    subsets = [subset for subset, _ in chunk(setting, "lds", number)]
    masks = np.stack([subset_mask(setting, "lds", subset) for subset in subsets])
    runs = setting.lds.runs
    trials = [
        Trial(setting.seed, _identity(setting, subset, run), kept=np.flatnonzero(mask))
        for subset, mask in zip(subsets, masks, strict=True)
        for run in range(runs)
    ]
    targets = train_targets(setting, data, trials, "LDS models")
    artefacts.write(
        out,
        "lds",
        {
            "target": targets.reshape(len(subsets), runs, -1),
            "mask": masks.astype(np.uint8),
            "subset_id": np.array(subsets, dtype=np.int64),
            "train_id": data.train.ids,
            "test_id": data.test.ids,
        },
        LDS_DIMS,
        provenance(setting, train_key(setting, "lds", number), by_name([data.artefact]), device),
    )
