"""Full models moved to where a sample counts no more: the ground truth of PBRF.

The proximal Bregman response function (Bae et al. 2022, arXiv:2209.05364): docs/pbrf.md.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leaveout.config import Setting
from leaveout.problem.call import load_state, state_of
from leaveout.retraining import trainings
from leaveout.retraining.common import Data, load_data, positions
from leaveout.retraining.items import chunk
from leaveout.retraining.proximal import solve_proximal
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact, CorruptArtefactError
from leaveout.store.contents import Arrays
from leaveout.training.functional import functional_outputs
from leaveout.training.losses import stacked_targets
from leaveout.training.progress import progress_bar
from leaveout.training.trials import Trial

State = dict[str, Tensor]


def _final_state(models: Artefact, run: int) -> State:
    """Return the final state of a run from a ``models`` artefact.

    Raises:
        CorruptArtefactError: It does not hold that run.
    """
    runs = models.tensors["run_id"].tolist()
    if run not in runs:
        raise CorruptArtefactError(models.path, f"it holds the runs {runs}, and not run {run}")
    row = runs.index(run)
    return {
        name.removeprefix("state."): torch.from_numpy(array)[row, -1]
        for name, array in models.tensors.items()
        if name.startswith("state.")
    }


def _targets(module: nn.Module, states: State, data: Data) -> NDArray[np.float64]:
    """Return the test losses of stacked states in float64, (models, test).

    One sample less of thousands moves a loss by less than the rounding of a pass in float32.
    """
    wide = {k: v.double() if v.is_floating_point() else v for k, v in states.items()}
    outputs = functional_outputs(deepcopy(module).double(), wide, data.test.double().inputs)
    return np.asarray(stacked_targets(outputs, data.test).cpu().numpy(), dtype=np.float64)


def retrain_pbrf(
    setting: Setting, name: str, data_path: Path, full_path: Path, device: str
) -> Arrays:
    """Solve the points of one chunk and return their targets: a ``pbrf-chunk`` artefact.

    It holds ``target`` (point, test) and, of the full model they start from, ``full_target``
    (test,), both float32: their difference, a hundredth of them, loses nothing that counts. By
    point it holds ``initial_norm`` and ``gradient_norm``, the norms of the objective's gradient
    before and after, ``steps`` and ``converged``.

    Args:
        setting: The setting.
        name: Which chunk; all its points start from one full run.
        data_path: The setting's ``data`` artefact.
        full_path: The ``models`` artefact that holds the run.
        device: ``cpu`` or ``cuda``.

    Raises:
        CorruptArtefactError: A file is damaged, or the run is not in ``full_path``.
    """
    return pbrf_chunk(setting, name, load_data(setting, data_path, device), full_path)


def pbrf_chunk(setting: Setting, name: str, data: Data, full_path: Path) -> Arrays:
    """Do the same with data at hand."""
    wanted = chunk(setting, "pbrf", name)
    run = wanted[0][1]
    at = positions(data, [place for place, _ in wanted])
    points, n_train = data.train.ids[at], len(data.train.ids)
    models = artefacts.read(full_path, "models")
    where = data.train.device
    averaged = data.train.asked(data.objective.averaged(data.train.targets))
    module = data.build(0)
    load_state(module, _final_state(models, run))
    module = module.to(where).eval()
    asked = setting.pbrf
    row = {p: k for k, p in enumerate(at)}
    target = np.empty((len(points), len(data.test.ids)), np.float32)
    norms = np.empty((2, len(points)))
    steps, converged = np.empty(len(points), np.int64), np.empty(len(points), np.uint8)
    with progress_bar(len(points), "PBRF points", "point") as bar:
        for solved, found in solve_proximal(
            module,
            averaged,
            at,
            damping=asked.damping,
            solver=asked.solver,
            steps=asked.steps,
            tolerance=asked.tolerance,
            learning_rate=asked.learning_rate,
            progress=bar.update,
        ):
            rows = [row[p] for p in solved]
            target[rows] = _targets(module, found.state, data)
            norms[:, rows] = torch.stack([found.initial_norm, found.gradient_norm]).cpu().numpy()
            steps[rows] = found.steps.cpu().numpy()
            converged[rows] = found.converged.cpu().numpy()
    start = {name: value[None] for name, value in state_of(module).items()}
    missed = points[converged == 0].tolist()
    if missed:
        print(
            f"warning: {len(missed)} of {len(points)} points of full run {run} did not converge "
            f"(at most {asked.steps} steps) and do not count: {', '.join(map(str, missed))}. "
            "More pbrf.steps can help points that took all their steps. Points that stopped before "
            "that are mostly at a kink of a ReLU or a pooling, where no gradient is small: there a "
            "larger pbrf.damping helps; more steps or another pbrf.solver do not.",
            file=sys.stderr,
        )
    return Arrays(
        "pbrf-chunk",
        {
            "target": target,
            "full_target": _targets(module, start, data)[0].astype(np.float32),
            "point_id": points,
            "initial_norm": norms[0],
            "gradient_norm": norms[1],
            "steps": steps,
            "converged": converged,
            "run_id": np.array([run], dtype=np.int64),
            "train_id": data.train.ids,
            "test_id": data.test.ids,
        },
        {
            "target": ("point", "test"),
            "full_target": ("test",),
            "point_id": ("point",),
            "initial_norm": ("point",),
            "gradient_norm": ("point",),
            "steps": ("point",),
            "converged": ("point",),
            "run_id": ("run",),
            "train_id": ("train",),
            "test_id": ("test",),
        },
        trainings.moved(Trial(setting.seed, (setting.name, "full", run)), at, n_train),
    )
