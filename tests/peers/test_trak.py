"""TRAK's own library and dattri score as we do when they project by the same matrices."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from leaveout.attribution.task import Task, Trajectory
from leaveout.attribution.trak import attribute
from leaveout.config import MLP, Recipe
from leaveout.gradients.per_sample import n_parameters
from leaveout.gradients.projection import draw, project
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.training.trials import Trial

pytestmark = [pytest.mark.peers, pytest.mark.slow]

MODEL, SHAPE, CLASSES, N_TRAIN, N_TEST, WIDTH = (
    MLP(name="mlp", hidden=(8,)), (1, 4, 4), 3, 60, 9, 12,
)  # fmt: skip


def samples(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, *SHAPE), dtype=np.float32))
    return Samples(inputs, torch.from_numpy(rng.integers(CLASSES, size=n)), CROSS_ENTROPY)


def test_both_score_as_we_do(tmp_path: Path, peers_python: Path) -> None:
    def build(seed: int) -> torch.nn.Module:
        return initialise(MODEL, SHAPE, CLASSES, seed)

    half = [
        Trajectory(
            Trial(0, ("t", "half", run)), [dict(build(run).state_dict())], [1], [0.1],
            torch.ones(N_TRAIN, dtype=torch.bool),
        )
        for run in range(2)
    ]  # fmt: skip
    module = build(0).eval().requires_grad_(False)
    recipe = Recipe(learning_rate=0.1, epochs=1, batch_size=4)
    train, test = samples(N_TRAIN, 0), samples(N_TEST, 1)
    task = Task("t", 0, module, train, test, CROSS_ENTROPY, half, half, build, recipe)
    ours = torch.cat([*attribute(task, models=2, projection=WIDTH)]).numpy()

    size, given = n_parameters(module), {}
    for run, trajectory in enumerate(half):
        of = draw(
            "sparse", size, WIDTH, 0, ("t", "trak", "projection", run, 0), torch.device("cpu")
        )
        given[f"{run} projection"] = project(of, torch.eye(size)).T.numpy()
        given |= {f"{run} {name}": value.numpy() for name, value in trajectory.final.items()}
    for name, part in (("train", train), ("test", test)):
        given |= {f"{name}_inputs": part.inputs.numpy(), f"{name}_labels": part.targets.numpy()}
    np.savez(tmp_path / "given.npz", **given)
    side = Path(__file__).with_name("trak_side.py")
    done = subprocess.run(
        [peers_python, side, tmp_path], capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert np.abs(ours).std() > 1e-3
        for name in ("traker", "dattri"):
            # both invert X'X in float32, whose rounding its condition number multiplies
            assert found[name] == pytest.approx(ours, abs=1e-4 * float(np.abs(ours).max())), name
