"""The two halves of the test samples: one to choose hyper-parameters on, one to report."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leaveout import seeds
from leaveout.errors import LeaveoutError

HALVES = ("select", "report", "all")
Ids = NDArray[np.int64]


def split(test_id: Ids, setting: str, root_seed: int) -> dict[str, NDArray[np.bool_]]:
    """Split sorted test ids in two halves at random, by identity (setting, "selection").

    Returns:
        For each of ``select``, ``report`` and ``all`` whether it holds each test sample.
    """
    order = seeds.generator(root_seed, setting, "selection").permutation(len(test_id))
    select = np.zeros(len(test_id), dtype=bool)
    select[order[: len(test_id) // 2]] = True
    return {"select": select, "report": ~select, "all": np.ones(len(test_id), dtype=bool)}


def chosen(metric_csv: Path) -> str:
    """Return which hyper-parameters a metric chooses on the ``select`` half, as the tables do.

    Args:
        metric_csv: What ``leaveout evaluate`` wrote of one method.

    Returns:
        Their label: the best against the mean of the runs, the first of equals; NaN only if all
        are.

    Raises:
        LeaveoutError: The file is missing, or is no such file.
    """
    values: dict[str, float] = {}
    try:
        with metric_csv.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                if (row["truth"], row["half"]) == ("mean", "select"):
                    values[row["params"]] = float(row["value"])
    except FileNotFoundError as error:
        raise LeaveoutError(
            f"{metric_csv}: no such file. Make it with: snakemake {metric_csv}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise LeaveoutError(
            f"{metric_csv}: not a metric's CSV ({error!r}). Delete the file and make it anew."
        ) from error
    if not values:
        raise LeaveoutError(
            f"{metric_csv}: no row for truth=mean, half=select. Delete the file and make it anew."
        )
    return max(values, key=lambda label: -math.inf if math.isnan(values[label]) else values[label])
