"""Run one method with one choice of hyper-parameters: score, write, and note the cost."""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from leaveout import artefacts, trainings
from leaveout.artefacts import Array, Artefact, Stream
from leaveout.attribution.task import Task, Trajectory
from leaveout.config import Method, Scalar, Setting, label
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.plan import attribute_key
from leaveout.provenance import by_name, provenance
from leaveout.retraining.common import Data, load_data
from leaveout.training.trials import Trial

SLACK_BYTES = 1 << 30
"""Allowed beside what a method asks for: threads, libraries, what is read and written."""


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


@contextlib.contextmanager
def limited(memory: float, seconds: float) -> Iterator[None]:
    """Let some work have no more memory and time than allowed.

    Args:
        memory: Bytes beside what the process has now. Held by the system where that is Linux and
            the work is done on the CPU: an allocation beyond it fails.
        seconds: Time; not held outside the main thread, which has no alarm.

    Raises:
        NotComputableError: The work took more, of the one or the other.
    """

    def out_of_time(*_: object) -> NoReturn:
        raise NotComputableError(
            "time", f"not done after {seconds / 3600:.3g} hours (attribution.hours)"
        )

    main = threading.current_thread() is threading.main_thread()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    old = signal.signal(signal.SIGALRM, out_of_time) if main else None
    try:
        if sys.platform == "linux":
            most = int(_data_bytes() + memory + SLACK_BYTES)
            if before[1] == resource.RLIM_INFINITY or most < before[1]:
                resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
        if main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
            "can't allocate memory" not in str(error)
        ):
            raise
        raise NotComputableError(
            "memory", f"more than {memory / 1e9:.3g} GB allowed (attribution.memory_gb)"
        ) from error
    finally:
        if main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int:
    """Return what counts against RLIMIT_DATA: private memory that can be written."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    return 0


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
    where = data.train.inputs.device
    return Task(
        setting=setting.name,
        seed=setting.seed,
        module=data.build(0).to(where).eval().requires_grad_(False),
        train=data.train,
        test=data.test,
        full=trajectories(setting, "full", full, where),
        half=trajectories(setting, "half", half, where),
        build=data.build,
        recipe=setting.recipe,
        memory=setting.attribution.memory_gb * 1e9,
        seconds=setting.attribution.hours * 3600,
    )


def score_header(
    setting: Setting,
    method: Method,
    params: dict[str, Scalar],
    key: str,
    data: Data,
    models: Sequence[Artefact],
    device: str,
) -> dict[str, Any]:
    """Return the header of what a method says of a setting: which, and what it was made from."""
    return {
        **provenance(setting, key, by_name([data.artefact, *models]), device),
        "setting": setting.name,
        "method": method.name,
        "label": label(params),
        "params": params,
        **trainings.joined(models),
    }


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
    """Write the ``score`` artefact of one grid point, and its cost; see :func:`run_job`.

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

    def score(module: ModuleType, task: Task, spent: list[float]) -> Stream:
        shape = (len(task.train.ids), len(task.test.ids))
        blocks = score_blocks(
            lambda: module.attribute(task, **params), shape, module.__name__, spent
        )
        return Stream(np.dtype(np.float32), shape, blocks)

    files = data_path, full_paths, half_paths
    key = attribute_key(setting, method, params)
    dims = ("train", "test")
    run_job("score", dims, score, setting, method, params, key, files, out, cost, device)


def run_job(
    kind: str,
    dims: tuple[str, ...],
    compute: Callable[[ModuleType, Task, list[float]], Array | Stream],
    setting: Setting,
    method: Method,
    params: dict[str, Scalar],
    key: str,
    files: tuple[Path, Sequence[Path], Sequence[Path]],
    out: Path,
    cost: Path,
    device: str,
) -> None:
    """Write what a method says of a setting, and its cost as JSON beside it.

    The cost is in a file of its own because it differs from run to run, and what a method says does
    not. A method that can't do the setting leaves a file without numbers, whose header says why:
    ``not_computed``.

    Args:
        kind: Of the artefact, and the name of its tensor.
        dims: The tensor's: ``train``, or ``train`` and ``test``.
        compute: From the method's module, the task and a list to which the seconds spent are
            added, the tensor.
        setting: The setting.
        method: The method.
        params: One point of its grid.
        key: What decides the result beside the files.
        files: The setting's ``data`` artefact, its full models, and its half models if the method
            needs them.
        out: The file to write.
        cost: The cost file to write.
        device: ``cpu`` or ``cuda``.
    """
    data_path, full_paths, half_paths = files
    data = load_data(setting, data_path, device)
    full, half = (
        [artefacts.read(path, "models") for path in paths] for paths in (full_paths, half_paths)
    )
    task = load_task(setting, data, full, half)
    module = importlib.import_module(method.module)
    header = score_header(setting, method, params, key, data, [*full, *half], device)
    samples = {"train": data.train, "test": data.test}
    tensors: dict[str, Array | Stream] = {f"{dim}_id": samples[dim].ids for dim in dims}
    shapes = {f"{dim}_id": (dim,) for dim in dims}
    spent: list[float] = []
    meter = CostMeter(data.train.inputs.device)
    try:
        with limited(task.memory, task.seconds):
            made = {kind: compute(module, task, spent), **tensors}
            artefacts.write(out, kind, made, {kind: dims, **shapes}, header)
    except NotComputableError as error:
        why = {"reason": error.reason, "detail": error.detail}
        artefacts.write(out, kind, tensors, shapes, {**header, "not_computed": why})
    name = {"setting": setting.name, "method": method.name, "params": label(params)}
    meter.write(cost, {**name, "what": kind}, sum(spent))


class CostMeter:
    """What a method takes: memory from now on, and the machine it takes it from."""

    def __init__(self, device: torch.device) -> None:
        """Note what is taken already."""
        self.device = device
        self.baseline = _peak_rss_mb()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def write(self, path: Path, name: dict[str, str], seconds: float) -> None:
        """Write the cost as JSON.

        Args:
            path: The file.
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
        with artefacts.atomic_path(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
