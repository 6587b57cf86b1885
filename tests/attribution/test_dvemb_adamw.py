"""DVEmb of AdamW: a sample's displacement of weights and averages, forwards, written out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from leaveout.attribution import dvemb
from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Recipe
from leaveout.problem.objectives import cross_entropy
from leaveout.problem.samples import Samples
from leaveout.training.trials import Trial

N, M, SIZE, EPOCHS, RATE, DECAY = 12, 3, 4, 3, 0.05, 0.1
WEIGHTS = [1.0, 4.0, 0.3]
FIRST, SECOND, EPS = 0.9, 0.999, 1e-8


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def gradient(model: nn.Module, x: Tensor, label: int) -> np.ndarray:
    """Of one sample's weighted loss, all parameters in one."""
    loss = -WEIGHTS[label] * model(x).log_softmax(0)[label]
    parts = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.flatten() for part in parts]).numpy()


def test_it_is_the_displacement_with_outer_products_for_the_hessian() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N + M, 4, generator=draw, dtype=torch.float64)
    y = torch.arange(N + M) % 3
    objective = cross_entropy(weight=WEIGHTS)
    train = Samples(x[:N], y[:N], objective)
    trial = Trial(0, ("t", "full", 0), shuffle=False)
    recipe = Recipe(
        optimizer="adamw", learning_rate=RATE, weight_decay=DECAY, batch_size=SIZE, epochs=EPOCHS
    )
    model = build(trial.init_seed())
    w = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    moved = {name: np.zeros((N, len(w))) for name in ("w", "m", "v")}
    for number in range(EPOCHS * N // SIZE):
        batch = [number * SIZE % N + k for k in range(SIZE)]
        # the batch's loss is the sum of these samples' losses over the sum of their weights
        total = sum(WEIGHTS[int(y[k])] for k in batch)
        nn.utils.vector_to_parameters(torch.from_numpy(w), model.parameters())
        own = np.stack([gradient(model, x[k], int(y[k])) / total for k in batch])
        g = own.sum(0)
        # (1 / B) sum of (B own)(B own)'
        change = SIZE * moved["w"] @ own.T @ own
        change[batch] -= own
        m, v = FIRST * m + (1 - FIRST) * g, SECOND * v + (1 - SECOND) * g**2
        moved["m"] = FIRST * moved["m"] + (1 - FIRST) * change
        moved["v"] = SECOND * moved["v"] + (1 - SECOND) * 2 * g * change
        c1, c2 = 1 - FIRST ** (number + 1), 1 - SECOND ** (number + 1)
        root = np.sqrt(v / c2)
        below = root + EPS
        ratio = moved["m"] / c1 / below - m / c1 / below**2 * moved["v"] / (2 * c2 * root)
        moved["w"] = (1 - RATE * DECAY) * moved["w"] - RATE * ratio
        w = (1 - RATE * DECAY) * w - RATE * m / c1 / below
    nn.utils.vector_to_parameters(torch.from_numpy(w), model.parameters())
    test = Samples(x[N:], y[N:], objective.measured())
    right = []
    for k in range(M):
        loss = test.losses(model(x[N:]))[k]
        parts = torch.autograd.grad(loss, list(model.parameters()))
        right.append(torch.cat([part.flatten() for part in parts]).numpy())
    expected = moved["w"] @ np.stack(right).T
    module = build(0).eval()
    run = Trajectory(trial, [module.state_dict()], [1], [1.0], torch.ones(N, dtype=torch.bool))
    averaged = train.asked(objective.averaged(train.targets))
    task = Task("t", 0, module, averaged, test, objective, [run], [], build, recipe)
    found = dvemb.attribute(task).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
