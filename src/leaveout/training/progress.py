"""A bar that shows how much of long work is done, and the time left."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str = "model", delay: float = 0) -> tqdm[NoReturn]:
    """Return a bar that shows, on standard error, how much is done.

    Args:
        total: How many units there are.
        what: What is done.
        unit: Of what.
        delay: Seconds before it is shown, for work that may be short.
    """
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        mininterval=5,
        delay=delay,
        file=sys.stderr,
        ascii=True,
    )
