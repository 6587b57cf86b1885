"""TRAK's own library's, and dattri's, side of test_trak.py; run with the peers' Python.

Usage: python trak_side.py FOLDER

In FOLDER lie `given.npz`, samples, two states and a projection matrix for each, and what the
libraries make of them goes to `found.npz`. Both are given the matrices in place of their own random
projections, so that what is compared is everything else.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dattri.algorithm import trak as dattri_trak
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trak import TRAKer
from trak.projectors import NoOpProjector
from trak.score_computers import BasicScoreComputer
from trak.utils import vectorize

FOLDER = Path(sys.argv[1])
with np.load(FOLDER / "given.npz") as _arrays:
    GIVEN = {name: torch.from_numpy(array) for name, array in _arrays.items()}
MODELS = 2


def network() -> nn.Module:
    """Return leaveout.models.mlp with one hidden layer."""
    module = nn.Sequential()
    module.add_module("flatten", nn.Flatten())
    module.add_module("fc1", nn.Linear(16, 8))
    module.add_module("relu1", nn.ReLU())
    module.add_module("fc2", nn.Linear(8, 3))
    return module.eval()


def states() -> list[dict[str, Tensor]]:
    """Return the states of the models."""
    names = list(network().state_dict())
    return [{name: GIVEN[f"{number} {name}"] for name in names} for number in range(MODELS)]


class Given(NoOpProjector):
    """The matrix that was handed over."""

    def project(self, grads: Any, model_id: int) -> Tensor:
        """Project gradients, which may come by parameter."""
        flat = vectorize(grads, device="cpu") if isinstance(grads, dict) else grads
        return flat @ GIVEN[f"{model_id} projection"].T


class Unscaled(BasicScoreComputer):
    """Without its factor of each model, which is there for the sake of half precision."""

    def get_x_xtx_inv(self, grads: Tensor, xtx: Tensor) -> Tensor:
        """Return X (X'X)^-1."""
        return grads @ torch.linalg.inv(xtx)


def their_own() -> Tensor:
    """Score with TRAK's own library."""
    width = GIVEN["0 projection"].shape
    traker = TRAKer(
        model=network(),
        task="image_classification",
        train_set_size=len(GIVEN["train_labels"]),
        save_dir=str(FOLDER / "traker"),
        device="cpu",
        projector=Given(width[1], width[0], 0, "na", "cpu"),
        score_computer=Unscaled,
        use_half_precision=False,
        logging_level=logging.ERROR,
    )
    train, test = ((GIVEN[f"{n}_inputs"], GIVEN[f"{n}_labels"]) for n in ("train", "test"))
    for number, state in enumerate(states()):
        traker.load_checkpoint(state, model_id=number)
        traker.featurize(batch=train, num_samples=len(train[1]))
    traker.finalize_features()
    for number, state in enumerate(states()):
        traker.start_scoring_checkpoint("t", state, number, num_targets=len(test[1]))
        traker.score(batch=test, num_samples=len(test[1]))
    return torch.as_tensor(np.array(traker.finalize_scores("t")))


def dattris() -> Tensor:
    """Score with dattri."""
    module = network()

    def log_probability(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        outputs = torch.func.functional_call(module, params, data[0][None])
        return -nn.functional.cross_entropy(outputs, data[1][None])

    def margin(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        found = log_probability(params, data)
        return found - torch.log(1 - torch.exp(found))

    def probability(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        return torch.exp(log_probability(params, data))

    def given(*_: object, **__: object) -> Any:
        return lambda grads, ensemble_id: grads @ GIVEN[f"{ensemble_id} projection"].T

    dattri_trak.random_project = given
    attributor = dattri_trak.TRAKAttributor(
        task=AttributionTask(loss_func=margin, model=module, checkpoints=states()),
        correct_probability_func=probability,
    )
    train, test = (
        DataLoader(TensorDataset(GIVEN[f"{n}_inputs"], GIVEN[f"{n}_labels"]), batch_size=8)
        for n in ("train", "test")
    )
    attributor.cache(train)
    with torch.no_grad():
        return attributor.attribute(test)


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(FOLDER / "found.npz", traker=their_own().numpy(), dattri=dattris().detach().numpy())
