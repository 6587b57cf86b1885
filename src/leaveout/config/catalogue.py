"""Every data set, with what has to be known of it before its files are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["mnist", "fashion_mnist", "digits"]


@dataclass(frozen=True)
class Facts:
    """What the configuration and the plan of jobs need to know of a data set.

    Attributes:
        shape: Channels, height and width of a sample.
        classes: How many there are.
        full_scale: The largest value a pixel can have; inputs are scaled to [0, 1] by it.
        stored: Bytes of one pixel in the prepared file.
        sources: Where it can come from.
    """

    shape: tuple[int, int, int]
    classes: int
    full_scale: int
    stored: int
    sources: tuple[str, ...]


DATASETS: dict[Name, Facts] = {
    "mnist": Facts((1, 28, 28), 10, 255, 1, ("bundled", "hub", "idx")),
    "fashion_mnist": Facts((1, 28, 28), 10, 255, 1, ("bundled", "idx")),
    "digits": Facts((1, 8, 8), 10, 16, 4, ("bundled",)),
}
