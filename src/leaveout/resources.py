"""What a step asks of a machine: memory and time, and more of both at each attempt.

The bases are for the published settings, with room to spare (chunks are cut to at most an hour). A
job that meets its limit is tried again with twice as much; how often, the profile says. Locally
none of it is enforced.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """What the first attempt asks for.

    Attributes:
        mem_mb: Memory in MB.
        minutes: Time in minutes.
    """

    mem_mb: int
    minutes: int


BASES = {
    "prepare": Base(4000, 60),
    "models": Base(2000, 120),
    "lds": Base(2000, 120),
    "loo": Base(2000, 120),
    "truth": Base(4000, 30),
    "attribute": Base(8000, 60),
    "evaluate": Base(4000, 30),
}
"""By step. What is not here takes the profile's default."""


def mem_mb(step: str, attempt: int) -> int:
    """Return the memory of an attempt (from 1) in MB: doubled each time."""
    return BASES[step].mem_mb << (attempt - 1)


def minutes(step: str, attempt: int) -> int:
    """Return the time limit of an attempt (from 1) in minutes: doubled each time."""
    return BASES[step].minutes << (attempt - 1)
