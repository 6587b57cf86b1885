"""Draws: the bootstrap replicates of a method's value, and what its scores were made by.

They lie beside a method's metrics. All methods of a setting are resampled alike, so replicate k of
one method and of another come from the same test samples and the same subsets: their differences
are those of a paired bootstrap, and methods can be compared without any score file at hand. Only
the replicates of the chosen hyper-parameters are kept, of what the tables show as ``value``:
against the mean of all runs, on the half of the samples that had no part in choosing.

The header says, for each grid point, the root seed, the trainings whose models the scores come
from, and which code made them: its git commit and the versions that are in the scores' key.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact, CorruptArtefactError
from leaveout.store.contents import Arrays

Replicates = Mapping[str, NDArray[np.float64]]
"""By the label of a grid point: its value's bootstrap replicates, (draw,)."""

POINT = ("seed", "models", "commit", "code")
"""What is known of each grid point's scores."""


@dataclass(frozen=True)
class Draws:
    """What lies beside a method's metrics.

    Attributes:
        setting: Of which setting.
        metric: Of which metric.
        method: Of which method.
        label: The chosen grid point, whose replicates these are.
        replicates: (draw,), NaN where one is undefined; empty for a metric that has none.
        points: What is known of each grid point's scores, by label: the entries ``POINT``.
    """

    setting: str
    metric: str
    method: str
    label: str
    replicates: NDArray[np.float64]
    points: dict[str, dict[str, str]]


def best(values: Sequence[float]) -> int:
    """Return the place of the largest value: the first of equals, and NaN only if all are NaN."""
    return max(range(len(values)), key=lambda k: (not math.isnan(values[k]), values[k], -k))


def spans(trainings: Iterable[str]) -> str:
    """Say in short which trainings these are: ``full:0-9 half:0-49``.

    Args:
        trainings: Their names (:mod:`leaveout.retraining.trainings`).
    """
    found: dict[str, set[int]] = {}
    for name in trainings:
        # by whose streams, without what it was trained on
        matched = re.match(r"([a-z_]+):(\d+)", name)
        kind, number = (matched[1], int(matched[2])) if matched else (name, -1)
        found.setdefault(kind, set()).add(number)
    return " ".join(
        kind if numbers == {-1} else f"{kind}:{_ranges(sorted(numbers))}"
        for kind, numbers in found.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    starts = [0, *(k + 1 for k, (a, b) in enumerate(pairwise(numbers)) if b != a + 1)]
    ends = [*(k - 1 for k in starts[1:]), len(numbers) - 1]
    return ",".join(
        str(numbers[a]) if a == b else f"{numbers[a]}-{numbers[b]}"
        for a, b in zip(starts, ends, strict=True)
    )


def _point(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return what a score file's header says of where it comes from; nothing if it says nothing."""
    key = json.loads(meta.get("key", "{}"))
    versions = (key.get("code"), key.get("method_code"))
    commit, _, dirty = str(meta.get("commit", "")).partition("-")
    trained = (meta.get("trainings") or {}).get("models", ())
    return {
        "seed": str(meta.get("seed", "")),
        "models": spans(trained),
        "commit": commit[:12] + (f"-{dirty}" if dirty else ""),
        "code": "/".join(str(version) for version in versions if version),
    }


def make_draws(
    metric_csv: str, scores: Iterable[Artefact], replicates: Replicates | None
) -> Arrays:
    """Return the draws that go with a method's metrics.

    Args:
        metric_csv: The text of the metrics.
        scores: The scores they were made from.
        replicates: Those of the value of each grid point; None for a metric that has none.
    """
    rows = [row for row in csv.DictReader(io.StringIO(metric_csv)) if row["truth"] == "mean"]
    choice = [row for row in rows if row["half"] == "select"]
    label = choice[best([float(row["value"]) for row in choice])]["params"]
    kept = np.empty(0) if replicates is None else replicates[label]
    return Arrays(
        "draws",
        {"replicate": kept.astype(np.float32)},
        {"replicate": ("draw",)},
        {
            **{name: rows[0][name] for name in ("setting", "metric", "method")},
            "label": label,
            "points": {str(one.meta["label"]): _point(one.meta) for one in scores},
        },
    )


def read_draws(path: Path) -> Draws:
    """Read what lies beside a method's metrics.

    Raises:
        LeaveoutError: The file is missing, damaged, or of another kind.
    """
    artefact = artefacts.read(path, "draws")
    try:
        names = {name: artefact.meta[name] for name in ("setting", "metric", "method", "label")}
        points = {
            label: {name: point[name] for name in POINT}
            for label, point in artefact.meta["points"].items()
        }
        replicates = artefact.tensors["replicate"].astype(np.float64)
    except KeyError as error:
        raise CorruptArtefactError(path, f"it has no {error}") from error
    return Draws(**names, replicates=replicates, points=points)
