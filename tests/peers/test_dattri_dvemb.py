"""dattri's DVEmb, given our training step by step, has the scores that ours has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leaveout.attribution import dvemb
from leaveout.attribution.task import Task, Trajectory
from leaveout.config import MLP, Linear, Model, Recipe
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.training.replay import Replay
from leaveout.training.trials import Trial

pytestmark = [pytest.mark.peers, pytest.mark.slow]

MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(8,), dropout=0),
}
RECIPE = Recipe(learning_rate=0.1, epochs=5, batch_size=7)


def samples(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    inputs = torch.from_numpy(rng.standard_normal((n, 1, 4, 4)))
    return Samples(inputs, torch.from_numpy(rng.integers(3, size=n)), CROSS_ENTROPY)


def write_steps(task: Task, replay: Replay, path: Path) -> None:
    """Write every step of a training of linear layers."""
    parameters = [name for name, _ in task.module.named_parameters()]
    linear = [m for m in task.module.modules() if isinstance(m, nn.Linear)]
    steps = [(epoch, step) for epoch in range(RECIPE.epochs) for step in replay.epoch(epoch)]
    torch.save(
        {
            "sizes": [linear[0].in_features, *(m.out_features for m in linear)],
            "rate": RECIPE.learning_rate,
            "inputs": task.train.inputs.flatten(1),
            "labels": task.train.targets,
            "test_inputs": task.test.inputs.flatten(1),
            "test_labels": task.test.targets,
            "epoch": [epoch for epoch, _ in steps],
            "batch": [step.batch for _, step in steps],
            "state": [[step.state[name] for name in parameters] for _, step in steps],
            "final": [replay.final[name] for name in parameters],
        },
        path,
    )


def test_the_scores_are_dattri_s(tmp_path: Path, peers_python: Path) -> None:
    train, test, trial = samples(30, 0), samples(6, 1), Trial(0, ("t", "full", 0))
    ours = {}
    for name, model in MODELS.items():

        def build(seed: int, model: Model = model) -> nn.Module:
            return initialise(model, (1, 4, 4), 3, seed).double()

        replay = Replay(build, trial, train, RECIPE)
        run = Trajectory(trial, [replay.final], [5], [0.1], torch.ones(30, dtype=torch.bool))
        module = build(0).eval().requires_grad_(False)
        task = Task("t", 0, module, train, test, CROSS_ENTROPY, [run], [], build, RECIPE)
        ours[name] = dvemb.attribute(task).numpy()
        write_steps(task, replay, tmp_path / f"{name}.pt")
    done = subprocess.run(
        [peers_python, Path(__file__).with_name("dvemb_side.py"), tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, found in ours.items():
        theirs = np.load(tmp_path / f"{name}.npy")
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(found, theirs, atol=1e-10 * np.abs(theirs).max(), rtol=1e-7)
