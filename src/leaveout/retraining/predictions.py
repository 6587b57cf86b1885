"""What the full models say of the test samples: loss, margin and class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.problem.call import call_with
from leaveout.problem.objectives import logits
from leaveout.problem.trees import join, tree_map
from leaveout.retraining.common import load_data
from leaveout.store import artefacts
from leaveout.store.contents import Arrays
from leaveout.training.losses import stacked_targets

BLOCK = 1000
"""Test samples at once."""


def margins(outputs: Any, classes: Tensor) -> Tensor:
    """Return by how much the right class leads: its logit minus the largest of the others.

    Positive where the sample is classified correctly. In float64, as the losses are. One logit is
    that of class 1 against class 0.

    Args:
        outputs: Logits, (models, samples, classes) or of one logit (models, samples[, 1]), or what
            holds them.
        classes: Classes, (samples,).

    Returns:
        (models, samples), float64.
    """
    outputs = both_classes(outputs)
    place = classes.expand(len(outputs), -1)[..., None]
    others = outputs.scatter(2, place, -torch.inf)
    lead: Tensor = outputs.gather(2, place)[..., 0] - others.amax(dim=2)
    return lead


def both_classes(outputs: Any) -> Tensor:
    """Return logits of all classes, (models, samples, classes), float64; of one logit (0, h)."""
    h = logits(outputs).double()
    h = h[..., None] if h.dim() == 2 else h
    return h if h.shape[2] > 1 else torch.cat([torch.zeros_like(h), h], dim=2)


def predict(setting: Setting, data_path: Path, full_paths: Sequence[Path], device: str) -> Arrays:
    """Return what each full model says of each test sample: a ``predictions`` artefact.

    It holds ``loss``, ``margin`` and ``predicted`` (run, test), and ``label`` (test,).

    Args:
        setting: The setting.
        data_path: Its ``data`` artefact.
        full_paths: Its full models, ``models`` artefacts.
        device: ``cpu`` or ``cuda``.

    Raises:
        LeaveoutError: A file is missing or damaged, or a run is there twice.
    """
    data = load_data(setting, data_path, device)
    classes = data.objective.need("classes", "predictions are of classes")(data.test.targets)
    files = [artefacts.read(path, "models") for path in full_paths]
    module = data.build(0).to(data.test.device).eval()
    found: dict[int, dict[str, Tensor]] = {}
    for file in files:
        states = {
            name.removeprefix("state."): torch.from_numpy(array[:, -1]).to(data.test.device)
            for name, array in file.tensors.items()
            if name.startswith("state.")
        }
        for row, run in enumerate(file.tensors["run_id"]):
            if int(run) in found:
                raise LeaveoutError(f"{file.path}: full run {run} is in another file too.")
            state = {name: value[row] for name, value in states.items()}
            with torch.no_grad():
                parts = [call_with(module, state, part.inputs) for part in data.test.split(BLOCK)]
            outputs = tree_map(lambda value: value[None], join(parts))
            found[int(run)] = {
                "loss": stacked_targets(outputs, data.test)[0],
                "margin": margins(outputs, classes)[0],
                "predicted": both_classes(outputs)[0].argmax(dim=1),
            }
    runs = sorted(found)
    return Arrays(
        "predictions",
        {
            **{
                name: torch.stack([found[run][name] for run in runs]).cpu().numpy()
                for name in ("loss", "margin", "predicted")
            },
            "label": classes.cpu().numpy(),
            "run_id": np.array(runs, dtype=np.int64),
            "test_id": data.test.ids,
        },
        {
            **dict.fromkeys(("loss", "margin", "predicted"), ("run", "test")),
            "label": ("test",),
            "run_id": ("run",),
            "test_id": ("test",),
        },
    )
