"""The way of stacks of linear layers against that of any module.

What both compute is tested where it is a method: tests/attribution/test_magic.py (finite
differences of training) and test_dvemb.py (the definition, matrix by matrix).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from leaveout.config import MLP, Recipe
from leaveout.curvature import unroll, unroll_any
from leaveout.curvature.unroll_any import Curvature
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.training.replay import Replay
from leaveout.training.trials import Trial

PLAIN = Recipe(learning_rate=0.1, epochs=2, batch_size=6)
RECIPES = {
    "plain": PLAIN,
    "decay": PLAIN.model_copy(update={"weight_decay": 0.1}),
    "momentum": PLAIN.model_copy(update={"momentum": 0.8}),
    "both": PLAIN.model_copy(update={"momentum": 0.8, "weight_decay": 0.1}),
}
TRIALS = {"all": Trial(0, ("t",)), "without 4": Trial(0, ("t",), removed=4)}


def build(seed: int) -> nn.Module:
    return initialise(MLP(name="mlp", hidden=(7, 5), dropout=0.4), (1, 4, 4), 3, seed).double()


def found(recipe: Recipe, trial: Trial, curvature: Curvature) -> torch.Tensor:
    rng = np.random.default_rng(0)
    inputs = torch.from_numpy(rng.standard_normal((20, 1, 4, 4)))
    labels = torch.from_numpy(rng.integers(3, size=20))
    samples = Samples(inputs, labels, CROSS_ENTROPY)
    replay = Replay(build, trial, samples[:15], recipe)
    module = build(0).eval().requires_grad_(False)
    final = unroll.final_gradients(module, replay.final, samples[15:])
    return unroll.unroll(replay, final, curvature)


@pytest.mark.parametrize("curvature", ["hessian", "outer"])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("trial", TRIALS)
def test_by_hand_and_by_autograd(
    trial: str, recipe: str, curvature: Curvature, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = found(RECIPES[recipe], TRIALS[trial], curvature)
    assert (by_hand[4].abs().max() > 0) == (trial == "all")
    assert by_hand.abs().max() > 1e-3
    monkeypatch.setattr(unroll, "stack_layers", lambda replay: None)
    torch.testing.assert_close(found(RECIPES[recipe], TRIALS[trial], curvature), by_hand)
    monkeypatch.setattr(unroll_any, "CHUNK_BYTES", 1)
    torch.testing.assert_close(found(RECIPES[recipe], TRIALS[trial], curvature), by_hand)
