"""Wrong labels, on purpose: a known part of the training labels flipped, to be found again."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError
from leaveout.seeds import generator

_Labels = TypeVar("_Labels")


def flip_label(
    label: _Labels,
    label_space: Iterable[Any] | None = None,
    p: float = 0.1,
    seed: int | None = None,
) -> tuple[_Labels, list[int]]:
    """Flip a part of the labels, each to another one, all others being equally likely.

    The signature is dattri's, and so is what it does with good input: how many labels are flipped
    is not left to chance. Unlike there, the number is rounded and not cut off (``int(0.29 * 100)``
    is 28), a draw can be repeated, and a label outside the label space is an error.

    Args:
        label: (n,) labels: a NumPy array, a torch tensor or a list. It is not altered.
        label_space: Labels to flip to, of any of these kinds; by default those that occur.
        p: Which part is flipped, from 0 to 1: ``round(p * n)`` labels, no position twice.
        seed: Gives the same flips each time; by default they differ from call to call.

    Returns:
        The labels after flipping, of the same kind (and dtype, and device), and the flipped
        positions, rising.

    Raises:
        LeaveoutError: ``p`` is not between 0 and 1, the labels are not one row, there is nothing
            else to flip to, or a label is not in the label space.
    """
    if not 0 <= p <= 1:
        raise LeaveoutError(f"p: {p} is not between 0 and 1.")
    labels = _array(label)
    if labels.ndim != 1:
        raise LeaveoutError(f"label: expected (n,) labels, got the shape {labels.shape}.")
    space = np.unique(labels if label_space is None else _array(label_space))
    outside = np.setdiff1d(labels, space)
    if outside.size:
        raise LeaveoutError(
            f"label_space: {outside[:5].tolist()} are labels, but not in it: {space.tolist()}."
        )
    rng = np.random.default_rng() if seed is None else generator(seed, "flip_label")
    places, others = flip(np.searchsorted(space, labels), len(space), p, rng)
    flipped = labels.copy()
    flipped[places] = space[others]
    return _like(label, flipped), places.tolist()


def flip(
    labels: NDArray[np.integer[Any]], n_classes: int, fraction: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw which labels to flip, and to what.

    Args:
        labels: (n,) integers from 0 to ``n_classes`` - 1.
        n_classes: At least 2, unless nothing is flipped.
        fraction: Which part is flipped; ``round(fraction * n)`` labels.
        rng: The stream of the draw.

    Returns:
        The positions, rising, and their new labels, none of which is the old one.

    Raises:
        LeaveoutError: There is no other class.
    """
    count = round(fraction * len(labels))
    if count and n_classes < 2:
        raise LeaveoutError("labels can only be flipped where there are two or more of them.")
    places = np.sort(rng.permutation(len(labels))[:count]).astype(np.int64)
    steps = rng.integers(1, max(n_classes, 2), size=count)
    return places, (labels[places].astype(np.int64) + steps) % n_classes


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def _array(value: Any) -> NDArray[Any]:
    if _is_tensor(value):
        return value.detach().cpu().numpy()  # type: ignore[no-any-return]
    return np.asarray(value if isinstance(value, np.ndarray) else list(value))


def _like(given: Any, labels: NDArray[Any]) -> Any:
    if _is_tensor(given):
        return given.new_tensor(labels)
    return labels if isinstance(given, np.ndarray) else labels.tolist()
