"""`leaveout export` and `leaveout import`: artefacts to another library's files, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.interop import dattri, files, kronfluence
from leaveout.interop.truths import Floats, write_truth
from leaveout.problem.call import call
from leaveout.problem.trees import tree_map
from leaveout.retraining.common import Data, load_data
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact
from leaveout.training.losses import stacked_targets

Library = Literal["dattri", "kronfluence"]


def export(
    library: Library, paths: Sequence[Path], out: Path, run: int | None = None
) -> list[Path]:
    """Write artefacts in another library's layout; each file's header says what it is.

    Args:
        library: Whose.
        paths: Ground truths (``lds``, ``loo``) and, for dattri, ``models``.
        out: The folder to write in; for dattri with a subfolder for each kind, as its benchmark.
        run: Which run of a ground truth; by default the mean of all.

    Returns:
        The files written.

    Raises:
        LeaveoutError: A file is missing, damaged, or nothing that the library has a layout for.
    """
    found = [artefacts.read(path) for path in paths]
    if library == "kronfluence":
        if len(found) != 1:
            raise LeaveoutError("kronfluence: give one ground truth; masks.pt has room for one")
        return kronfluence.write_ground_truth(found[0], out, run)
    written: list[Path] = []
    models: dict[str, list[Artefact]] = {}
    for artefact in found:
        if artefact.kind == "models":
            full = bool(artefact.tensors["mask"].all())
            models.setdefault("models_full" if full else "models_half", []).append(artefact)
        else:
            written += dattri.write_ground_truth(artefact, out / artefact.kind, run)
    for name, group in models.items():
        written += dattri.write_models(group, out / name)
    return written


def import_truth(
    library: Library, metric: str, setting: Setting, data_path: Path, folder: Path, out: Path
) -> None:
    """Write the ground truth artefact of another library's files, for ``leaveout evaluate``.

    Args:
        library: Whose.
        metric: ``lds`` or ``loo``.
        setting: The setting: names the artefact, and gives the architecture of dattri's retrained
            models.
        data_path: The setting's ``data`` artefact; positions in the files are positions in it.
        folder: The files: of a ground truth or, from dattri, of retrained models.
        out: The file to write.

    Raises:
        LeaveoutError: A file is missing, damaged, unsafe to read, or does not fit the data.
    """
    known = ("lds",) if library == "kronfluence" else ("lds", "loo")
    if metric not in known:
        raise LeaveoutError(f"{library} has no files for {metric}, only for {' and '.join(known)}")
    if library == "kronfluence":
        data = artefacts.read(data_path, "data")
        arrays, read = kronfluence.read_ground_truth(folder, data)
    elif dattri.has_ground_truth(metric, folder):
        data = artefacts.read(data_path, "data")
        arrays, read = dattri.read_ground_truth(metric, folder, data)
    else:
        loaded = load_data(setting, data_path, "cpu")
        assert loaded.artefact is not None  # it was read from a file
        data = loaded.artefact
        arrays, read = dattri.read_retrained(
            metric, folder, data, lambda path: _losses(path, loaded, setting)
        )
    write_truth(metric, arrays, setting, data, library, read, out)


def _losses(path: Path, data: Data, setting: Setting) -> Floats:
    """Return the loss of every test sample under a checkpoint of the setting's architecture."""
    module = data.build(0).eval()
    try:
        module.load_state_dict(files.load_state(path))
    except RuntimeError as error:  # torch's list of what is missing or too much
        raise LeaveoutError(f"{path}: not a state of {setting.name}'s model: {error}") from error
    with torch.no_grad():
        outputs = call(module, data.test.inputs)
    found = stacked_targets(tree_map(lambda value: value[None], outputs), data.test)[0]
    return np.asarray(found.numpy(), dtype=np.float32)
