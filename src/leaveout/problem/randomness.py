"""The global random generators, which functions of a user's draw from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from leaveout.seeds import seed_sequence, torch_seed


def states() -> tuple[object, ...]:
    """Return where the global generators stand: equal as long as nobody draws from them."""
    numpy = np.random.get_state(legacy=False)
    inner = numpy["state"]
    there = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return (
        random.getstate(),
        {**numpy, "state": {name: np.asarray(value).tobytes() for name, value in inner.items()}},
        [state.numpy().tobytes() for state in (torch.random.get_rng_state(), *there)],
    )


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Leave the caller's generators (Python's, NumPy's and torch's) as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    # Where CUDA has not been started there is no state to keep, and starting it would cost memory.
    started = torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if started else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def seeded(root: int, *identity: str | int) -> Iterator[None]:
    """Seed the global generators from an identity, and leave the caller's as they were.

    Args:
        root: The bank's root seed.
        *identity: Whose streams they are, e.g. ``"lds", 17, 0``.
    """
    with preserved():
        torch.manual_seed(torch_seed(root, *identity, "torch"))
        np.random.seed(seed_sequence(root, *identity, "numpy").generate_state(8))
        random.seed(torch_seed(root, *identity, "python"))
        yield


def argument_seed(root: int, *identity: str | int) -> int:
    """Return the seed that a training function is given as an argument, below 2**32.

    No more than that, because ``numpy.random.seed``, which such functions call, takes no more.
    """
    return int(seed_sequence(root, *identity, "argument").generate_state(1, np.uint32)[0])
