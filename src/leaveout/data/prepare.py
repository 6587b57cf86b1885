"""Prepare a data set: the split of a setting, keyed by sample id.

Pixels are kept as the source holds them, bytes mostly, which takes a quarter of the room; the
header says how a model's inputs are made of them, and whoever loads them does so. Anything else is
kept as a model takes it; the header says how its arrays belong together (``form``).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from leaveout.config import OwnDataset, Setting
from leaveout.config.catalogue import DATASETS
from leaveout.data import sources
from leaveout.data.label_noise import flip
from leaveout.errors import LeaveoutError
from leaveout.seeds import generator
from leaveout.store.artefacts import Array
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
    if isinstance(wanted, OwnDataset):
        return _noisy(_own(wanted), setting)
    if DATASETS[wanted.name].full_scale is None:
        from leaveout.data import tables  # and scikit-learn, which is slow to start

        return _noisy(tables.prepared(wanted), setting)
    raw = sources.load(
        wanted.name, wanted.source, wanted.n_train, wanted.n_test, classes=wanted.classes
    )
    arrays = Arrays(
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
            "pixels": {
                "full_scale": DATASETS[wanted.name].full_scale,
                "mean": wanted.mean,
                "std": wanted.std,
            },
            "n_classes": wanted.n_classes,
            "source": raw.provenance,
        },
    )
    return _noisy(arrays, setting)


def _noisy(clean: Arrays, setting: Setting) -> Arrays:
    """Flip the labels that the setting wants flipped, and say which; targets that are none stay.

    Raises:
        LeaveoutError: It wants some flipped, and the targets are not one class a sample.
    """
    noise, dataset = setting.dataset.label_noise, setting.dataset
    if "train_labels" not in clean.tensors:
        if noise is not None:
            raise LeaveoutError(
                f"dataset.label_noise: the targets of {dataset.name} are not one class a sample "
                "(whole numbers, one each), so there are no labels to flip; remove it"
            )
        return clean
    arrays: dict[str, Any] = dict(clean.tensors)
    given = arrays["train_labels"]
    labels, flipped = given.copy(), np.zeros(0, np.int64)
    if noise is not None:
        rng = generator(setting.seed, dataset.name, "label_noise")
        flipped, labels_of_flipped = flip(labels, clean.facts["n_classes"], noise.fraction, rng)
        labels[flipped] = labels_of_flipped
    arrays["train_labels"] = labels
    arrays["flipped_id"] = arrays["train_id"][flipped]
    arrays["original_labels"] = given[flipped]
    dims = {**clean.dims, "flipped_id": ("flipped",), "original_labels": ("flipped",)}
    return replace(clean, tensors=arrays, dims=dims)


def _own(dataset: OwnDataset) -> Arrays:
    from leaveout.data.split import prepared  # and torch, which images do without
    from leaveout.problem.randomness import seeded
    from leaveout.problem.user import call_own

    where = f"{dataset.module}.{dataset.function}"
    with seeded(0, "data"):  # what it draws is the same each time
        split = call_own(dataset, n_train=dataset.n_train, n_test=dataset.n_test)
    found = prepared(split, {"train": dataset.n_train, "test": dataset.n_test}, where)
    return replace(found, facts={**found.facts, "source": _provenance(dataset, found.tensors)})


def _provenance(dataset: OwnDataset, arrays: Any) -> dict[str, Any]:
    digests: dict[str, str] = {}
    for name, array in arrays.items():
        values: Array = array
        digests[name] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return {"name": dataset.module, "source": "module", "revision": "", "sha256": digests}
