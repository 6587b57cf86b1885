"""Randomness as an argument, derived from identity.

Every random stream has an identity, such as ``("mnist_lr", "lds", 17, 0, "order")``: setting,
purpose, subset, run, stream. Its seed is a function of the root seed and that identity alone, never
of the order of execution, a chunk or a clock. Two streams share numbers only if they share root and
identity, which is by design where it happens (paired counterfactuals).
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_sequence(root: int, *identity: str | int) -> np.random.SeedSequence:
    """Return the seed sequence of an identity.

    The identity is hashed (sha256) into the spawn key of ``SeedSequence(root)``, so that neither
    neighbouring roots nor neighbouring ids give overlapping streams (adding numbers to a seed
    does).

    Args:
        root: The root seed of the setting.
        *identity: What the stream is for; strings and integers, order matters.
    """
    name = hashlib.sha256(json.dumps(identity).encode()).digest()
    words = np.frombuffer(name, dtype="<u4")
    return np.random.SeedSequence(entropy=root, spawn_key=tuple(int(word) for word in words))


def generator(root: int, *identity: str | int) -> np.random.Generator:
    """Return a NumPy generator for an identity."""
    return np.random.Generator(np.random.Philox(seed_sequence(root, *identity)))


def torch_seed(root: int, *identity: str | int) -> int:
    """Return a 63-bit integer seed for ``torch.manual_seed``."""
    return int(seed_sequence(root, *identity).generate_state(1, np.uint64)[0] >> np.uint64(1))
