from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import matplotlib.figure
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, as matplotlib has them."""
    figures: list[Any] = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig",
        lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw))[1],
    )  # fmt: skip
    return figures


@pytest.fixture
def check_labels() -> Callable[..., tuple[int, int]]:
    """Return a function that checks that no label is cut off, and no two overlap.

    Ticks outside the limits are kept by matplotlib but never drawn: those are plain numbers, and
    ``ticks`` matches what is not looked at for that. It says how many texts there are in all, and
    how many of them were checked.
    """

    def check(figure: Any, ticks: str = r"[−\d.]+|\$.*\$") -> tuple[int, int]:
        FigureCanvasAgg(figure).draw()
        boxes = [
            (text.get_text(), text.get_window_extent())
            for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip()
        ]
        named = [(name, box) for name, box in boxes if not re.fullmatch(ticks, name)]
        for name, box in named:
            assert box.x0 >= 0, name
            assert box.y0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name
            assert box.y1 <= figure.bbox.y1, name
        for (one, a), (other, b) in combinations(named, 2):
            assert not a.overlaps(b), (one, other)
        return len(boxes), len(named)

    return check
