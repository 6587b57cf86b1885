"""Run one method with one choice of hyper-parameters: score, write, and note the cost."""

from __future__ import annotations

import importlib
import json
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from leaveout import artefacts
from leaveout.artefacts import Artefact
from leaveout.attribution.task import Attribute, Task, Trajectory
from leaveout.config import Method, Scalar, Setting, label
from leaveout.errors import LeaveoutError
from leaveout.plan import attribute_key
from leaveout.provenance import by_name, provenance
from leaveout.retraining.common import load_data


def trajectories(files: Sequence[Artefact], device: torch.device) -> list[Trajectory]:
    """Read trained models from ``models`` artefacts, in order of run."""
    found = []
    for file in files:
        states = {
            name.removeprefix("state."): torch.from_numpy(array).to(device)
            for name, array in file.tensors.items()
            if name.startswith("state.")
        }
        for row, run in enumerate(file.tensors["run_id"]):
            found.append(
                Trajectory(
                    run=int(run),
                    states=[
                        {name: value[row, c] for name, value in states.items()}
                        for c in range(len(file.tensors["epoch"]))
                    ],
                    learning_rates=[float(rate) for rate in file.tensors["learning_rate"]],
                    trained_on=torch.from_numpy(file.tensors["mask"][row].astype(bool)),
                )
            )
    return sorted(found, key=lambda trajectory: trajectory.run)


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_method(
    setting: Setting,
    method: Method,
    params: dict[str, Scalar],
    data_path: Path,
    full_paths: Sequence[Path],
    half_paths: Sequence[Path],
    out: Path,
    cost: Path,
    device: str,
) -> None:
    """Write the ``score`` artefact of one grid point, and its cost as JSON beside it.

    The cost is in a file of its own because it differs from run to run, and a score file does not.

    Args:
        setting: The setting.
        method: The method.
        params: One point of its grid.
        data_path: The setting's ``data`` artefact.
        full_paths: Its full models.
        half_paths: Its half models, if the method needs them.
        out: The score file to write.
        cost: The cost file to write.
        device: ``cpu`` or ``cuda``.

    Raises:
        LeaveoutError: The method returned something else than a (train, test) matrix.
    """
    data = load_data(setting, data_path, device)
    where = data.train.inputs.device
    models = [
        [artefacts.read(path, "models") for path in paths] for paths in (full_paths, half_paths)
    ]
    module = data.build(0).to(where).eval().requires_grad_(False)
    task = Task(
        setting=setting.name,
        seed=setting.seed,
        module=module,
        train=data.train,
        test=data.test,
        full=trajectories(models[0], where),
        half=trajectories(models[1], where),
    )
    attribute: Attribute = importlib.import_module(method.module).attribute
    baseline = _peak_rss_mb()
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    score = attribute(task, **params)
    if isinstance(score, torch.Tensor):
        score = score.cpu()  # waits for the device
    wall = time.perf_counter() - start
    expected = (len(data.train.ids), len(data.test.ids))
    found = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
    if found != expected:
        raise LeaveoutError(
            f"{method.module}.attribute returned {found}, expected a tensor (train, test) = "
            f"{expected}"
        )
    name = {"setting": setting.name, "method": method.name, "label": label(params)}
    artefacts.write(
        out,
        "score",
        {
            "score": score.to(torch.float32).numpy(),
            "train_id": data.train.ids,
            "test_id": data.test.ids,
        },
        {"score": ("train", "test"), "train_id": ("train",), "test_id": ("test",)},
        {
            **provenance(
                setting,
                attribute_key(setting, method, params),
                by_name([data.artefact, *models[0], *models[1]]),
                device,
            ),
            **name,
            "params": params,
        },
    )
    record = {
        "setting": setting.name,
        "method": method.name,
        "params": label(params),
        "wall_s": round(wall, 4),
        "peak_rss_mb": round(_peak_rss_mb(), 1),
        "baseline_rss_mb": round(baseline, 1),
        "device": torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
    }
    if where.type == "cuda":
        record["peak_device_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    with artefacts.atomic_path(cost) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
