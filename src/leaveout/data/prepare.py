"""Prepare a data set: the split of a setting, normalised, keyed by sample id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout import artefacts
from leaveout.config import Setting
from leaveout.data import sources
from leaveout.plan import prepare_key
from leaveout.provenance import provenance

FULL_SCALE = {"mnist": 255, "digits": 16}
"""The largest value a pixel can have; inputs are scaled to [0, 1] by it."""

CLASSES = {"mnist": 10, "digits": 10}


def normalise(
    pixels: NDArray[Any], full_scale: float, mean: float, std: float
) -> NDArray[np.float32]:
    """Scale images to [0, 1], then subtract a mean and divide by a standard deviation, in float32.

    Args:
        pixels: (samples, height, width).
        full_scale: The largest possible value.
        mean: Subtracted after scaling.
        std: Divided by at the end.

    Returns:
        (samples, 1, height, width).
    """
    scaled = pixels.astype(np.float32) / np.float32(full_scale)
    return ((scaled - np.float32(mean)) / np.float32(std))[:, None]


def prepare(setting: Setting, out: Path) -> None:
    """Write the ``data`` artefact of a setting.

    Args:
        setting: Which samples and how they are normalised.
        out: The file to write.
    """
    wanted = setting.dataset
    raw = sources.load(wanted.name, wanted.source, wanted.n_train, wanted.n_test)
    scale = FULL_SCALE[wanted.name]
    artefacts.write(
        out,
        "data",
        {
            "train_inputs": normalise(raw.train_inputs, scale, wanted.mean, wanted.std),
            "train_labels": raw.train_labels,
            "train_id": raw.train_id,
            "test_inputs": normalise(raw.test_inputs, scale, wanted.mean, wanted.std),
            "test_labels": raw.test_labels,
            "test_id": raw.test_id,
        },
        {
            "train_inputs": ("train", "channel", "height", "width"),
            "train_labels": ("train",),
            "train_id": ("train",),
            "test_inputs": ("test", "channel", "height", "width"),
            "test_labels": ("test",),
            "test_id": ("test",),
        },
        {
            **provenance(setting, prepare_key(setting), {}),
            "n_classes": CLASSES[wanted.name],
            "source": raw.provenance,
        },
    )
