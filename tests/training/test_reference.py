"""All paths against loops written out here: plain arithmetic, no optimiser, no engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from leaveout.config import MLP, Linear, Recipe
from leaveout.models.build import initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.seeds import generator
from leaveout.training.engine import Path, train
from leaveout.training.trials import Trial

N, FEATURES, CLASSES = 21, 5, 3
DROPOUT = 0.25
PATHS: list[Path] = ["stack", "functional", "reference"]


def problem() -> Samples:
    rng = np.random.default_rng(5)
    inputs = torch.from_numpy(rng.standard_normal((N, FEATURES)))
    return Samples(inputs, torch.from_numpy(rng.integers(CLASSES, size=N)), CROSS_ENTROPY)


def engine(path: Path, model: Linear | MLP, trial: Trial, recipe: Recipe) -> dict[str, Tensor]:
    def build(seed: int) -> torch.nn.Module:
        return initialise(model, (FEATURES,), CLASSES, seed).double()

    # beside another trial, so that the stack is one
    beside = Trial(trial.root, (*trial.identity, "beside"))
    trained = list(train(build, [trial, beside], problem(), recipe, path=path))
    return {name: value[0] for name, value in trained[0].snapshots[-1].items()}


def start(model: Linear | MLP, trial: Trial) -> dict[str, Tensor]:
    module = initialise(model, (FEATURES,), CLASSES, trial.init_seed()).double()
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def order(trial: Trial, epoch: int) -> np.ndarray:
    return generator(trial.root, *trial.identity, "order", epoch).permutation(N)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("gone", [0, 9, 20])
def test_mask_weighs_the_removed_sample_by_zero_and_keeps_every_batch(
    path: Path, gone: int
) -> None:
    recipe = Recipe(learning_rate=0.3, epochs=4, batch_size=4)  # 21 = 5 x 4 + 1
    model, trial = Linear(name="linear"), Trial(11, ("x", 0), removed=gone)
    samples = problem()
    inputs, labels = samples.inputs, samples.targets
    params = start(model, trial)
    weight, bias = params["linear.weight"], params["linear.bias"]
    for epoch in range(recipe.epochs):
        for rows in np.split(order(trial, epoch), range(4, N, 4)):
            x, y = inputs[rows], labels[rows]
            share = torch.from_numpy((rows != gone).astype(float))
            if share.sum() == 0:
                continue
            share /= share.sum()
            # the gradient of a weighted mean of cross-entropies, by hand
            delta = torch.softmax(x @ weight.T + bias, 1)
            delta[torch.arange(len(rows)), y] -= 1
            delta *= share[:, None]
            weight = weight - recipe.learning_rate * delta.T @ x
            bias = bias - recipe.learning_rate * delta.sum(0)
    found = engine(path, model, trial, recipe)
    torch.testing.assert_close(found["linear.weight"], weight, atol=1e-12, rtol=0)
    torch.testing.assert_close(found["linear.bias"], bias, atol=1e-12, rtol=0)


def drawn(stream: np.random.Generator, samples: int, units: int) -> Tensor:
    bits = np.frombuffer(stream.bytes(2 * samples * units), dtype="<u2")
    return torch.from_numpy((bits >= DROPOUT * 65536).reshape(samples, units)).double()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "trial",
    [
        Trial(2, ("full", 0)),
        Trial(2, ("full", 0), removed=13),
        Trial(2, ("lds", 4), kept=np.array([0, 1, 4, 6, 7, 8, 12, 15, 16, 19, 20])),
        Trial(2, ("full", 0), kept=np.delete(np.arange(N), 6)),
    ],
    ids=["full", "masked", "subset", "dropped"],
)
def test_an_mlp_with_dropout_momentum_and_weight_decay(path: Path, trial: Trial) -> None:
    recipe = Recipe(learning_rate=0.1, epochs=3, batch_size=6, momentum=0.8, weight_decay=0.02)
    model = MLP(name="mlp", hidden=(6, 4), dropout=DROPOUT)
    samples = problem()
    inputs, labels = samples.inputs, samples.targets
    params = start(model, trial)
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    stream = trial.dropout_generator()
    for epoch in range(recipe.epochs):
        rows = order(trial, epoch)
        if trial.kept is not None:
            rows = rows[np.isin(rows, trial.kept)]
        for first in range(0, len(rows), recipe.batch_size):
            batch = rows[first : first + recipe.batch_size]
            masks = [drawn(stream, len(batch), units) for units in model.hidden]
            stays = torch.from_numpy(batch != (-1 if trial.removed is None else trial.removed))
            for value in params.values():
                value.requires_grad_()
            values = inputs[batch]
            for layer, mask in enumerate(masks, start=1):
                values = values @ params[f"fc{layer}.weight"].T + params[f"fc{layer}.bias"]
                values = values.clamp(min=0) * mask / (1 - DROPOUT)
            logits = values @ params["fc3.weight"].T + params["fc3.bias"]
            loss = cross_entropy(logits, labels[batch])[stays].mean()
            gradients = torch.autograd.grad(loss, list(params.values()))
            for (name, value), gradient in zip(list(params.items()), gradients, strict=True):
                old = value.detach()
                velocity[name] = 0.8 * velocity[name] + gradient + 0.02 * old
                params[name] = old - 0.1 * velocity[name]
    found = engine(path, model, trial, recipe)
    assert set(found) == set(params)
    for name, value in params.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=0)
