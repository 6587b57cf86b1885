"""What every retraining job shares: data on a device, a builder of models, targets, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from leaveout.config import Setting
from leaveout.data.identity import data_identity
from leaveout.data.split import samples_of
from leaveout.errors import LeaveoutError
from leaveout.models.build import builder
from leaveout.problem.objective import Objective
from leaveout.problem.samples import Samples
from leaveout.problem.user import make_objective
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact
from leaveout.training.engine import Trained, select_device, train
from leaveout.training.losses import stacked_targets
from leaveout.training.progress import progress_bar
from leaveout.training.trials import Trial


@dataclass(frozen=True)
class Data:
    """A setting's prepared split.

    Attributes:
        artefact: Where it was read from; None where it was given.
        train: Training samples, with the objective as training takes it.
        test: Test samples, with what is measured of them.
        objective: What training minimises and what is attributed.
        build: Returns a freshly initialised model from an integer seed, on the CPU.
        keep: Takes what is retrained, with final states stacked, where models are kept too.
    """

    artefact: Artefact | None
    train: Samples
    test: Samples
    objective: Objective
    build: Callable[[int], nn.Module]
    keep: Callable[[Sequence[Trial], Mapping[str, Tensor]], None] | None = None


def positions(data: Data, places: Sequence[int]) -> list[int]:
    """Find the training samples at some places of the slice, whatever the order they lie in.

    Args:
        data: The prepared split.
        places: 0 for the sample with the lowest id, and so on.

    Returns:
        Their positions in ``data.train``.
    """
    order = np.argsort(data.train.ids)
    return [int(order[place]) for place in places]


def load_data(setting: Setting, path: Path, device: str) -> Data:
    """Read a setting's ``data`` artefact.

    Args:
        setting: Gives architecture and objective.
        path: The artefact.
        device: ``cpu`` or ``cuda``.

    Raises:
        LeaveoutError: The file is damaged or holds other data than the setting's, its targets do
            not fit the objective, or the device is missing.
    """
    where = select_device(device)
    artefact = artefacts.read(path, "data")
    made_of = json.loads(artefact.meta.get("key", "{}")).get("dataset")
    wanted = data_identity(setting)["dataset"]
    if made_of != wanted:
        raise LeaveoutError(
            f"{path}: it was prepared from {made_of}, but {setting.name} asks for {wanted}. "
            f"Prepare the data of {setting.name}."
        )
    objective = make_objective(setting.objective)
    train_samples, test_samples = samples_of(artefact, objective)
    build = builder(setting, train_samples, test_samples, artefact.meta.get("n_classes"))
    return Data(artefact, train_samples.to(where), test_samples.to(where), objective, build)


def progress(stacks: Iterable[Trained], total: int, what: str) -> Iterator[Trained]:
    """Show how many models have been trained."""
    with progress_bar(total, what) as bar:
        for trained in stacks:
            yield trained
            bar.update(len(trained.trials))


def train_targets(
    setting: Setting, data: Data, trials: list[Trial], what: str
) -> NDArray[np.float32]:
    """Train models and return the target (loss) of every test sample under each, (trials, test)."""
    stacks = train(data.build, trials, data.train, setting.recipe)
    found = []
    for trained in progress(stacks, len(trials), what):
        outputs = trained.outputs(data.test.inputs)
        found.append(stacked_targets(outputs, data.test).cpu().numpy())
        if data.keep is not None:
            data.keep(trained.trials, trained.snapshots[-1])
    targets = np.concatenate(found).astype(np.float32)
    broken = int((~np.isfinite(targets).all(axis=1)).sum())
    warn_of_diverged(broken, len(trials), "a loss", "counted wherever they are used")
    return targets


def warn_of_diverged(broken: int, models: int, what: str, then: str) -> None:
    """Say on standard error that training diverged, where it did.

    Args:
        broken: How many models diverged.
        models: How many there are.
        what: What of them is not finite.
        then: What becomes of them, beside that they are kept.
    """
    if broken:
        print(
            f"warning: {broken} of {models} models diverged ({what} that is not finite); they are "
            f"kept as they are, and {then}",
            file=sys.stderr,
        )
