"""Trials: which training is meant, and which samples its steps see.

A trial is one training of one model. Its three random streams (initialisation, order, dropout) are
named by identities, so two trials share a stream exactly where their identities are equal: by
design in paired counterfactuals, never by accident.

A trial's *rows* are its batches: for each step of an epoch, the positions (in the training arrays)
of the samples seen, with -1 where a sample was taken out of its batch. Every engine trains from the
same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leaveout.seeds import generator, torch_seed

Identity = tuple[str | int, ...]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        root: Root seed of the setting.
        identity: Whose random streams it uses, e.g. ``("mnist_lr", "lds", 17, 0)``.
        kept: Positions of the training samples it sees, ascending; None means all.
        removed: Position taken out of its batch while all other batches stay as they are; None
            removes nothing.
        shuffle: Whether the order is drawn anew every epoch; otherwise it is file order.
    """

    root: int
    identity: Identity
    kept: Index | None = field(default=None, compare=False)
    removed: int | None = None
    shuffle: bool = True

    def size(self, samples: int) -> int:
        """Return how many of so many samples it sees; a removed one's place counts."""
        return samples if self.kept is None else len(self.kept)

    def init_seed(self) -> int:
        """Return the seed of the initial weights."""
        return torch_seed(self.root, *self.identity, "init")

    def order_identity(self) -> Identity:
        """Return the identity of the order stream; trials that share it share their order."""
        return (self.root, *self.identity, self.shuffle)

    def dropout_generator(self) -> np.random.Generator:
        """Return a new generator at the start of the trial's dropout stream."""
        return generator(self.root, *self.identity, "dropout")


@lru_cache(maxsize=64)
def _permutation(root: int, identity: Identity, epoch: int, n: int) -> Index:
    order = generator(root, *identity, "order", epoch).permutation(n)
    order.setflags(write=False)
    return order


def epoch_order(trial: Trial, n: int, epoch: int) -> Index:
    """Return the order of all ``n`` samples in one epoch, before any are dropped from it."""
    if not trial.shuffle:
        return np.arange(n, dtype=np.int64)
    return _permutation(trial.root, trial.identity, epoch, n)


def epoch_rows(trial: Trial, n: int, epoch: int, batch_size: int) -> Index:
    """Return the batches of one epoch.

    The order is a permutation of all ``n`` samples, from which those not kept are dropped before it
    is cut into batches; a removed sample leaves a hole in its batch instead.

    Args:
        trial: The training.
        n: Number of training samples.
        epoch: Counted from 0.
        batch_size: Samples per step.

    Returns:
        Positions, (steps, batch_size); -1 marks the hole of a removed sample, -2 the padding of a
        short last batch.
    """
    order = epoch_order(trial, n, epoch)
    if trial.kept is not None:
        keep = np.zeros(n, dtype=bool)
        keep[trial.kept] = True
        order = order[keep[order]]
    rows = np.full(-(-len(order) // batch_size) * batch_size, -2, dtype=np.int64)
    rows[: len(order)] = order
    if trial.removed is not None:
        rows[rows == trial.removed] = -1
    return rows.reshape(-1, batch_size)


def padded_rows(trials: Sequence[Trial], n: int, epoch: int, batch_size: int) -> Index:
    """Return the batches of many trials, (trials, steps, batch_size), -2 where one has fewer."""
    own = [epoch_rows(trial, n, epoch, batch_size) for trial in trials]
    steps = max(len(rows) for rows in own)
    out = np.full((len(own), steps, batch_size), -2, dtype=np.int64)
    for padded, rows in zip(out, own, strict=True):
        padded[: len(rows)] = rows
    return out
