"""Measure the engine on a GPU: speed, stack sizes, and whether its models are the CPU's.

Usage: python benchmarks/gpu.py [--device cuda] [--quick] [--out results/gpu_table.csv]

Logistic regression with the recipe of the MNIST panel, an MLP and a small conv net are trained on
random halves of the samples (LDS) and with one sample left out (paired LOO), as the workflow's
rules do it: by the engine's own path and stack size, test losses included, files aside. The curve
repeats LDS with fixed stack sizes, on a few epochs; its times are scaled to the whole recipe. The
fraction of peak is the rate of the training's matrix products over the best rate of large products
in the same precision, measured in the same run. Agreement: some of the same trials trained on the
CPU, in float32, with the largest difference of any weight and of any test loss, beside the largest
of each, for its scale. Models do not depend on the stack they are trained in but for rounding, so
any will do.

Writes a CSV, and beside it the same as a Markdown table. With `--device cpu --quick` everything
runs on a CPU in a minute, as a trial.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from leaveout.config import Setting
from leaveout.config.subset_file import subset_size
from leaveout.data.identity import data_identity
from leaveout.data.prepare import prepare
from leaveout.retraining.common import Data, load_data
from leaveout.retraining.loo import loo_trial
from leaveout.retraining.subsets import subset_mask
from leaveout.store.artefacts import atomic_path
from leaveout.store.contents import save
from leaveout.training.engine import State, train
from leaveout.training.losses import stacked_targets
from leaveout.training.trials import Trial
from speed_retraining import cases, machine
from speed_retraining import write as write_csv


@dataclass(frozen=True)
class Case:
    """One model to measure.

    Attributes:
        name: As in the table.
        setting: Model and recipe.
        models: Models trained at the engine's own stack size.
        curve: Stack sizes of the curve.
        curve_epochs: Epochs of each of its points.
        checked: Models compared with the CPU's.
    """

    name: str
    setting: Setting
    models: int
    curve: tuple[int, ...]
    curve_epochs: int
    checked: int


@dataclass(frozen=True)
class Row:
    """A row of the table; differences are empty where nothing was compared.

    ``stack`` is the largest stack that was trained, ``asked`` the size asked for or ``auto``.
    """

    case: str
    kind: str
    precision: str
    asked: str
    stack: int
    models: int
    seconds: str
    models_per_s: str
    fraction_of_peak: str
    peak_tflops: str
    peak_device_mb: str
    weight_difference: str
    largest_weight: str
    loss_difference: str
    largest_loss: str
    device: str
    torch: str
    cuda: str
    date: str


def gpu_cases(quick: bool) -> list[Case]:
    """Return the models of ``speed_retraining.py``, and logistic regression in bfloat16."""
    found = []
    for case in cases(quick=False):
        setting = case.setting
        if quick:
            small = setting.dataset.model_copy(update={"n_train": 64, "n_test": 8})
            recipe = setting.recipe.model_copy(update={"epochs": 2})
            setting = setting.model_copy(update={"dataset": small, "recipe": recipe})
            found.append(Case(case.name, setting, 6, (2, 4), 1, 2))
        else:
            curve = (1, 4, 16, 64, 256, 1024, 4096)
            found.append(Case(case.name, setting, 1024, curve, 1, 4))
    lr = found[0]
    half = lr.setting.recipe.model_copy(update={"precision": "bfloat16"})
    low = lr.setting.model_copy(update={"recipe": half})
    return [*found, replace(lr, setting=low, curve=())]


def lds_trials(setting: Setting, count: int) -> list[Trial]:
    """Return trainings on random subsets, as the workflow trains them."""
    return [
        Trial(
            setting.seed,
            (setting.name, "lds", subset, 0),
            kept=np.flatnonzero(subset_mask(setting, "lds", subset)),
        )
        for subset in range(count)
    ]


def loo_trials(setting: Setting, count: int) -> list[Trial]:
    """Return the full run and trainings that leave one sample out of it."""
    return [loo_trial(setting, position, 0) for position in (None, *range(count - 1))]


def operations(module: nn.Module, sample: Tensor) -> int:
    """Count the floating-point operations of a training step's products, for one sample.

    Forward and weight gradient of every layer, input gradient of all but the first: 2 m n k each.
    """
    forward: list[int] = []

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        forward.append(2 * weight.numel() * (output[0].numel() // len(weight)))

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(sample[None])  # dropout would draw
    return 2 * sum(forward) + sum(forward[1:])


def wait(device: torch.device) -> float:
    """Wait until the device has done its work, and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """Return the best rate of products of (n, n) matrices, FLOP/s."""
    left, right = (torch.full((n, n), 0.5, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        start = wait(device)
        for _ in range(4):
            left @ right
        best = min(best, (wait(device) - start) / 4)
    return 2 * n**3 / best


def run(
    data: Data, setting: Setting, trials: Sequence[Trial], stack_size: int | None
) -> tuple[State, Tensor, int]:
    """Train, and return final states and test losses, stacked, and the largest stack."""
    states, losses = [], []
    stacks = train(
        data.build,
        trials,
        data.train,
        setting.recipe,
        stack_size=stack_size,
    )
    for trained in stacks:
        states.append({name: value.cpu() for name, value in trained.snapshots[-1].items()})
        outputs = trained.outputs(data.test.inputs)
        losses.append(stacked_targets(outputs, data.test).cpu())
    joined = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    return joined, torch.cat(losses), max(len(loss) for loss in losses)


def differences(case: Case, trials: Sequence[Trial], here: Data, there: Data) -> dict[str, str]:
    """Train the same trials on the CPU and on the device, and compare."""
    exact = case.setting.recipe.model_copy(update={"precision": "float32"})
    cpu_setting = case.setting.model_copy(update={"recipe": exact})
    found, found_losses, _ = run(there, case.setting, trials, None)
    states, losses, _ = run(here, cpu_setting, trials, None)
    off = max(float((found[name] - value).abs().max()) for name, value in states.items())
    return {
        "weight_difference": f"{off:.2g}",
        "largest_weight": f"{max(float(v.abs().max()) for v in states.values()):.2g}",
        "loss_difference": f"{float((found_losses - losses).abs().max()):.2g}",
        "largest_loss": f"{float(losses.abs().max()):.2g}",
    }


def measure(case: Case, device: str, folder: Path, peak_size: int) -> list[Row]:
    """Measure a case."""
    setting = case.setting
    path = folder / f"{case.name}-{setting.dataset.n_train}.safetensors"
    save(path, prepare(setting), {"key": json.dumps(data_identity(setting))})
    here, data = load_data(setting, path, "cpu"), load_data(setting, path, device)
    where = data.train.inputs.device
    dtype = getattr(torch, setting.recipe.precision)
    best = peak(where, dtype, peak_size)
    per_sample = operations(here.build(0), here.train.inputs[0])
    n = setting.dataset.n_train
    seen = {"LDS": subset_size(n, setting.lds.ratio), "paired LOO": n}
    make = {"LDS": lds_trials, "paired LOO": loo_trials}
    rows = []

    def time_one(kind: str, size: int | None, count: int, epochs: int) -> dict[str, object]:
        recipe = setting.recipe.model_copy(update={"epochs": epochs})
        changed = setting.model_copy(update={"recipe": recipe})
        trials = make[kind](setting, count)
        few = setting.model_copy(update={"recipe": recipe.model_copy(update={"epochs": 1})})
        run(data, few, trials[: min(8, count)], size)  # what is done once a process
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(where)
        start = wait(where)
        _, _, largest = run(data, changed, trials, size)
        seconds = (wait(where) - start) * setting.recipe.epochs / epochs
        used = torch.cuda.max_memory_allocated(where) / 2**20 if where.type == "cuda" else None
        work = per_sample * seen[kind] * setting.recipe.epochs * count
        return {
            "kind": kind,
            "stack": largest,
            "models": count,
            "seconds": f"{seconds:.3g}",
            "models_per_s": f"{count / seconds:.4g}",
            "fraction_of_peak": f"{work / seconds / best:.2g}",
            "peak_device_mb": "" if used is None else f"{used:.0f}",
        }

    def row(measured: dict[str, object], asked: str, compared: dict[str, str]) -> Row:
        values: dict[str, object] = dict.fromkeys((f.name for f in fields(Row)), "")
        values |= {"case": case.name, "precision": setting.recipe.precision, "asked": asked}
        values |= {"peak_tflops": f"{best / 1e12:.3g}", **about(where), **measured, **compared}
        return Row(**values)  # type: ignore[arg-type]

    for kind in ("LDS", "paired LOO"):
        measured = time_one(kind, None, case.models, setting.recipe.epochs)
        compared = differences(case, make[kind](setting, case.checked), here, data)
        rows.append(row(measured, "auto", compared))
        print(summary(rows[-1]), flush=True)
    for size in case.curve:
        # two stacks, but for the largest: enough to see, and short
        count = size if size > 256 else 2 * size
        rows.append(row(time_one("LDS", size, count, case.curve_epochs), str(size), {}))
        print(summary(rows[-1]), flush=True)
    return rows


def about(device: torch.device) -> dict[str, str]:
    """Return where and when this is."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else machine(),
        "torch": version("torch"),
        "cuda": str(torch.version.cuda) if gpu else "",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def summary(row: Row) -> str:
    """Return a row as a line of text."""
    return (
        f"{row.case}, {row.kind}, {row.precision}, stack {row.asked} ({row.stack}): "
        f"{row.models_per_s} models/s, {row.fraction_of_peak} of {row.peak_tflops} TFLOP/s"
    )


def markdown(table: Sequence[Row]) -> str:
    """Return the table as Markdown, with what all rows share above it."""
    first = table[0]
    cuda = f", CUDA {first.cuda}" if first.cuda else ""
    shared = ("device", "torch", "cuda", "date")
    names = [f.name for f in fields(Row) if f.name not in shared]
    lines = [
        f"{first.date}: {first.device}, torch {first.torch}{cuda}, Python "
        f"{platform.python_version()}, by `benchmarks/gpu.py`.",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|" + "---|" * len(names),
    ]
    lines += ["| " + " | ".join(str(getattr(r, name)) for name in names) + " |" for r in table]
    return "\n".join(lines) + "\n"


def write(table: Sequence[Row], out: Path) -> None:
    """Write the table as CSV, and as Markdown beside it."""
    write_csv(table, out)
    with atomic_path(out.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="few samples, models and epochs")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_table.csv"))
    args = parser.parse_args(arguments)
    table: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in gpu_cases(args.quick):
            table += measure(case, args.device, Path(folder), 256 if args.quick else 8192)
            write(table, args.out)  # after every case: what has been measured is kept
    print(f"wrote {args.out} and {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
