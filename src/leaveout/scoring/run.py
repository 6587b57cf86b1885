"""Run one method with one choice of hyper-parameters: score, write, and note the cost."""

from __future__ import annotations

import importlib
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Method, Scalar, Setting, label
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.problem.call import call_with, refuse_mixing, slow_paths
from leaveout.problem.trees import Tree, tensors
from leaveout.retraining import trainings
from leaveout.retraining.common import Data, load_data
from leaveout.scoring.limits import limited
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact, Stream
from leaveout.store.contents import Arrays, Contents
from leaveout.training.trials import Trial


def trajectories(
    setting: Setting,
    kind: Literal["full", "half"],
    files: Sequence[Artefact],
    device: torch.device,
) -> list[Trajectory]:
    """Read trained models from ``models`` artefacts, in order of run."""
    found = {}
    for file in files:
        states = {
            name.removeprefix("state."): torch.from_numpy(array).to(device)
            for name, array in file.tensors.items()
            if name.startswith("state.")
        }
        for row, run in enumerate(file.tensors["run_id"]):
            mask = file.tensors["mask"][row].astype(bool)
            kept = None if mask.all() else np.flatnonzero(mask)
            found[int(run)] = Trajectory(
                trial=Trial(setting.seed, (setting.name, kind, int(run)), kept=kept),
                states=[
                    {name: value[row, c] for name, value in states.items()}
                    for c in range(len(file.tensors["epoch"]))
                ],
                epochs=[int(epoch) for epoch in file.tensors["epoch"]],
                learning_rates=[float(rate) for rate in file.tensors["learning_rate"]],
                trained_on=torch.from_numpy(mask),
            )
    return [found[run] for run in sorted(found)]


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name; its architecture where the system does not tell."""
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def score_blocks(
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


def load_task(
    setting: Setting,
    data: Data,
    full: Sequence[Artefact],
    half: Sequence[Artefact],
) -> Task:
    """Put together what a method may use.

    Args:
        setting: The setting.
        data: Its samples, on the device to use.
        full: Its full models.
        half: Its half models, if the method needs them.
    """
    where = data.train.device
    return Task(
        setting=setting.name,
        seed=setting.seed,
        module=data.build(0).to(where).eval(),
        train=data.train.asked(data.objective.averaged(data.train.targets)),
        test=data.test,
        objective=data.objective,
        full=trajectories(setting, "full", full, where),
        half=trajectories(setting, "half", half, where),
        build=data.build,
        recipe=setting.recipe,
        memory=setting.attribution.memory_gb * 1e9,
        seconds=setting.attribution.hours * 3600,
    )


def finite(model: Trajectory) -> bool:
    """Say whether all numbers of a model's checkpoints are finite."""
    return all(bool(v.isfinite().all()) for state in model.states for v in state.values())


def all_finite(tree: Tree) -> bool:
    """Return whether all floating-point numbers of a tree are finite."""
    return all(bool(v.isfinite().all()) for v in tensors(tree) if v.is_floating_point())


def outputs_finite(task: Task, model: Trajectory) -> bool:
    """Say whether a model's outputs for the training samples are all finite."""
    with torch.no_grad(), slow_paths():
        parts = (
            call_with(task.module, model.final, part.inputs) for part in task.train.split(1000)
        )
        return all(all_finite(part) for part in parts)


def losses_finite(task: Task, model: Trajectory) -> bool:
    """Say whether a model's losses of the training samples are all finite: a square may not be."""
    with torch.no_grad(), slow_paths():
        parts = (
            part.losses(call_with(task.module, model.final, part.inputs))
            for part in task.train.split(1000)
        )
        return all(bool(part.isfinite().all()) for part in parts)


