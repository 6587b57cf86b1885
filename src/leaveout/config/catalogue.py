"""Every data set, with what has to be known of it before its files are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["mnist", "fashion_mnist", "digits", "diabetes", "breast_cancer", "wine"]


@dataclass(frozen=True)
class Facts:
    """What the configuration and the plan of jobs need to know of a data set.

    Attributes:
        shape: Of a sample: channels, height and width of an image, or the features of a table.
        classes: How many there are; None where the targets are numbers.
        stored: Bytes of one number in the prepared file.
        sources: Where it can come from.
        full_scale: The largest value a pixel can have; inputs are scaled to [0, 1] by it. None for
            tables, whose columns are standardised.
    """

    shape: tuple[int, ...]
    classes: int | None
    stored: int
    sources: tuple[str, ...]
    full_scale: int | None = None


DATASETS: dict[Name, Facts] = {
    "mnist": Facts((1, 28, 28), 10, 1, ("bundled", "hub", "idx"), 255),
    "fashion_mnist": Facts((1, 28, 28), 10, 1, ("bundled", "idx"), 255),
    "digits": Facts((1, 8, 8), 10, 4, ("bundled",), 16),
    "diabetes": Facts((10,), None, 4, ("bundled",)),
    "breast_cancer": Facts((30,), 2, 4, ("bundled",)),
    "wine": Facts((13,), 3, 4, ("bundled",)),
}
