from __future__ import annotations

from typing import Any

import matplotlib.figure
import pytest


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
