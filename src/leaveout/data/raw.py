"""Raw samples as their source holds them, and picking the first ones of some classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
