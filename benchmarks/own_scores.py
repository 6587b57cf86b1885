"""leaveout's side of `speed_attribution.py`: the functions that the workflow runs.

Usage: python own_scores.py FOLDER GIB THREADS, with `setting.json`, `data.safetensors`,
`full-*.safetensors` and `half-*.safetensors` in the folder; GIB is the memory it may have.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaveout.attribution.task import Task
from leaveout.config import Setting
from leaveout.problem.samples import Samples
from leaveout.retraining.common import load_data
from leaveout.scoring.run import load_task
from leaveout.store import artefacts
from speed_protocol import Message, limit_memory, reset_peak, resident_mb, serve

FOLDER = Path(sys.argv[1])
limit_memory(float(sys.argv[2]))


def _task() -> Task:
    setting = Setting.model_validate_json((FOLDER / "setting.json").read_text())
    full, half = (
        [artefacts.read(path, "models") for path in sorted(FOLDER.glob(f"{kind}-*.safetensors"))]
        for kind in ("full", "half")
    )
    return load_task(setting, load_data(setting, FOLDER / "data.safetensors", "cpu"), full, half)


def _blocks(task: Task, method: str, params: dict[str, Any]) -> Iterator[Tensor]:
    found = importlib.import_module(f"leaveout.attribution.{method}").attribute(task, **params)
    yield from [found] if isinstance(found, Tensor) else found


TASK = _task()


def ready(worker: int) -> Message:
    """Answer that everything is imported and read, which no time is to count."""
    return {}


def score(worker: int, method: str, params: dict[str, Any], n_test: int, out: str) -> Message:
    """Score all training samples for ``n_test``, (train, test), and save it to ``out``."""
    task = replace(TASK, test=TASK.test[:n_test])
    start = time.perf_counter()
    scores = torch.cat(list(_blocks(task, method, params)))
    seconds = time.perf_counter() - start
    np.save(out, scores.numpy())
    return {"seconds": seconds}


def _repeated(samples: Samples, n: int) -> Samples:
    """Return ``n`` samples: those there are, over and over, each time with other noise."""
    rows = torch.arange(n) % len(samples.ids)
    inputs = samples.inputs[rows]
    noise = torch.empty_like(inputs).normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return Samples(inputs.add_(noise), samples.targets[rows], samples.objective)


def scale(worker: int, method: str, params: dict[str, Any], n_train: int, n_test: int) -> Message:
    """Score ``n_train`` samples, keeping no block, and say how much memory came to be needed."""
    train = _repeated(TASK.train, n_train)
    seen = [replace(t, trained_on=torch.ones(n_train, dtype=torch.bool)) for t in TASK.full]
    task = replace(TASK, train=train, test=TASK.test[:n_test], full=seen)
    reset_peak()
    before, start = resident_mb(), time.perf_counter()
    rows = sum(len(block) for block in _blocks(task, method, params))
    assert rows == n_train
    return {
        "seconds": time.perf_counter() - start,
        "before_mb": before,
        "data_mb": train.inputs.nbytes / 2**20,
    }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve({"ready": ready, "score": score, "scale": scale})
