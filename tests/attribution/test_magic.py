from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.attribution import magic
from leaveout.attribution.task import Task
from leaveout.config import Recipe
from leaveout.errors import NotComputableError
from leaveout.training.dropout import Site, draw_masks
from leaveout.training.reference import train_one
from leaveout.training.trials import Trial, epoch_rows

PLAIN = Recipe(learning_rate=0.1, epochs=4, batch_size=5)
DECAY = PLAIN.model_copy(update={"weight_decay": 0.05})
MOMENTUM = PLAIN.model_copy(update={"momentum": 0.8, "weight_decay": 0.05})


def weighted_norm(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm's own formula with weighted sums."""
    total = weights.sum() * values[0, 0].numel()
    mean = torch.einsum("b,bchw->c", weights, values) / total
    centred = values - mean[:, None, None]
    var = torch.einsum("b,bchw->c", weights, centred**2) / total
    return centred / (var + 1e-5).sqrt()[:, None, None], mean, var * total / (total - 1)


def outputs(
    state: dict[str, Tensor],
    statistics: dict[str, Tensor],
    x: Tensor,
    weights: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """The three models of these tests, written out; weights while training only."""
    if "conv1.weight" in state:
        x = functional.conv2d(x, state["conv1.weight"], state["conv1.bias"], padding=1)
        if weights is None:
            x = (x - statistics["mean"][:, None, None]) / (statistics["var"] + 1e-5).sqrt()[
                :, None, None
            ]
        else:
            x, mean, var = weighted_norm(x, weights)
            statistics["mean"] = 0.9 * statistics["mean"] + 0.1 * mean
            statistics["var"] = 0.9 * statistics["var"] + 0.1 * var
        x = x * state["norm1.weight"][:, None, None] + state["norm1.bias"][:, None, None]
        x = functional.max_pool2d(x.relu(), 2)
    x = x.flatten(1)
    if "fc1.weight" in state:
        x = functional.linear(x, state["fc1.weight"], state["fc1.bias"]).relu()
        x = x if mask is None else x * mask / 0.7
    last = "fc2" if "fc2.weight" in state else "linear"
    return functional.linear(x, state[f"{last}.weight"], state[f"{last}.bias"])


def weighted_training(task: Task, trial: Trial, weights: Tensor) -> Tensor:
    """Train with weighted samples, by plain autograd; return the test losses."""
    recipe = task.recipe
    module = task.build(trial.init_seed()).to(weights)
    state = {name: p.detach().clone() for name, p in module.named_parameters()}
    momenta = {name: torch.zeros_like(value) for name, value in state.items()}
    statistics = {"mean": weights.new_zeros(2), "var": weights.new_ones(2)}
    stream = trial.dropout_generator()
    layers = [Site((8,), 0.3)] if "fc1.weight" in state else []
    for epoch in range(recipe.epochs):
        for row in epoch_rows(trial, len(weights), epoch, recipe.batch_size):
            places = row[row >= 0]
            masks = draw_masks(stream, len(places), layers)
            leaves = {name: value.requires_grad_() for name, value in state.items()}
            found = outputs(
                leaves,
                statistics,
                task.train.inputs[places],
                weights[places],
                torch.from_numpy(masks[0]) if masks else None,
            )
            statistics = {name: value.detach() for name, value in statistics.items()}
            losses = functional.cross_entropy(found, task.train.targets[places], reduction="none")
            loss = (weights[places] * losses).sum() / weights[places].sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            with torch.no_grad():
                for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
                    step = gradient + recipe.weight_decay * value
                    momenta[name] = recipe.momentum * momenta[name] + step
                    state[name] = value - recipe.learning_rate * momenta[name]
    found = outputs(state, statistics, task.test.inputs, None, None)
    return functional.cross_entropy(found, task.test.targets, reduction="none").detach()


def with_recipe(task: Task, recipe: Recipe) -> Task:
    return replace(task, recipe=recipe)


@pytest.mark.parametrize("recipe", [PLAIN, DECAY, MOMENTUM], ids=["plain", "decay", "momentum"])
@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_it_is_the_finite_difference_of_training(
    make_task: Any, name: str, shuffle: bool, recipe: Recipe
) -> None:
    if name == "cnn" and shuffle and recipe is not MOMENTUM:
        pytest.skip("one way for all recipes: see the others")
    task = with_recipe(make_task(name), recipe)
    found = magic.attribute(task, shuffle=shuffle).numpy()
    trial = replace(task.full[0].trial, shuffle=shuffle)
    step, ones = 1e-5, torch.ones(len(task.train.ids), dtype=torch.float64)
    for sample in (0, 7, 23):
        ends = []
        for sign in (1, -1):
            weights = ones.clone()
            weights[sample] += sign * step
            ends.append(weighted_training(task, trial, weights).numpy())
        slope = (ends[0] - ends[1]) / (2 * step)
        # rounding of losses near 1 over the step, and the third derivative times its square
        np.testing.assert_allclose(found[sample], -slope, atol=1e-9 + 1e-7 * np.abs(slope).max())


def engine_losses(task: Task, trial: Trial) -> Tensor:
    module = task.build(trial.init_seed()).to(torch.float64)
    train_one(module, trial, task.train, task.recipe)
    with torch.no_grad():
        return task.test.losses(module.eval()(task.test.inputs))


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_weight_zero_is_removal_by_the_engine(make_task: Any, name: str) -> None:
    """So the derivative is one in the direction of leave-one-out, in batch norm's sums as well."""
    task = with_recipe(make_task(name), MOMENTUM)
    for removed in (4, 17):
        weights = torch.ones(len(task.train.ids), dtype=torch.float64)
        weights[removed] = 0
        trial = task.full[0].trial
        expected = engine_losses(task, replace(trial, removed=removed))
        assert (expected - engine_losses(task, trial)).abs().max() > 1e-2
        torch.testing.assert_close(weighted_training(task, trial, weights), expected)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_it_foresees_removal_by_the_engine(make_task: Any, name: str) -> None:
    gentle = MOMENTUM.model_copy(update={"learning_rate": 0.002, "batch_size": 60})
    task = with_recipe(make_task(name, n_train=120), gentle)
    trial, chosen = task.full[0].trial, [0, 11, 29, 71, 119]
    found = magic.attribute(task, shuffle=True)[chosen]
    base = engine_losses(task, trial)
    truth = torch.stack([engine_losses(task, replace(trial, removed=i)) - base for i in chosen])
    # removal from a batch of 60 moves the mean by 1/59 of the distance, its derivative says 1/60
    assert (found - truth).norm() < 0.03 * truth.norm()


def test_what_the_batch_has_in_common_does_nothing(make_task: Any) -> None:
    """All weights together change no mean: every column sums to zero, batch by batch."""
    task = with_recipe(make_task("mlp"), MOMENTUM)
    found = magic.attribute(task, shuffle=False)
    sums = found.split(task.recipe.batch_size)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(
        torch.stack([part.sum(0) for part in sums]),
        torch.zeros(len(sums), found.shape[1], dtype=found.dtype),
        atol=1e-13,
        rtol=0,
    )


def test_test_samples_do_not_matter_to_each_other(make_task: Any) -> None:
    task = with_recipe(make_task("cnn"), MOMENTUM)
    whole = magic.attribute(task, shuffle=True)
    part = magic.attribute(replace(task, test=task.test[3:5]), shuffle=True)
    torch.testing.assert_close(part, whole[:, 3:5])


def test_float32_is_near_float64(make_task: Any) -> None:
    single, double = (
        magic.attribute(with_recipe(make_task("mlp", dtype), MOMENTUM), shuffle=True)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    # 20 steps, each with rounding of 1e-7 of sums of some hundred terms
    torch.testing.assert_close(
        single.double(), double, atol=1e-5 * float(double.abs().max()), rtol=0
    )


def test_its_limits(make_task: Any) -> None:
    task = with_recipe(make_task("mlp"), MOMENTUM)
    with pytest.raises(NotComputableError, match=r"^memory: its adjoints would take .* GB"):
        magic.attribute(replace(task, memory=1000), shuffle=True)
    with pytest.raises(NotComputableError, match=r"^time: going back through 4 epochs would take"):
        magic.attribute(replace(task, seconds=1e-6), shuffle=True)
    rough = MOMENTUM.model_copy(update={"precision": "bfloat16"})
    with pytest.raises(NotComputableError, match=r"^undefined: bfloat16"):
        magic.attribute(with_recipe(task, rough), shuffle=True)


def test_the_module_stays_as_it_was(make_task: Any) -> None:
    task = with_recipe(make_task("cnn"), MOMENTUM)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    magic.attribute(task, shuffle=True)
    assert not any(m.training for m in task.module.modules())
    assert isinstance(task.module, nn.Module)
    assert all(torch.equal(before[name], v) for name, v in task.module.state_dict().items())
