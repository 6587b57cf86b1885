from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from leaveout.metrics.evaluate import evaluate


@pytest.fixture
def values(finished: Path) -> Callable[[str, Path], dict[str, float]]:
    """Return a function that measures Grad-Dot's scores against a truth: truth -> value."""

    def measure(metric: str, truth: Path) -> dict[str, float]:
        score = finished / "results/mnist_lr/scores/grad_dot/default.safetensors"
        made = evaluate(
            metric, truth, [score], [],
            setting="mnist_lr", method="grad_dot", root_seed=4, bootstrap=10,
        )  # fmt: skip
        rows = [
            row for row in csv.DictReader(io.StringIO(str(made["csv"]))) if row["half"] == "all"
        ]
        return {row["truth"]: float(row["value"]) for row in rows}

    return measure
