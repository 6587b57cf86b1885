"""Raw data by name and source, checked against pinned digests, with the samples' official ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError

SOURCES = {"mnist": ("bundled", "hub", "idx"), "digits": ("bundled",)}


@dataclass(frozen=True)
class RawDataset:
    """Samples as their source holds them.

    Attributes:
        train_inputs: (n_train, height, width), uint8 (MNIST) or float32 (digits).
        train_labels: (n_train,) int64.
        test_inputs: (n_test, height, width), of the same dtype.
        test_labels: (n_test,) int64.
        train_id: (n_train,) int64, position in the official training file.
        test_id: (n_test,) int64, position in the official test file.
        provenance: JSON-able: ``name``, ``source``, ``revision`` and ``sha256`` (digest by file).
    """

    train_inputs: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[Any]
    test_labels: NDArray[np.int64]
    train_id: NDArray[np.int64]
    test_id: NDArray[np.int64]
    provenance: dict[str, Any]


def load(
    name: str, source: str, n_train: int, n_test: int, cache_dir: Path | None = None
) -> RawDataset:
    """Load the first samples of a data set.

    Args:
        name: ``mnist`` or ``digits``.
        source: ``bundled`` (no network) or, for MNIST, ``hub`` (the pinned Hugging Face revision)
            or ``idx`` (the official files, in a folder of the user's).
        n_train: How many training samples, from the first on.
        n_test: How many test samples, from the first on.
        cache_dir: Where ``hub`` keeps its downloads; by default the Hugging Face cache.

    Raises:
        LeaveoutError: Unknown name or source, more samples than there are, or data that are damaged
            or out of reach.
    """
    if name not in SOURCES:
        raise LeaveoutError(f"unknown data set {name!r}: {_choices(name, SOURCES)}.")
    if source not in SOURCES[name]:
        raise LeaveoutError(
            f"unknown source {source!r} for data set {name!r}: {_choices(source, SOURCES[name])}."
        )
    # Imported when asked for: pyarrow, huggingface_hub and scikit-learn are slow to start.
    if name == "digits":
        from leaveout.data import digits

        return digits.load(n_train, n_test)
    if source == "hub":
        from leaveout.data import hub

        return hub.load(n_train, n_test, cache_dir)
    if source == "idx":
        from leaveout.data import idx

        return idx.load(n_train, n_test)
    from leaveout.data import mnist

    return mnist.load(n_train, n_test)


def check_size(where: str, key: str, wanted: int, held: int, remedy: str) -> None:
    """Check that a source holds as many samples as are asked for.

    Args:
        where: The data, for the message, e.g. ``the bundled MNIST slice``.
        key: The setting that says how many: ``n_train`` or ``n_test``.
        wanted: Its value.
        held: How many there are.
        remedy: What to do about asking for too many.

    Raises:
        LeaveoutError: ``wanted`` is not in 1..``held``.
    """
    if wanted < 1:
        raise LeaveoutError(f"{key}: {wanted} is not positive; {where} offers 1 to {held}.")
    if wanted > held:
        raise LeaveoutError(f"{key}: {wanted} is more than the {held} of {where}; {remedy}.")


def _choices(given: str, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    near = get_close_matches(given.lower(), valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose one of {', '.join(valid)}"
