"""What the full models say of the test samples: loss, margin and class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.retraining.common import load_data
from leaveout.store import artefacts
from leaveout.store.contents import Arrays
from leaveout.training.losses import stacked_targets

BLOCK = 1000
"""Test samples at once."""


def margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the right class leads: its logit minus the largest of the others.

    Positive where the sample is classified correctly. In float64, as the losses are.

    Args:
        outputs: Logits, (models, samples, classes).
        labels: Classes, (samples,).

    Returns:
        (models, samples), float64.
    """
    outputs = outputs.double()
    place = labels.expand(len(outputs), -1)[..., None]
    others = outputs.scatter(2, place, -torch.inf)
    return outputs.gather(2, place)[..., 0] - others.amax(dim=2)


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
    files = [artefacts.read(path, "models") for path in full_paths]
    module = data.build(0).to(data.test.inputs.device).eval()
    found: dict[int, dict[str, Tensor]] = {}
    for file in files:
        states = {
            name.removeprefix("state."): torch.from_numpy(array[:, -1]).to(data.test.inputs.device)
            for name, array in file.tensors.items()
            if name.startswith("state.")
        }
        for row, run in enumerate(file.tensors["run_id"]):
            if int(run) in found:
                raise LeaveoutError(f"{file.path}: full run {run} is in another file too.")
            state = {name: value[row] for name, value in states.items()}
            with torch.no_grad():
                parts = [
                    functional_call(module, state, (part,))
                    for part in data.test.inputs.split(BLOCK)
                ]
            outputs = torch.cat(parts)[None]
            found[int(run)] = {
                "loss": stacked_targets(outputs, data.test.labels)[0],
                "margin": margins(outputs, data.test.labels)[0],
                "predicted": outputs[0].argmax(dim=1),
            }
    runs = sorted(found)
    return Arrays(
        "predictions",
        {
            **{
                name: torch.stack([found[run][name] for run in runs]).cpu().numpy()
                for name in ("loss", "margin", "predicted")
            },
            "label": data.test.labels.cpu().numpy(),
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
