"""The part of `speed.py` that times retraining against dattri's, per LDS subset model.

Both sides train the same recipe on the same MNIST slice, each in worker processes of its own on all
cores: as one process with a thread for each core (torch's default, and so dattri's), and as one
process with one thread for each core (the way our workflow runs). A round times every combination,
and ratios are taken within a round, so that a machine that slows down slows both; the table gives
the median over the rounds and the range. The time of a model is that of the whole job divided by
its models: ours with reading the data, test losses and the artefact; dattri's with saving its
checkpoints. dattri is timed with the data set that it makes itself and, its best case, with images
held ready as tensors.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from leaveout.config import CNN, LDS, LOO, MLP, Recipe, Setting, load_setting
from leaveout.config.sections import FirstIds
from leaveout.data import sources
from leaveout.data.identity import data_identity
from leaveout.data.normalise import normalise
from leaveout.data.prepare import prepare
from leaveout.store import artefacts
from leaveout.store.artefacts import atomic_path
from leaveout.store.contents import save
from speed_protocol import Message, Workers

HERE = Path(__file__).resolve().parent
PEERS = {"shipped": "dattri", "tensors": "dattri, data as tensors"}


@dataclass(frozen=True)
class Case:
    """One model to time.

    Attributes:
        name: As in the table.
        setting: Model and recipe.
        ours: LDS models we train in a round, all processes together.
        loo: Paired LOO models we train in a round, 0 for none.
        rounds: How many; in each the peer trains one model in every process.
    """

    name: str
    setting: Setting
    ours: int
    loo: int
    rounds: int


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Times are wall seconds, memory all processes together; times, rates and ratios are medians over
    the rounds. ``threads`` is processes x threads.
    """

    case: str
    ours_s_per_model: str
    peer: str
    peer_version: str
    peer_s_per_model: str
    ratio: str
    ratio_min: str
    ratio_max: str
    cpu_ratio: str
    fraction_of_peak: str
    n_ours: int
    n_peer: int
    threads: str
    peer_threads: str
    peak_mb: str
    ours_us_per_sample: str
    machine: str
    torch: str


@dataclass(frozen=True)
class Timing:
    """One side's share of a round.

    Attributes:
        wall: Seconds a model.
        cpu: CPU seconds a model, all threads and processes.
        peak_mb: Peak memory of all processes.
        models: Models trained.
    """

    wall: float
    cpu: float
    peak_mb: float
    models: int


Side = dict[str, Workers]
Times = dict[tuple[str, str], list[Timing]]


