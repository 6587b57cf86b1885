"""Time leaveout's retraining against dattri's, per LDS subset model, in one run.

Usage: python benchmarks/speed.py --peers-python PATH [--quick] [--out results/speed_table.csv]

Both sides train the same recipe on the same MNIST slice, each in worker processes of its own, on as
many cores: as one process with all threads, and as one process a core with one thread each (the way
the workflow runs). A round times ours, then the peer's, and the ratio is taken within a round, so
that a machine that slows down slows both; the table gives the median over the rounds and the range.
The time of a model is that of the whole job divided by its models: ours with reading the data, test
losses and the artefact; dattri's with saving its checkpoints.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from leaveout import artefacts
from leaveout.artefacts import atomic_path
from leaveout.config import CNN, LDS, LOO, MLP, FirstIds, Recipe, Setting, load_setting
from leaveout.data import sources
from leaveout.data.prepare import prepare
from speed_protocol import Message, Workers

HERE = Path(__file__).resolve().parent
PEERS = {"items": "dattri", "tensors": "dattri, data as tensors"}


@dataclass(frozen=True)
class Case:
    """One model to time; the numbers are of one round, all processes together.

    Attributes:
        name: As in the table.
        setting: Model and recipe.
        ours: LDS models we train.
        loo: Paired LOO models we train, 0 for none.
        peer: LDS models the peer trains.
    """

    name: str
    setting: Setting
    ours: int
    loo: int
    peer: int


@dataclass(frozen=True)
class Row:
    """A row of the table; times are wall seconds, rates and ratios medians over the rounds."""

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


def cases(quick: bool) -> list[Case]:
    """Return what is timed; quick cases keep the sizes and cut the epochs."""
    lr = load_setting(HERE.parent / "config" / "settings" / "mnist_lr.yaml")
    mlp = MLP(name="mlp", hidden=(128, 64), dropout=0.1)
    cnn = CNN(name="cnn", channels=(8, 16))
    recipe = Recipe(learning_rate=0.01, momentum=0.9, epochs=50, batch_size=64)
    short = recipe.model_copy(update={"epochs": 5, "batch_size": 32})
    full = [
        Case("mnist_lr", lr, ours=64, loo=128, peer=2),
        Case("mnist_mlp", _like(lr, "mnist_mlp", mlp, recipe), ours=16, loo=0, peer=2),
        Case("mnist_cnn", _like(lr, "mnist_cnn", cnn, short), ours=4, loo=0, peer=2),
    ]
    if not quick:
        return full
    return [
        Case(c.name, _epochs(c.setting, -(-c.setting.recipe.epochs // 5)), c.ours, c.loo, c.peer)
        for c in full
    ]


def _like(setting: Setting, name: str, model: MLP | CNN, recipe: Recipe) -> Setting:
    return setting.model_copy(update={"name": name, "model": model, "recipe": recipe})


def _epochs(setting: Setting, epochs: int) -> Setting:
    recipe = setting.recipe.model_copy(update={"epochs": epochs})
    full = setting.full.model_copy(update={"checkpoints": 1})
    return setting.model_copy(update={"recipe": recipe, "full": full})


def export(setting: Setting, folder: Path) -> None:
    """Write the data for both sides."""
    prepare(setting, folder / "data.safetensors")
    tensors = artefacts.read(folder / "data.safetensors", "data").tensors
    wanted = setting.dataset
    raw = sources.load(wanted.name, wanted.source, wanted.n_train, wanted.n_test)
    np.savez(
        folder / "data.npz",
        train_pixels=raw.train_inputs,
        normalise=np.array([wanted.mean, wanted.std]),
        **dict[str, Any](tensors),
    )


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


def time_case(
    case: Case, own: Workers, peer: Workers | None, rounds: int
) -> tuple[dict[str, list[Timing]], list[float]]:
    """Time a case in rounds: ours, the peer's with either data set, our paired LOO.

    Returns:
        Timings of ``ours``, ``items``, ``tensors`` and ``loo``, each with one entry a round, and
        the matrix-product rate (GFLOP/s, all processes together) of each round.
    """
    count = len(own.processes)
    short = _epochs(case.setting, 1)
    own.ask("lds", setting=chunked(short, 8), chunk=0)
    recipe = case.setting.recipe
    request = {"model": case.setting.model.name, "batch_size": recipe.batch_size}
    if peer is not None:
        peer.ask("lds", **request, data="tensors", epochs=1, models=1, seed=0)
    times: dict[str, list[Timing]] = {"ours": [], "items": [], "tensors": [], "loo": []}
    peaks = []
    for number in range(rounds):
        first = count * number
        size = -(-case.ours // count)
        answers = own.ask("lds", setting=chunked(case.setting, size), chunk=first)
        times["ours"].append(timing(answers, size * count))
        for data in PEERS if peer is not None else ():
            assert peer is not None
            size = -(-case.peer // count)
            answers = peer.ask(
                "lds", **request, data=data, epochs=recipe.epochs, models=size, seed=10 * number
            )
            times[data].append(timing(answers, size * count))
        if case.loo:
            size = -(-case.loo // count)
            answers = own.ask("loo", setting=chunked(case.setting, size), chunk=first)
            times["loo"].append(timing(answers, size * count))
        peaks.append(sum(a["gflops"] for a in own.ask("peak", seconds=0.5)))
    return times, peaks


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


def rows(
    case: Case,
    times: dict[str, list[Timing]],
    peaks: list[float],
    work: Message,
    threads: str,
    about: Message,
) -> list[Row]:
    """Return the rows of a case.

    Args:
        case: The case.
        times: From :func:`time_case`.
        peaks: From :func:`time_case`, GFLOP/s.
        work: ``flops`` and ``samples`` of one LDS model.
        threads: Processes x threads.
        about: Versions of the peer, or nothing.
    """
    found = []
    n_train = case.setting.dataset.n_train
    per_loo = case.setting.recipe.epochs * n_train
    sides = [("ours", data, label, work["samples"]) for data, label in PEERS.items()]
    if not times["items"]:
        sides = [("ours", "", "", work["samples"])]
    if times["loo"]:
        sides.append(("loo", "ours", "leaveout, LDS", per_loo))
    for side, against, label, samples in sides:
        mine, other = times[side], times.get(against, [])
        flops = work["flops"] / work["samples"] * samples
        rate = median(1e-9 * flops / t.wall / p for t, p in zip(mine, peaks, strict=True))
        wall = median(t.wall for t in mine)
        peer_version = version("leaveout") if against == "ours" else about.get("dattri", "")
        found.append(
            Row(
                case=case.name + (", paired LOO" if side == "loo" else ""),
                ours_s_per_model=f"{wall:.4g}",
                peer=label,
                peer_version=peer_version if label else "",
                fraction_of_peak=f"{rate:.2g}",
                n_ours=sum(t.models for t in mine),
                n_peer=sum(t.models for t in other),
                threads=threads,
                peak_mb=f"{max(t.peak_mb for t in mine):.0f}",
                ours_us_per_sample=f"{1e6 * wall / samples:.3g}",
                machine=machine(),
                torch=version("torch"),
                **compare(mine, other),
            )
        )
    return found


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


def run(
    chosen: Sequence[Case], peers_python: str | None, rounds: int, runs: int, folder: Path
) -> list[Row]:
    """Time the cases, print as it goes, and return the table.

    Args:
        chosen: The cases; they share one data set.
        peers_python: Python of the peers' environment; without it only our side is timed.
        rounds: Rounds a case.
        runs: Models a side for the comparison of test losses; fewer than two compare nothing.
        folder: A temporary folder.
    """
    export(chosen[0].setting, folder)
    table: list[Row] = []
    modes = dict.fromkeys([(1, cores()), (cores(), 1)])
    for case in chosen:
        for processes, threads in modes:
            log = folder / "workers.log"
            arguments = (processes, threads, log)
            with Workers(
                [sys.executable, str(HERE / "speed_own.py"), str(folder)], *arguments
            ) as o:
                work = o.ask("flops", setting=case.setting.model_dump(mode="json"))[0]
                label = f"{processes}x{threads}"
                if peers_python is None:
                    times, peaks = time_case(case, o, None, rounds)
                    found = rows(case, times, peaks, work, label, {})
                else:
                    command = [peers_python, str(HERE / "peer_dattri.py"), str(folder)]
                    with Workers(command, *arguments) as p:
                        about = p.ask("about")[0]
                        if about["torch"].split("+")[0] != version("torch").split("+")[0]:
                            print(f"note: the peers have torch {about['torch']}")
                        times, peaks = time_case(case, o, p, rounds)
                        if runs > 1 and processes == 1:
                            print(agreement(case, o, p, runs), flush=True)
                    found = rows(case, times, peaks, work, label, about)
            for row in found:
                against = f", {row.ratio}x {row.peer} ({row.ratio_min}-{row.ratio_max})"
                print(
                    f"{row.case} {row.threads}: {row.ours_s_per_model} s a model"
                    + (against if row.ratio else "")
                    + f", CPU time {row.cpu_ratio or '-'}x, {row.fraction_of_peak} of"
                    f" {median(peaks):.0f} GFLOP/s, {row.ours_us_per_sample} us a sample",
                    flush=True,
                )
            table += found
    return table


def write(table: Sequence[Row], out: Path) -> None:
    """Write the table as CSV."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def main() -> None:
    """Read the command line, time and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers-python", required=True, help="Python with dattri")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, one round")
    parser.add_argument("--out", type=Path, default=Path("results/speed_table.csv"))
    args = parser.parse_args()
    print(f"{machine()}, load {os.getloadavg()[0]:.2f} (others' work makes ratios less certain)")
    rounds, runs = (1, 0) if args.quick else (3, 3)
    with tempfile.TemporaryDirectory() as folder:
        table = run(cases(args.quick), args.peers_python, rounds, runs, Path(folder))
    write(table, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
