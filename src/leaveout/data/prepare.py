"""Prepare a data set: the split of a setting, keyed by sample id.

Pixels are kept as the source holds them, bytes mostly, which takes a quarter of the room; the
header says how a model's inputs are made of them, and whoever loads them does so.
"""

from __future__ import annotations

from pathlib import Path

from leaveout import artefacts
from leaveout.config import Setting
from leaveout.data import sources
from leaveout.plan import prepare_key
from leaveout.provenance import provenance

FULL_SCALE = {"mnist": 255, "digits": 16}
"""The largest value a pixel can have; inputs are scaled to [0, 1] by it."""

CLASSES = {"mnist": 10, "digits": 10}


def prepare(setting: Setting, out: Path) -> None:
    """Write the ``data`` artefact of a setting.

    Args:
        setting: Which samples and how they are normalised.
        out: The file to write.
    """
    wanted = setting.dataset
    raw = sources.load(wanted.name, wanted.source, wanted.n_train, wanted.n_test)
    artefacts.write(
        out,
        "data",
        {
            "train_inputs": raw.train_inputs,
            "train_labels": raw.train_labels,
            "train_id": raw.train_id,
            "test_inputs": raw.test_inputs,
            "test_labels": raw.test_labels,
            "test_id": raw.test_id,
        },
        {
            "train_inputs": ("train", "height", "width"),
            "train_labels": ("train",),
            "train_id": ("train",),
            "test_inputs": ("test", "height", "width"),
            "test_labels": ("test",),
            "test_id": ("test",),
        },
        {
            **provenance(setting, prepare_key(setting), {}),
            "pixels": {
                "full_scale": FULL_SCALE[wanted.name],
                "mean": wanted.mean,
                "std": wanted.std,
            },
            "n_classes": CLASSES[wanted.name],
            "source": raw.provenance,
        },
    )