def cases(quick: bool) -> list[Case]:
    """Return what is timed; quick cases have a fifth of the epochs and one round."""
    lr = load_setting(HERE.parent / "config" / "settings" / "mnist_lr.yaml")
    mlp = MLP(name="mlp", hidden=(128, 64), dropout=0.1)
    cnn = CNN(name="cnn", channels=(8, 16))
    recipe = Recipe(learning_rate=0.01, momentum=0.9, epochs=50, batch_size=64)
    short = recipe.model_copy(update={"epochs": 5, "batch_size": 32})
    full = [
        Case("mnist_lr", lr, ours=64, loo=128, rounds=4),
        Case("mnist_mlp", _like(lr, "mnist_mlp", mlp, recipe), ours=16, loo=0, rounds=3),
        Case("mnist_cnn", _like(lr, "mnist_cnn", cnn, short), ours=4, loo=0, rounds=4),
    ]
    if not quick:
        return full
    return [
        replace(case, setting=_epochs(case.setting, case.setting.recipe.epochs // 5), rounds=1)
        for case in full
    ]


def _like(setting: Setting, name: str, model: MLP | CNN, recipe: Recipe) -> Setting:
    changed = setting.model_copy(update={"name": name, "model": model, "recipe": recipe})
    return _epochs(changed, recipe.epochs)


def _epochs(setting: Setting, epochs: int) -> Setting:
    recipe = setting.recipe.model_copy(update={"epochs": epochs})
    full = setting.full.model_copy(update={"checkpoints": 1})
    return setting.model_copy(update={"recipe": recipe, "full": full})


def export(setting: Setting, folder: Path) -> None:
    """Write the data for both sides; the peer gets arrays, and the files torchvision reads."""
    save(folder / "data.safetensors", prepare(setting), {"key": json.dumps(data_identity(setting))})
    artefact = artefacts.read(folder / "data.safetensors", "data")
    tensors = {
        name: normalise(array, **artefact.meta["pixels"]) if name.endswith("_inputs") else array
        for name, array in artefact.tensors.items()
    }
    wanted = setting.dataset
    raw = sources.load(wanted.name, wanted.source, wanted.n_train, wanted.n_test)
    np.savez(
        folder / "data.npz",
        **dict[str, Any](tensors),
    )
    idx = folder / "MNIST" / "raw"
    idx.mkdir(parents=True)
    for part, images, labels in (
        ("train", raw.train_inputs, raw.train_labels),
        ("t10k", raw.test_inputs, raw.test_labels),
    ):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([2048 + array.ndim, *array.shape], dtype=">i4")
            contents = header.tobytes() + array.astype(np.uint8).tobytes()
            (idx / f"{part}-{name}-ubyte").write_bytes(contents)


def chunked(setting: Setting, size: int) -> Message:
    """Return a setting, as JSON, whose LDS and paired LOO come in chunks of ``size`` models."""
    lds = LDS(subsets=max(3, 100 * size), runs=1, chunk=size)
    # the full run is trained beside each chunk, and counted
    ids = FirstIds(first=setting.dataset.n_train)
    loo = LOO(ids=ids, pairing="mask", replicate=0, chunk=max(3, size - 1))
    return setting.model_copy(update={"lds": lds, "loo": loo}).model_dump(mode="json")


def timing(answers: list[Message], models: int) -> Timing:
    """Sum up the workers of one side."""
    return Timing(
        wall=answers[0]["wall"] / models,
        cpu=sum(a["cpu"] for a in answers) / models,
        peak_mb=sum(a["peak_mb"] for a in answers),
        models=models,
    )


def time_case(case: Case, own: Side, peer: Side, data: Sequence[str]) -> Times:
    """Time a case: in each round everything once.

    Args:
        case: The case.
        own: Our workers by processes x threads.
        peer: The peer's, or none.
        data: The peer's data sets.

    Returns:
        Timings, one a round, by what was timed: ("ours" or "loo" or a data set of the peer's,
        processes x threads).
    """
    recipe = case.setting.recipe
    request = {"model": case.setting.model.name, "batch_size": recipe.batch_size}
    for workers in own.values():
        workers.ask("lds", setting=chunked(_epochs(case.setting, 1), 8), chunk=0)
    for workers in peer.values():
        workers.ask("lds", **request, data="tensors", epochs=1, models=1, seed=0)
    times: Times = defaultdict(list)
    for number in range(case.rounds):
        for threads, workers in own.items():
            count = len(workers.processes)
            for what, action, total in (("ours", "lds", case.ours), ("loo", "loo", case.loo)):
                if total:
                    size = -(-total // count)
                    answers = workers.ask(
                        action, setting=chunked(case.setting, size), chunk=count * number
                    )
                    times[what, threads].append(timing(answers, size * count))
        for (threads, workers), name in itertools.product(peer.items(), data):
            answers = workers.ask(
                "lds", **request, data=name, epochs=recipe.epochs, models=1, seed=number
            )
            times[name, threads].append(timing(answers, len(answers)))
        for threads, workers in own.items():
            answers = workers.ask("peak", seconds=0.3)
            peak = sum(answer["gflops"] for answer in answers)
            times["peak", threads].append(Timing(1 / peak, 0, 0, 0))
    return times


def compare(ours: list[Timing], other: list[Timing]) -> dict[str, str]:
    """Return the columns that compare two sides, empty ones without the other."""
    if not other:
        return dict.fromkeys(
            ("peer_s_per_model", "ratio", "ratio_min", "ratio_max", "cpu_ratio"), ""
        )
    ratios = [b.wall / a.wall for a, b in zip(ours, other, strict=True)]
    return {
        "peer_s_per_model": f"{median(t.wall for t in other):.4g}",
        "ratio": f"{median(ratios):.3g}",
        "ratio_min": f"{min(ratios):.3g}",
        "ratio_max": f"{max(ratios):.3g}",
        "cpu_ratio": f"{median(b.cpu / a.cpu for a, b in zip(ours, other, strict=True)):.3g}",
    }


def rows(case: Case, times: Times, work: Message, about: Message) -> list[Row]:
    """Return the rows of a case.

    Args:
        case: The case.
        times: From :func:`time_case`.
        work: ``flops`` and ``samples`` of one LDS model.
        about: Versions and data sets of the peer, or nothing.
    """
    modes = [threads for what, threads in times if what == "ours"]
    one, *others = modes  # one process, and one for each core
    pairs = [(one, one), *((many, with_) for many in others for with_ in (one, many))]
    compared = [
        ("ours", mine, name, theirs) for mine, theirs in pairs for name in about.get("data", ())
    ] or [("ours", mode, "", "") for mode in modes]
    if case.loo:
        compared += [("loo", mode, "ours", mode) for mode in modes]
    names = {"": "", "ours": "leaveout, LDS", **PEERS}
    releases = {"": "", "ours": version("leaveout")}
    releases |= dict.fromkeys(PEERS, str(about.get("dattri", "")))
    found = []
    for what, threads, against, with_threads in compared:
        samples = work["samples"]
        if what == "loo":
            samples = case.setting.recipe.epochs * case.setting.dataset.n_train
        operations = 1e-9 * work["flops"] / work["samples"] * samples
        mine, other = times[what, threads], times.get((against, with_threads), [])
        peaks = times["peak", threads]
        wall = median(t.wall for t in mine)
        found.append(
            Row(
                case=case.name + (", paired LOO" if what == "loo" else ""),
                ours_s_per_model=f"{wall:.4g}",
                peer=names[against],
                peer_version=releases[against],
                fraction_of_peak=_short(
                    operations * p.wall / t.wall for t, p in zip(mine, peaks, strict=True)
                ),
                n_ours=sum(t.models for t in mine),
                n_peer=sum(t.models for t in other),
                threads=threads,
                peer_threads=with_threads,
                peak_mb=f"{max(t.peak_mb for t in mine):.0f}",
                ours_us_per_sample=f"{1e6 * wall / samples:.3g}",
                machine=machine(),
                torch=version("torch"),
                **compare(mine, other),
            )
        )
    return found


def _short(values: Iterable[float]) -> str:
    return f"{median(values):.2g}"


def machine() -> str:
    """Return the processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            s.split(":", 1)[1].strip() for s in info.read_text().splitlines() if "model n" in s
        ]
        name = names[0] if names else name
    return f"{name}, {cores()} cores"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def agreement(case: Case, own: Workers, peer: Workers, runs: int) -> str:
    """Train both sides on the peer's first subset and compare the mean test loss."""
    recipe = case.setting.recipe
    theirs = peer.ask(
        "losses",
        model=case.setting.model.name,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        runs=runs,
    )[0]
    setting = case.setting.model_dump(mode="json")
    sides = {"dattri": theirs["losses"]}
    for path in ("reference", None):
        label = "leaveout, one at a time" if path else "leaveout, fastest path"
        sides[label] = own.ask(
            "losses", setting=setting, kept=theirs["kept"], runs=runs, path=path
        )[0]["losses"]
    shown = [f"{label} {mean(x):.4f} (sd {stdev(x):.4f})" for label, x in sides.items()]
    return f"{case.name}: test loss on one subset, {runs} runs: " + "; ".join(shown)


def run(chosen: Sequence[Case], peers_python: str | None, runs: int, folder: Path) -> list[Row]:
    """Time the cases, print as it goes, and return the table.

    Args:
        chosen: The cases; they share one data set.
        peers_python: Python of the peers' environment; without it only our side is timed.
        runs: Models a side for the comparison of test losses; fewer than two compare nothing.
        folder: A temporary folder.
    """
    export(chosen[0].setting, folder)
    modes = dict.fromkeys([(1, cores()), (cores(), 1)])
    table: list[Row] = []
    for case in chosen:
        with ExitStack() as stack:

            def start(python: str, script: str, stack: ExitStack = stack) -> Side:
                command = [python, str(HERE / script), str(folder)]
                return {
                    f"{processes}x{threads}": stack.enter_context(
                        Workers(command, processes, threads, folder / "workers.log")
                    )
                    for processes, threads in modes
                }

            own = start(sys.executable, "own_training.py")
            peer = start(peers_python, "peer_training.py") if peers_python else {}
            one = f"1x{cores()}"
            work = own[one].ask("flops", setting=case.setting.model_dump(mode="json"))[0]
            about = peer[one].ask("about")[0] if peer else {}
            times = time_case(case, own, peer, about.get("data", ()))
            found = rows(case, times, work, about)
            print(summary(found, about), flush=True)
            if peer and runs > 1:
                print(agreement(case, own[one], peer[one], runs), flush=True)
        table += found
    return table


def summary(table: Sequence[Row], about: Message) -> str:
    """Return the rows of a case as text."""
    lines = []
    if about and about["torch"].split("+")[0] != version("torch").split("+")[0]:
        lines.append(f"note: the peers have torch {about['torch']}, we have {version('torch')}")
    if about and "shipped" not in about["data"]:
        lines.append("note: the peers have no torchvision, so no data set as dattri makes it")
    for row in table:
        text = f"{row.case} {row.threads}: {row.ours_s_per_model} s a model"
        if row.ratio:
            text += (
                f", {row.ratio}x ({row.ratio_min}-{row.ratio_max}) {row.peer} {row.peer_threads}"
                f" ({row.peer_s_per_model} s), CPU time {row.cpu_ratio}x"
            )
        text += f"; {row.fraction_of_peak} of the peak, {row.ours_us_per_sample} us a sample"
        lines.append(text)
    return "\n".join(lines)


def write(table: Sequence[Any], out: Path) -> None:
    """Write a table, whose rows are all of one dataclass, as CSV."""
    with atomic_path(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(table[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def main(peers_python: str, quick: bool, out: Path) -> None:
    """Time and write.

    Args:
        peers_python: Python of the peers' environment.
        quick: A fifth of the epochs and one round.
        out: The table.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = 0 if quick else 5
        table = run(cases(quick), peers_python, runs, Path(folder))
    write(table, out)
    print(f"wrote {out}")
