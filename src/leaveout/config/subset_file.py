"""A user's own subsets: a text file, one subset a line, of the ids that are kept.

Ids are separated by spaces or commas; what follows a ``#`` is a comment. Reading it is part of
reading the configuration, so it is quick and loads neither NumPy nor torch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Subsets:
    """The subsets of a file.

    Attributes:
        file: Its name, as the setting has it.
        lines: The ids of each subset, as text.
        places: Where each stands in the file, counted from 1.
        digests: One for each subset, whatever order its ids are written in.
        largest: The largest id of each.
    """

    file: str
    lines: tuple[str, ...]
    places: tuple[int, ...]
    digests: tuple[str, ...]
    largest: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of subsets."""
        return len(self.lines)

    def ids(self, subset: int) -> list[int]:
        """Return the ids of one subset, ascending."""
        return _ids(self.lines[subset])


def _ids(line: str) -> list[int]:
    return sorted(map(int, line.replace(",", " ").split()))


def read_subsets(file: str, folder: Path) -> Subsets:
    """Read a file of subsets.

    Args:
        file: Its name, relative to ``folder`` or absolute.
        folder: The configuration folder.

    Raises:
        ValueError: The file is missing or is not text, a line has something that is no id, or an id
            twice, or two lines are one subset; names file, line and id.
    """
    path = folder / file
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; the file is looked for in the configuration folder"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error}") from error
    lines, places, digests, largest = [], [], [], []
    first: dict[str, int] = {}
    for place, line in enumerate(text.rstrip().splitlines(), 1):
        kept = line.partition("#")[0].strip()
        if not kept:
            if "#" not in line:
                raise ValueError(f"{path}, line {place}: empty; a subset keeps one sample at least")
            continue
        digest, last = _checked(kept, f"{path}, line {place}")
        if first.setdefault(digest, place) != place:
            raise ValueError(
                f"{path}, line {place}: the same subset as line {first[digest]}; to train it more "
                "often, raise lds.runs"
            )
        lines.append(kept)
        places.append(place)
        digests.append(digest)
        largest.append(last)
    return Subsets(file, tuple(lines), tuple(places), tuple(digests), tuple(largest))


def _checked(line: str, where: str) -> tuple[str, int]:
    """Return the digest of a subset and its largest id, after a look at its ids."""
    try:
        ids = _ids(line)
    except ValueError:
        words = line.replace(",", " ").split()
        wrong = next(word for word in words if not word.lstrip("+-").isdecimal())
        raise ValueError(f"{where}: {wrong!r} is no id") from None
    if not ids:  # commas only
        raise ValueError(f"{where}: empty; a subset keeps one sample at least")
    if len(set(ids)) != len(ids):
        twice = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise ValueError(f"{where}: the id {twice} stands there twice")
    for odd in (ids[0], ids[-1]):
        if not 0 <= odd < 2**63:
            raise ValueError(f"{where}: {odd} is no id")
    packed = array("q", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return hashlib.sha256(packed.tobytes()).hexdigest(), ids[-1]


def subset_size(n: int, ratio: float) -> int:
    """Return how many of some samples a drawn subset keeps: a part of them, rounded down.

    A product that is whole but for rounding counts as whole: 0.29 of 100 is 29, where
    ``int(0.29 * 100)`` is 28.

    Args:
        n: How many samples there are.
        ratio: The part of them that is kept.
    """
    return math.floor(n * ratio + 1e-9)