def held(
    module: ModuleType, task: Task, blocks: Iterator[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Give what a method makes, held to the setting's limits, and refuse what has diverged.

    Scores that come of models or inputs which are not finite mean nothing, and many a method fails
    on them with an error of its own. Methods that look at no model (``NEEDS = ()``) are let be.

    Args:
        module: The method's.
        task: What it may use.
        blocks: What it makes of it, made one by one.

    Yields:
        The blocks.

    Raises:
        NotComputableError: A limit is reached, the model mixes samples, a model or a training
            sample is not finite, or the method fails on a model whose outputs or losses are not.
    """
    models = [*task.full, *task.half] if getattr(module, "NEEDS", ("full",)) else []

    def diverged(broken: int, what: str) -> NotComputableError:
        why = f"{broken} of {len(models)} models {what} not finite (training diverged)"
        return NotComputableError("undefined", why)

    def checked() -> Iterator[NDArray[np.float32]]:
        if models:
            refuse_mixing(task.module)
        if broken := sum(not finite(model) for model in models):
            raise diverged(broken, "are")
        if models and not all_finite((task.train.inputs, task.train.targets)):
            raise NotComputableError("undefined", "the training samples are not all finite")
        try:
            yield from blocks
        except NotComputableError:
            raise
        except (RuntimeError, ValueError, LeaveoutError) as error:  # on what is not a number
            for what, good in (("outputs", outputs_finite), ("losses", losses_finite)):
                if broken := sum(not good(task, model) for model in models):
                    raise diverged(broken, f"have {what} that are") from error
            raise

    return limited(checked(), task.memory, task.seconds, task.train.device)


def run_method(
    setting: Setting,
    method: Method,
    params: dict[str, Scalar],
    data_path: Path,
    full_paths: Sequence[Path],
    half_paths: Sequence[Path],
    device: str,
) -> dict[str, Contents]:
    """Score with one grid point of a method; see :func:`run_job`.

    Args:
        setting: The setting.
        method: The method.
        params: One point of its grid.
        data_path: The setting's ``data`` artefact.
        full_paths: Its full models.
        half_paths: Its half models, if the method needs them.
        device: ``cpu`` or ``cuda``.

    Returns:
        ``score``: a ``score`` artefact, (train, test); ``cost``: what it took, JSON. Writing the
        scores raises LeaveoutError if the method gives something else than such a matrix.
    """

    def scores(module: ModuleType, task: Task, spent: list[float]) -> Iterator[NDArray[np.float32]]:
        shape = (len(task.train), len(task.test))
        return score_blocks(lambda: module.attribute(task, **params), shape, module.__name__, spent)

    files = data_path, full_paths, half_paths
    return run_job("score", ("train", "test"), scores, setting, method, params, files, device)


def run_job(
    kind: str,
    dims: tuple[str, ...],
    compute: Callable[[ModuleType, Task, list[float]], Iterator[NDArray[np.float32]]],
    setting: Setting,
    method: Method,
    params: dict[str, Scalar],
    files: tuple[Path, Sequence[Path], Sequence[Path]],
    device: str,
) -> dict[str, Contents]:
    """Return what a method says of a setting, computed while it is written, and its cost.

    The cost is contents of its own because it differs from run to run, and what a method says does
    not. Of a method that can't do the setting no scores are written, and the header says why:
    ``not_computed``, see :func:`leaveout.store.contents.save`.

    Args:
        kind: Of the artefact, and the name of its tensor.
        dims: The tensor's: ``train``, or ``train`` and ``test``.
        compute: Makes, from the method's module, the task and a list to which the seconds spent
            are added, the blocks of the tensor.
        setting: The setting.
        method: The method.
        params: One point of its grid.
        files: The setting's ``data`` artefact, its full models, and its half models if the method
            needs them.
        device: ``cpu`` or ``cuda``.

    Returns:
        ``score`` and ``cost``; the cost is known once the score is written.
    """
    data_path, full_paths, half_paths = files
    data = load_data(setting, data_path, device)
    full, half = (
        [artefacts.read(path, "models") for path in paths] for paths in (full_paths, half_paths)
    )
    task = load_task(setting, data, full, half)
    module = importlib.import_module(method.module)
    samples = {"train": data.train, "test": data.test}
    ids = {f"{dim}_id": samples[dim].ids for dim in dims}
    shape = tuple(len(samples[dim].ids) for dim in dims)
    spent: list[float] = []
    stream = Stream(np.dtype(np.float32), shape, held(module, task, compute(module, task, spent)))
    shapes = {kind: dims, **{f"{dim}_id": (dim,) for dim in dims}}
    which = {"method": method.name, "label": label(params), "params": params}
    facts = {**which, **trainings.joined([*full, *half])}
    name = {"setting": setting.name, "method": method.name, "params": label(params), "what": kind}
    meter = CostMeter(data.train.device)
    return {
        "score": Arrays(kind, {kind: stream, **ids}, shapes, facts),
        "cost": lambda: meter.text(name, sum(spent)),
    }


class CostMeter:
    """What a method takes: memory from now on, and the machine it takes it from."""

    def __init__(self, device: torch.device) -> None:
        """Note what is taken already."""
        self.device = device
        self.baseline = _peak_rss_mb()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def text(self, name: dict[str, str], seconds: float) -> str:
        """Return the cost as JSON.

        Args:
            name: What it is the cost of: setting, method, params.
            seconds: Wall time.
        """
        on_gpu = self.device.type == "cuda"
        record = {
            **name,
            "wall_s": round(seconds, 4),
            "peak_rss_mb": round(_peak_rss_mb(), 1),
            "baseline_rss_mb": round(self.baseline, 1),
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": torch.get_num_threads(),
            "cpu": cpu_name(),
        }
        if on_gpu:
            record["peak_device_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return json.dumps(record, indent=1) + "\n"
