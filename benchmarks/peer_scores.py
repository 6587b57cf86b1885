"""The other libraries' side of `speed_attribution.py`; run with the peers' Python.

Usage: python peer_scores.py LIBRARY FOLDER GIB THREADS, with `data.npz` and `models.npz` in the
folder; GIB is the memory it may have.

Each library gets samples and weights ready in memory, and the time counts from there to the scores:
making its objects, preparing what it prepares, and scoring. Its batch sizes are those of its own
examples, named where they are set.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import TensorDataset

from peer_problem import Problem, read
from speed_protocol import Message, limit_memory, serve

LIBRARY, FOLDER = sys.argv[1], Path(sys.argv[2]).resolve()
limit_memory(float(sys.argv[3]))
METHODS: dict[str, Any] = importlib.import_module(f"peer_scores_{LIBRARY}").METHODS
PROBLEM: Problem = read(FOLDER)
os.chdir(FOLDER)  # some leave files where they run


def ready(worker: int) -> Message:
    """Answer that everything is imported and read, which no time is to count."""
    return {}


def score(worker: int, method: str, params: dict[str, Any], n_test: int, out: str) -> Message:
    """Score all training samples for ``n_test``, (train, test), and save it to ``out``."""
    problem = replace(PROBLEM, test=TensorDataset(*PROBLEM.test[:n_test]))
    start = time.perf_counter()
    scores = METHODS[method](problem, **params)
    seconds = time.perf_counter() - start
    np.save(out, scores.detach().numpy())
    return {"seconds": seconds}


if __name__ == "__main__":
    importlib.import_module("torch").set_num_threads(int(sys.argv[4]))
    serve({"ready": ready, "score": score})
