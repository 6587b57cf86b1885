from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leaveout.config import CNN, MLP, Linear, Model, Recipe
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.training.reference import train_one
from leaveout.training.replay import Replay
from leaveout.training.trials import Trial

SHAPE, CLASSES, N = (1, 4, 4), 3, 20
MODELS: dict[str, Model] = {
    "linear": Linear(name="linear"),
    "mlp": MLP(name="mlp", hidden=(8, 6), dropout=0.3),
    "cnn": CNN(name="cnn", channels=(2,), batch_norm=True),
}
RECIPE = Recipe(learning_rate=0.1, momentum=0.9, weight_decay=0.01, epochs=4, batch_size=6)
TRIALS = {
    "shuffled": Trial(0, ("t", "full", 0)),
    "in order": Trial(0, ("t", "full", 0), shuffle=False),
    "one removed": Trial(0, ("t", "full", 0), removed=3),
    "a half": Trial(0, ("t", "half", 0), kept=np.arange(0, N, 2)),
}


def data() -> Samples:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.standard_normal((N, *SHAPE)))
    return Samples(inputs, torch.from_numpy(rng.integers(CLASSES, size=N)), CROSS_ENTROPY)


def trained(model: str, trial: Trial) -> tuple[list[dict[str, Tensor]], Replay]:
    def build(seed: int) -> nn.Module:
        return initialise(MODELS[model], SHAPE, CLASSES, seed).double()

    states = train_one(build(trial.init_seed()), trial, data(), RECIPE, range(1, 5))
    return states, Replay(build, trial, data(), RECIPE)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("which", TRIALS)
def test_it_is_the_training_bit_for_bit(model: str, which: str) -> None:
    states, replay = trained(model, TRIALS[which])
    assert states[-1].keys() == replay.final.keys()
    assert all(torch.equal(states[-1][name], value) for name, value in replay.final.items())


@pytest.mark.parametrize("model", MODELS)
def test_epochs_are_gone_through_again_in_any_order(model: str) -> None:
    states, replay = trained(model, TRIALS["shuffled"])
    for epoch in (3, 1, 3, 2):
        steps = replay.epoch(epoch)
        assert len(steps) == 4
        seen = torch.cat([step.batch for step in steps])
        assert sorted(seen.tolist()) == list(range(N))
        start = steps[0].state
        assert all(torch.equal(start[name], value) for name, value in states[epoch - 1].items())
        final: Any = replay.module.state_dict()
        assert all(torch.equal(final[name], value) for name, value in states[epoch].items())


def test_the_removed_sample_is_in_no_step() -> None:
    _, replay = trained("mlp", TRIALS["one removed"])
    assert all(3 not in step.batch for step in replay.epoch(2))
