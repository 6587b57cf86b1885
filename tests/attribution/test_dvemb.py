from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from leaveout.attribution import dvemb
from leaveout.attribution.task import Task
from leaveout.config import Recipe
from leaveout.training.dropout import dropped
from leaveout.training.replay import Replay

RATE, SIZE, EPOCHS = 0.1, 5, 4
PLAIN = Recipe(learning_rate=RATE, epochs=EPOCHS, batch_size=SIZE)
MOMENTUM = PLAIN.model_copy(update={"momentum": 0.8, "weight_decay": 0.05})


def steps_of(task: Task) -> tuple[list[tuple[np.ndarray, np.ndarray]], Any]:
    """Return each step's samples and their gradients, one by one, with the run's masks."""
    data = task.train
    replay = Replay(task.build, task.full[0].trial, data, task.recipe)
    names = [name for name, _ in replay.module.named_parameters()]
    found = []
    for epoch in range(EPOCHS):
        for step in replay.epoch(epoch):
            rows = []
            replay.module.train()
            for m in replay.module.modules():
                if isinstance(m, torch.nn.BatchNorm2d):
                    m.eval()
            for place, sample in enumerate(step.batch.tolist()):
                leaves = {name: step.state[name].clone().requires_grad_() for name in names}
                with dropped(replay.sites, [mask[place : place + 1] for mask in step.masks]):
                    out = functional_call(
                        replay.module, {**step.state, **leaves}, (data.inputs[sample : sample + 1],)
                    )
                loss = functional.cross_entropy(out, data.targets[sample : sample + 1])
                parts = torch.autograd.grad(loss, list(leaves.values()))
                rows.append(np.concatenate([g.numpy().ravel() for g in parts]))
            found.append((step.batch.numpy(), np.stack(rows)))
    return found, replay.final


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_it_is_the_product_of_all_later_steps(make_task: Any, gradients: Any, name: str) -> None:
    """The paper's definition: embeddings of every sample at every step, with matrices in full."""
    task = replace(make_task(name), recipe=PLAIN)
    steps, final = steps_of(task)
    right = gradients(task, final, task.test)
    later, expected = np.eye(right.shape[1]), np.zeros((len(task.train.ids), len(right)))
    for batch, g in reversed(steps):
        embedding = RATE / len(batch) * g @ later.T
        expected[batch] += embedding @ right.T
        later = later @ (np.eye(len(later)) - RATE * g.T @ g / len(batch))
    found = dvemb.attribute(task).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max(), rtol=1e-9)
    flat = np.zeros_like(expected)  # without any later step it is another thing
    for batch, g in steps:
        flat[batch] += RATE / len(batch) * g @ right.T
    assert np.abs(found - flat).max() > 0.05 * np.abs(found).max()


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_momentum_and_decay_are_followed(make_task: Any, gradients: Any, name: str) -> None:
    """One sample's displacement of (weights, momentum), forwards, step by step."""
    task = replace(make_task(name), recipe=MOMENTUM)
    steps, final = steps_of(task)
    right = gradients(task, final, task.test)
    found = dvemb.attribute(task).numpy()
    for sample in (0, 13):
        moved, velocity = np.zeros(right.shape[1]), np.zeros(right.shape[1])
        for batch, g in steps:
            change = g.T @ (g @ moved) / len(batch) + 0.05 * moved
            for place in np.flatnonzero(batch == sample):
                change = change - g[place] / len(batch)
            velocity = 0.8 * velocity + change
            moved = moved - RATE * velocity
        np.testing.assert_allclose(found[sample], right @ moved, rtol=1e-9)
