"""The same EK-FAC and K-FAC scores as kronfluence, on a perceptron and a convolutional network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.curvature.ekfac import ekfac, user_samples
from leaveout.curvature.kfac import kfac

pytestmark = [pytest.mark.peers, pytest.mark.slow]

HERE = Path(__file__).parent


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "cnn": (cnn, (2, 5, 5)),
}

POSITIONS = {"mlp": (1, 1, 1), "cnn": (9, 4, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, peers_python: Path) -> Path:
    """Write models and samples, and let kronfluence score them."""
    folder = tmp_path_factory.mktemp("kronfluence")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (make, shape) in MODELS.items():
            model = make().double().eval()
            samples: list[Any] = []
            for n in (90, 12):
                samples += [torch.randn(n, *shape).double(), torch.randint(3, (n,))]
            torch.save([model, *samples], folder / f"{name}.pt")
    done = subprocess.run(
        [peers_python, HERE / "kronfluence_side.py", folder],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for row in range(len(x)):
        (loss,) = losses(model, (x[row : row + 1], y[row : row + 1]))
        found = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("damping", [None, 1e-1, 1e-3])
@pytest.mark.parametrize("strategy", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", MODELS)
def test_same_scores(folder: Path, name: str, strategy: str, damping: float | None) -> None:
    model, x, y, query, labels = torch.load(folder / f"{name}.pt", weights_only=False)
    with np.load(folder / f"{name}.npz") as arrays:
        theirs = arrays[f"{strategy} {damping}"]
    method = {"kfac": kfac, "ekfac": ekfac}[strategy]
    curvature = method(user_samples(model, [(x, y)], loss=losses))
    if strategy == "kfac":
        # a sample's gradient is a sum over positions, so the Fisher's block is about as many times
        # E[a a'] kron E[d d'] (arXiv:1602.01407); kronfluence leaves that factor out
        blocks = [
            replace(block, values=block.values / count)
            for block, count in zip(curvature.blocks, POSITIONS[name], strict=True)
        ]
        curvature = replace(curvature, blocks=tuple(blocks))
    left, right = gradients(model, query, labels), gradients(model, x, y)
    ours = (left @ curvature.solve(right, damping).T).numpy()
    assert theirs.shape == ours.shape == (12, 90)
    # the same sums in float64, in another order; eigenvalues are kept apart by these data
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())
    plain = (left @ right.T).numpy()
    assert np.corrcoef(plain.ravel(), theirs.ravel())[0, 1] < 0.99
