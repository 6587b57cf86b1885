"""Raw data by name and source, checked against pinned digests, with the samples' official ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.data.catalogue import DATASETS
from leaveout.errors import LeaveoutError


@dataclass(frozen=True)
class RawDataset:
    """Samples as their source holds them.

    Attributes:
        train_inputs: (n_train, height, width), uint8 (MNIST, Fashion-MNIST) or float32 (digits).
        train_labels: (n_train,) int64: the official label or, of chosen classes, its place among
            them.
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
    name: str,
    source: str,
    n_train: int,
    n_test: int,
    cache_dir: Path | None = None,
    classes: Sequence[int] | None = None,
) -> RawDataset:
    """Load the first samples of a data set.

    Args:
        name: ``mnist``, ``fashion_mnist`` or ``digits``.
        source: ``bundled`` (no network), ``idx`` (the official files of MNIST or Fashion-MNIST, in
            a folder of the user's) or, for MNIST, ``hub`` (the pinned Hugging Face revision).
        n_train: How many training samples, from the first on.
        n_test: How many test samples, from the first on.
        cache_dir: Where ``hub`` keeps its downloads; by default the Hugging Face cache.
        classes: Only samples of these, in file order, labelled 0, 1, ... in the order given here;
            by default all, with their official labels.

    Raises:
        LeaveoutError: Unknown name or source, more samples than there are, or data that are damaged
            or out of reach.
    """
    facts = {str(known): of for known, of in DATASETS.items()}
    if name not in facts:
        raise LeaveoutError(f"unknown data set {name!r}: {_choices(name, facts)}.")
    if source not in facts[name].sources:
        raise LeaveoutError(
            f"unknown source {source!r} for data set {name!r}: "
            f"{_choices(source, facts[name].sources)}."
        )
    # Imported when asked for: pyarrow, huggingface_hub and scikit-learn are slow to start.
    if name == "digits":
        from leaveout.data import digits

        return digits.load(n_train, n_test, classes)
    if source == "hub":
        from leaveout.data import hub

        return hub.load(n_train, n_test, cache_dir, classes=classes)
    from leaveout.data import fashion_mnist, idx, mnist, slices

    of = {"mnist": mnist.MNIST, "fashion_mnist": fashion_mnist.FASHION_MNIST}[name]
    if source == "idx":
        return idx.load(of, n_train, n_test, classes)
    return slices.load(of, n_train, n_test, classes)


def pick(
    labels: NDArray[Any],
    classes: Sequence[int] | None,
    n: int,
    where: str,
    key: str,
    remedy: str,
) -> NDArray[np.int64]:
    """Find the first samples, of some classes or of all.

    Args:
        labels: (samples,), in file order.
        classes: Which; None for all.
        n: How many samples.
        where: The data, for the message, e.g. ``the bundled MNIST slice``.
        key: The setting that says how many: ``n_train`` or ``n_test``.
        remedy: What to do about asking for too many.

    Returns:
        (n,) positions in ``labels``, rising.

    Raises:
        LeaveoutError: ``n`` is not in 1..(samples of the classes).
    """
    if classes is None:
        kept = np.arange(len(labels))
    else:
        kept = np.flatnonzero(np.isin(labels, list(classes)))
        where = f"{where} in classes {', '.join(map(str, classes))}"
    check_size(where, key, n, len(kept), remedy)
    return kept[:n]


def relabel(labels: NDArray[Any], classes: Sequence[int] | None) -> NDArray[np.int64]:
    """Label samples by their class's place in ``classes``; without classes, as they are.

    Args:
        labels: (samples,), each in ``classes``.
        classes: Distinct labels; the first becomes 0.
    """
    if classes is None:
        return labels.astype(np.int64)
    order = np.argsort(classes)
    return order[np.searchsorted(np.asarray(classes)[order], labels)].astype(np.int64)


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
