"""Prepare a data set: the split of a setting, keyed by sample id.

Pixels are kept as the source holds them, bytes mostly, which takes a quarter of the room; the
header says how a model's inputs are made of them, and whoever loads them does so.
"""

from __future__ import annotations

import numpy as np

from leaveout.config import Setting
from leaveout.config.catalogue import DATASETS
from leaveout.data import sources
from leaveout.data.label_noise import flip
from leaveout.seeds import generator
from leaveout.store.contents import Arrays


def prepare(setting: Setting) -> Arrays:
    """Return the ``data`` artefact of a setting.

    Where the setting asks for label noise, ``train_labels`` are the flipped ones; ``flipped_id``
    and ``original_labels``, empty otherwise, say which samples were flipped and what they were. The
    flips are drawn from the setting's root seed and the data set's name, not the
    setting's: two settings with the same noise on the same training samples have the same flips.

    Args:
        setting: Which samples, how they are normalised, and how many labels are flipped.

    Raises:
        LeaveoutError: More samples than there are, or data that are damaged or out of reach.
    """
    wanted = setting.dataset
    raw = sources.load(
        wanted.name, wanted.source, wanted.n_train, wanted.n_test, classes=wanted.classes
    )
    labels, noise = raw.train_labels.copy(), wanted.label_noise
    flipped = np.zeros(0, np.int64)
    if noise is not None:
        rng = generator(setting.seed, wanted.name, "label_noise")
        flipped, labels_of_flipped = flip(labels, wanted.n_classes, noise.fraction, rng)
        labels[flipped] = labels_of_flipped
    return Arrays(
        "data",
        {
            "train_inputs": raw.train_inputs,
            "train_labels": labels,
            "train_id": raw.train_id,
            "test_inputs": raw.test_inputs,
            "test_labels": raw.test_labels,
            "test_id": raw.test_id,
            "flipped_id": raw.train_id[flipped],
            "original_labels": raw.train_labels[flipped],
        },
        {
            "train_inputs": ("train", "height", "width"),
            "train_labels": ("train",),
            "train_id": ("train",),
            "test_inputs": ("test", "height", "width"),
            "test_labels": ("test",),
            "test_id": ("test",),
            "flipped_id": ("flipped",),
            "original_labels": ("flipped",),
        },
        {
            "pixels": {
                "full_scale": DATASETS[wanted.name].full_scale,
                "mean": wanted.mean,
                "std": wanted.std,
            },
            "n_classes": wanted.n_classes,
            "source": raw.provenance,
        },
    )
