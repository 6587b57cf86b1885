"""Run one method with one choice of hyper-parameters: score, write, and note the cost."""

from __future__ import annotations

import importlib
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leaveout import artefacts, trainings
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


def _blocks(
    score: Callable[[], object], shape: tuple[int, int], module: str, spent: list[float]
) -> Iterator[NDArray[np.float32]]:
    """Give a method's scores block by block, as float32, noting the seconds it took for each.

    Raises:
        LeaveoutError: They are something else than a (train, test) matrix or blocks of its rows.
    """
    expected = f"expected a tensor (train, test) = {shape}, or blocks of its rows in order"

    def timed(step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = step()
        found = found.cpu() if isinstance(found, torch.Tensor) else found  # waits for the device
        spent.append(time.perf_counter() - start)
        return found

    found, rows = timed(score), 0
    if not isinstance(found, torch.Tensor | Iterator):
        raise LeaveoutError(f"{module}.attribute returned {type(found).__name__}, {expected}")
    blocks = iter([found]) if isinstance(found, torch.Tensor) else found
    while (block := timed(lambda: next(blocks, None))) is not None:
        fits = isinstance(block, torch.Tensor) and block.dim() == 2 and block.shape[1] == shape[1]
        if not fits:
            what = tuple(block.shape) if hasattr(block, "shape") else type(block).__name__
            raise LeaveoutError(f"{module}.attribute returned {what}, {expected}")
        rows += len(block)
        if rows > shape[0]:
            break
        yield block.to(torch.float32).numpy()
    if rows != shape[0]:
        more = " or more" if rows > shape[0] else ""
        raise LeaveoutError(f"{module}.attribute returned {rows} rows{more}, {expected}")


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
    spent: list[float] = []
    shape = (len(data.train.ids), len(data.test.ids))
    score = artefacts.Stream(
        np.dtype(np.float32),
        shape,
        _blocks(lambda: attribute(task, **params), shape, method.module, spent),
    )
    name = {"setting": setting.name, "method": method.name, "label": label(params)}
    artefacts.write(
        out,
        "score",
        {
            "score": score,
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
            **trainings.joined([*models[0], *models[1]]),
        },
    )
    record = {
        "setting": setting.name,
        "method": method.name,
        "params": label(params),
        "wall_s": round(sum(spent), 4),
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
