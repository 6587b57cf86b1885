"""Hold the cost model (leaveout.workflow.costs) against the clock: seconds a model, on one thread.

Usage: python benchmarks/estimates.py [NAME ...]; prints rows of the table in docs/scale.md.

Process time, the better of two rounds, so that other processes on the machine count for little. The
constants were fitted to the settings above the line in CASES; those below it were not looked at.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leaveout.config import Setting
from leaveout.data.identity import data_identity
from leaveout.data.prepare import prepare
from leaveout.retraining.common import load_data
from leaveout.retraining.loo import loo_trial
from leaveout.retraining.subsets import subset_mask
from leaveout.store.contents import save
from leaveout.training.engine import train
from leaveout.training.trials import Trial
from leaveout.workflow import costs

MNIST = {"name": "mnist", "n_train": 5000, "n_test": 500, "mean": 0.1307, "std": 0.3081}
DIGITS = {"name": "digits", "n_train": 1500, "n_test": 200, "mean": 0.3053, "std": 0.3760}


def _case(
    dataset: dict[str, Any], model: dict[str, Any], models: int, **recipe: Any
) -> tuple[dict[str, Any], int]:
    """Return a setting, and how many models of it to train."""
    values = {
        "dataset": dataset,
        "model": model,
        "recipe": {"learning_rate": 0.01, **recipe},
        "full": {"checkpoints": 1},
        "loo": {"ids": {"first": 400}},
    }
    return values, models


def _mlp(*hidden: int, dropout: float = 0.0) -> dict[str, Any]:
    return {"name": "mlp", "hidden": hidden, "dropout": dropout}


def _cnn(*channels: int, batch_norm: bool = False) -> dict[str, Any]:
    return {"name": "cnn", "channels": channels, "batch_norm": batch_norm}


LINEAR = {"name": "linear"}
CASES = {
    "mnist_lr": _case(MNIST, LINEAR, 100, epochs=20, batch_size=32),
    "digits_lr": _case(DIGITS, LINEAR, 200, epochs=20, batch_size=16),
    "mnist_mlp": _case(
        MNIST, _mlp(128, 64, dropout=0.1), 16, epochs=50, batch_size=64, momentum=0.9
    ),
    "mnist_mlp, plain": _case(MNIST, _mlp(128, 64), 16, epochs=50, batch_size=64),
    "mnist_mlp, wide": _case(MNIST, _mlp(512, 256), 8, epochs=10, batch_size=64, momentum=0.9),
    "digits_mlp": _case(DIGITS, _mlp(16, dropout=0.1), 100, epochs=20, batch_size=16, momentum=0.9),
    "mnist_cnn 8-16": _case(MNIST, _cnn(8, 16), 4, epochs=5, batch_size=64),
    "mnist_cnn 16-32": _case(MNIST, _cnn(16, 32), 4, epochs=5, batch_size=64, momentum=0.9),
    "mnist_cnn 32-64, batch norm": _case(
        MNIST, _cnn(32, 64, batch_norm=True), 2, epochs=3, batch_size=64, momentum=0.9
    ),
    "digits_cnn 4-8, batch norm": _case(
        DIGITS, _cnn(4, 8, batch_norm=True), 4, epochs=4, batch_size=20, momentum=0.9
    ),
    # held out
    "mnist_lr, batches of 128": _case(MNIST, LINEAR, 100, epochs=10, batch_size=128, momentum=0.5),
    "mnist_mlp 256": _case(MNIST, _mlp(256), 12, epochs=10, batch_size=128),
    "digits_mlp 64-64-64": _case(
        DIGITS, _mlp(64, 64, 64, dropout=0.5), 48, epochs=10, batch_size=50
    ),
    "mnist_cnn 24, batches of 16": _case(MNIST, _cnn(24), 3, epochs=2, batch_size=16),
    "digits_cnn 16-32-64": _case(
        DIGITS, _cnn(16, 32, 64), 3, epochs=4, batch_size=50, momentum=0.9
    ),
}


def measure(setting: Setting, folder: Path, models: int) -> dict[str, float]:
    """Return the process time of one model, of a random half and of leave-one-out."""
    path = folder / f"{setting.dataset.name}.safetensors"
    if not path.exists():
        save(path, prepare(setting), {"key": json.dumps(data_identity(setting))})
    data = load_data(setting, path, "cpu")
    wanted = {
        "lds": [
            Trial(0, ("estimates", i), kept=np.flatnonzero(subset_mask(setting, "lds", i)))
            for i in range(models)
        ],
        "loo": [loo_trial(setting, i, 0) for i in range(models)],
    }
    found = {}
    for layer, trials in wanted.items():
        rounds = []
        for _ in range(2):
            start = time.process_time()
            stacks = train(data.build, trials, data.train, setting.recipe)
            for trained in stacks:
                trained.outputs(data.test.inputs)
            rounds.append((time.process_time() - start) / models)
        found[layer] = min(rounds)
    return found


def main() -> None:
    """Print one row a setting."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or CASES:
            values, models = CASES[name]
            setting = Setting.model_validate({"name": "estimates", **values})
            work = costs.workload(setting)
            cells = [name]
            for layer, seconds in measure(setting, Path(folder), models).items():
                paired = layer == "loo"
                estimate = costs.training_seconds(work, 1.0 if paired else 0.5, shared=paired)
                cells += [f"{seconds:.2g}", f"{estimate:.2g}", f"{estimate / seconds:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
