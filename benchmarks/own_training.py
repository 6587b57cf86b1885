"""leaveout's side of `speed_retraining.py`: the jobs as the workflow runs them, with their files.

Usage: python own_training.py FOLDER THREADS, with `data.safetensors` in the folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leaveout.config import Setting
from leaveout.config.subset_file import subset_size
from leaveout.retraining.common import load_data
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.loo import retrain_loo
from leaveout.store.contents import save
from leaveout.training.engine import train
from leaveout.training.losses import stacked_targets
from leaveout.training.trials import Trial
from speed_protocol import Message, serve

FOLDER = Path(sys.argv[1])
DATA = FOLDER / "data.safetensors"


def peak(worker: int, seconds: float) -> Message:
    """Return the matrix-product rate in GFLOP/s: float32, 2048 x 2048, the best of some."""
    n = 2048
    left, right, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    torch.mm(left, right, out=out)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return {"gflops": 2e-9 * n**3 / best}


def lds(worker: int, setting: dict[str, Any], chunk: int) -> Message:
    """Run chunk number ``chunk + worker`` of the first LDS run."""
    with tempfile.TemporaryDirectory() as folder:
        found = retrain_lds(Setting.model_validate(setting), f"0-{chunk + worker}", DATA, "cpu")
        save(Path(folder) / "lds.safetensors", found)
    return {}


def loo(worker: int, setting: dict[str, Any], chunk: int) -> Message:
    """Run chunk number ``chunk + worker`` of the first LOO run."""
    with tempfile.TemporaryDirectory() as folder:
        found = retrain_loo(Setting.model_validate(setting), f"0-{chunk + worker}", DATA, "cpu")
        save(Path(folder) / "loo.safetensors", found)
    return {}


def losses(worker: int, setting: dict[str, Any], kept: list[int], runs: int, path: Any) -> Message:
    """Train models on the same samples, each with its own seed; return their mean test losses.

    ``path`` is the engine's.
    """
    checked = Setting.model_validate(setting)
    data = load_data(checked, DATA, "cpu")
    trials = [Trial(0, ("speed", run), kept=np.array(sorted(kept))) for run in range(runs)]
    found: list[float] = []
    for trained in train(data.build, trials, data.train, checked.recipe, path=path):
        targets = stacked_targets(trained.outputs(data.test.inputs), data.test)
        found += targets.mean(1).tolist()
    return {"losses": found}


def flops(worker: int, setting: dict[str, Any]) -> Message:
    """Count the floating-point operations of the matrix products of one LDS model's training.

    Forward and weight gradient of every layer, input gradient of all but the first: 2 m n k each.
    """
    checked = Setting.model_validate(setting)
    data = load_data(checked, DATA, "cpu")
    module = data.build(0)
    forward: list[int] = []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        places = output[0].numel() // len(weight)
        forward.append(2 * weight.numel() * places)

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    module(data.train.inputs[:1])
    samples = checked.recipe.epochs * subset_size(checked.dataset.n_train, checked.lds.ratio)
    return {"flops": samples * (2 * sum(forward) + sum(forward[1:])), "samples": samples}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve({"peak": peak, "lds": lds, "loo": loo, "losses": losses, "flops": flops})
