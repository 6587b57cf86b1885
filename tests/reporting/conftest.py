from __future__ import annotations

import csv
import re
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from leaveout.metrics.evaluate import COLUMNS
from leaveout.store import artefacts


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


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Return a function that writes a method's metrics and the draws beside them.

    ``cells`` holds, by grid point, values by (truth, half), .5 where none is given;
    ``replicates`` are those of the first grid point.
    """

    def write(
        method: str,
        cells: dict[str, dict[tuple[str, str], float]],
        replicates: Any = (),
        *,
        setting: str = "toy",
        metric: str = "lds",
        **more: object,
    ) -> tuple[Path, Path]:
        path = tmp_path / f"{setting}-{metric}-{method}.csv"
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            for (label, values), truth, half in product(
                cells.items(), ("mean", "single"), ("select", "report", "all")
            ):
                value = values.get((truth, half), 0.5)
                row = dict.fromkeys(COLUMNS, "0") | {
                    "setting": setting, "metric": metric, "method": method, "params": label,
                    "truth": truth, "half": half, "value": value, "ci_low": value - 0.1,
                    "ci_high": value + 0.1, "ceiling": 0.8, "not_computed": "",
                }  # fmt: skip
                writer.writerow(row | more)
        point = {"seed": "3", "models": "full:0-9", "code": "aa+bb"}
        meta = {
            "setting": setting, "metric": metric, "method": method, "label": next(iter(cells)),
            "points": {label: point | {"commit": f"of {label}"} for label in cells},
        }  # fmt: skip
        draws = path.with_suffix(".draws.safetensors")
        kept = np.asarray(replicates, dtype=np.float32)
        artefacts.write(draws, "draws", {"replicate": kept}, {"replicate": ("draw",)}, meta)
        return path, draws

    return write
