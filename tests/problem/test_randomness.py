from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from leaveout.problem.randomness import argument_seed, preserved, seeded


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_callers_generators_stay_as_they_were_also_after_an_error() -> None:
    with preserved():
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        expected = draws()
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        with seeded(0, "lds", 1):
            draws()

        def fail() -> None:
            with seeded(0, "lds", 2):
                draws()
                raise RuntimeError("it fell over")

        with pytest.raises(RuntimeError):
            fail()
        assert draws() == expected


def test_streams_follow_root_and_identity_alone() -> None:
    def under(root: int, *identity: str | int) -> tuple[float, float, float]:
        with seeded(root, *identity):
            return draws()

    first = under(0, "lds", 1, 0)
    assert under(0, "lds", 1, 0) == first
    for other in ((1, "lds", 1, 0), (0, "lds", 0, 1), (0, "lds", 1, 1), (0, "loo", 1, 0)):
        assert all(a != b for a, b in zip(under(*other), first, strict=True))


def test_the_seed_handed_on_suits_numpy() -> None:
    found = {argument_seed(root, "lds", subset, 0) for root in range(30) for subset in range(30)}
    assert len(found) == 900
    assert all(0 <= seed < 2**32 for seed in found)
