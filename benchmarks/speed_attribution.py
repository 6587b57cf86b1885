"""The parts of `speed.py` that time attribution: against other libraries, and as samples grow.

Every row of `results/speed_table.csv` is one call of one of our methods and one call of another
library's for the same scores: all training samples for all test samples of MNIST 5000/500, or for
the first 50 where theirs would take an hour, from samples and weights that lie ready in memory to
the scores in memory. Both run one after the other, in a process each, with a thread for every core;
where they are quick, in several rounds, and ratios are taken within a round. Theirs is ended when
it takes longer than the limit, and the ratio is then a lower bound; a call that asks for more
memory than allowed says so.

    setting         model and data
    method, params  ours: the module in leaveout.attribution and its arguments
    peer, peer_version
                    the other library; "one batch" is dattri scoring all samples at once, as some of
                    its examples do and where its benchmark script takes batches of 500, each with
                    all of the solving anew. Where one batch takes longer than the limit, batches
                    are not tried
    ours_s, peer_s  seconds, medians over the rounds
    ratio           median over the rounds of peer / ours; ratio_min and ratio_max the range
    rounds          how many; a side that has taken ten seconds is not called again, and its last
                    call is compared with the other side's further ones
    ours_peak_mb    peak memory of the process, data, weights and libraries included; peer_peak_mb
    agreement       Pearson correlation of the two score matrices
    note            why it is not 1, and what became of a peer without scores

`results/scaling_table.csv` has ours alone, at growing numbers of training samples: MNIST's own over
and over with other noise, so that only times and memory mean something. ``beside_mb`` is the peak
beyond what was there before, data and weights included: what must not grow with the samples.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from leaveout.config import Setting, load_setting
from leaveout.retraining.models import train_models
from leaveout.store import artefacts
from leaveout.store.contents import save
from speed_protocol import Message, Workers, WorkerStopped
from speed_retraining import cores, export, machine, write

HERE = Path(__file__).resolve().parent
SETTINGS = ("mnist_lr", "mnist_mlp")
RUNS = 10
MEMORY_GIB = 16
FEW = 50
"""Test samples where the other library would take an hour for all."""
ENOUGH_S, MOST_ROUNDS = 10, 5
PEERS = {"dattri": "dattri", "captum": "captum", "kronfluence": "kronfluence", "trak": "traker"}
"""The libraries and what they are called where one installs them."""

PROJECTED = "dattri projects gradients to 512 dimensions at random, ours are exact"
TWO_DRAWS = "each side has its own random projections to 512 dimensions"


@dataclass(frozen=True)
class Case:
    """A method of ours and the same of another library.

    Attributes:
        method: Our module in leaveout.attribution.
        params: Its arguments.
        peer: The library.
        function: In ``METHODS`` of its script.
        peer_params: Its arguments.
        note: How the two differ by definition.
        settings: Where it can be computed.
        compiles: Whether the other library compiles its code in the first call, which then does not
            count.
        few: Where scores are for ``FEW`` test samples only: either side solves for each of them.
    """

    method: str
    params: dict[str, Any]
    peer: str
    function: str
    peer_params: dict[str, Any]
    note: str = ""
    settings: tuple[str, ...] = SETTINGS
    compiles: bool = False
    few: tuple[str, ...] = ()


def _influence(
    method: str,
    params: dict[str, Any],
    theirs: dict[str, Any],
    note: str = "",
    settings: tuple[str, ...] = SETTINGS,
    few: tuple[str, ...] = (),
) -> list[Case]:
    """Return the rows of an influence function: all in one batch, and dattri's batches."""
    return [
        Case(method, params, "dattri", method, {**theirs, "batch": batch}, note, settings, few=few)
        for batch in (None, 500)
    ]


DAMPED = {"damping": 5e-3}
REGULAR = {"regularization": 5e-3}
CASES = [
    Case("grad_dot", {}, "dattri", "tracin", {"runs": 1, "weight": 1.0}, PROJECTED),
    Case(
        "grad_cos", {}, "dattri", "tracin",
        {"runs": 1, "weight": 1.0, "cosine": True}, PROJECTED,
    ),
    Case(
        "tracin", {"runs": RUNS, "weight": 1e-3}, "dattri", "tracin",
        {"runs": RUNS, "weight": 1e-3}, PROJECTED,
    ),
    Case("tracin_cp", {}, "captum", "tracin_cp", {}),
    Case("tracin_cp", {"layers": "last"}, "captum", "tracin_cp_fast", {}),
    *(
        Case(
            "trak", {"models": models, "projection": 512}, peer, "trak",
            {"runs": models, "dimension": 512}, TWO_DRAWS,
        )
        for peer in ("dattri", "trak")
        for models in (1, 10)
    ),
    *_influence("if_explicit", DAMPED, REGULAR, settings=("mnist_lr",)),
    *_influence(
        "if_cg", {**DAMPED, "iterations": 10}, {**REGULAR, "max_iter": 10},
        "dattri's iteration starts from g_j, ours from 0", few=("mnist_mlp",),
    ),
    *_influence(
        "if_lissa", {"depth": 100, "batch": 100, "scaling": 50.0},
        {"recursion_depth": 100, "batch_size": 100, "scaling": 50.0},
        "each side draws its own batches", few=("mnist_mlp",),
    ),
    *_influence(
        "if_arnoldi", {**DAMPED, "iterations": 50, "projections": 100},
        {**REGULAR, "max_iter": 50, "proj_dim": 100},
        "each side starts from its own random vector",
    ),
    *_influence("datainf", {"damping": 0.1}, {"regularization": 0.1}),
    *_influence("if_ekfac", DAMPED, DAMPED, "dattri's is not the EK-FAC of the paper"),
    Case(
        "if_ekfac", DAMPED, "kronfluence", "ekfac", DAMPED,
        "kronfluence draws its labels from the model",
    ),
    Case(
        "logra", {"damping": 0.1, "rank": 16, "start": "random"}, "dattri", "logra",
        {"damping": 0.1, "dimension": 256}, "each side has its own random projections",
        compiles=True,
    ),
    Case(
        "grass", {"damping": 0.1, "projection": 256, "factored": True}, "dattri", "factgrass",
        {"damping": 0.1, "dimension": 256}, "each side has its own random projections",
        compiles=True,
    ),
    Case(
        "rps_l2", {"l2": 1e-2}, "dattri", "rps", {"l2": 1e-2},
        "dattri fits features of any norm, by gradient descent",
    ),
    Case("knn_shapley", {"k": 5}, "dattri", "knn_shapley", {"k": 5}),
]  # fmt: skip

SCALES = (5_000, 20_000, 60_000)
GROWING: list[tuple[str, dict[str, Any], int]] = [
    ("grad_dot", {}, 500),
    ("tracin_cp", {}, 500),
    ("if_cg", {**DAMPED, "iterations": 10}, 50),
    ("if_ekfac", DAMPED, 500),
    ("trak", {"models": 1, "projection": 512}, 500),
]
"""Method, arguments and test samples."""


@dataclass(frozen=True)
class Row:
    """A row of the table; the columns are explained above."""

    setting: str
    method: str
    params: str
    peer: str
    peer_version: str
    ours_s: str
    peer_s: str
    ratio: str
    ratio_min: str
    ratio_max: str
    rounds: int
    ours_peak_mb: str
    peer_peak_mb: str
    agreement: str
    note: str
    n_train: int
    n_test: int
    threads: int
    machine: str
    torch: str


@dataclass(frozen=True)
class Growth:
    """A row of the table of growing sample numbers."""

    setting: str
    method: str
    params: str
    n_train: int
    n_test: int
    seconds: str
    us_per_sample: str
    data_mb: str
    peak_mb: str
    beside_mb: str
    threads: int
    machine: str
    torch: str


@dataclass
class Side:
    """What one side's calls took, round by round.

    Attributes:
        seconds: Of each call.
        peak_mb: The highest.
        stopped: Why there is no answer, if so.
        words: Its last words then.
    """

    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    stopped: str = ""
    words: str = ""

    def wanted(self) -> bool:
        """Return whether to call it once more."""
        return not self.stopped and sum(self.seconds) <= ENOUGH_S


def prepare(name: str, quick: bool, folder: Path) -> Setting:
    """Train the models that are scored, and write them and the data for all sides.

    Args:
        name: The setting, in `config/settings`.
        quick: Less of everything.
        folder: Where to.
    """
    setting = load_setting(HERE.parent / "config" / "settings" / f"{name}.yaml")
    changes: dict[str, Any] = {"half": setting.half.model_copy(update={"runs": RUNS})}
    if quick:
        small = {"n_train": 600, "n_test": 20}
        changes["dataset"] = setting.dataset.model_copy(update=small)
        changes["recipe"] = setting.recipe.model_copy(update={"epochs": 10})
    setting = setting.model_copy(update=changes)
    export(setting, folder)
    (folder / "setting.json").write_text(setting.model_dump_json())
    arrays: dict[str, Any] = {}
    kinds: tuple[Literal["full"], Literal["half"]] = ("full", "half")
    for kind in kinds:
        parts, number, found = [], 0, 0
        while found < RUNS:
            out = folder / f"{kind}-{number}.safetensors"
            trained = train_models(setting, kind, str(number), folder / "data.safetensors", "cpu")
            save(out, trained)
            parts.append(artefacts.read(out, "models"))
            found, number = found + len(parts[-1].tensors["run_id"]), number + 1
        states = [key for key in parts[0].tensors if key.startswith("state.")]
        for key in states:
            stacked = np.concatenate([part.tensors[key] for part in parts])[:RUNS]
            arrays[f"{kind}/{key.removeprefix('state.')}"] = stacked
        if kind == "full":
            arrays["rates"] = parts[0].tensors["learning_rate"]
    np.savez(folder / "models.npz", **arrays)
    return setting


def call(workers: Workers, side: Side, limit: float | None, **arguments: Any) -> None:
    """Ask a side once, and note what it took or why it did not come."""
    try:
        answer = workers.ask("score", limit=limit, **arguments)[0]
    except WorkerStopped as stopped:
        side.stopped, side.words = stopped.why, str(stopped)
        return
    side.seconds.append(answer["seconds"])
    side.peak_mb = max(side.peak_mb, answer["peak_mb"])


def time_case(case: Case, folder: Path, peers_python: str | None, limit: float) -> Row:
    """Time one row.

    Args:
        case: What.
        folder: As :func:`prepare` left it.
        peers_python: Python of the peers' environment; without it only ours is timed.
        limit: Seconds a call of theirs may take; ours takes what it takes.
    """
    setting = Setting.model_validate_json((folder / "setting.json").read_text())
    n_test = tested(case, setting)
    mine: Message = {"method": case.method, "params": case.params, "n_test": n_test}
    yours: Message = {"method": case.function, "params": case.peer_params, "n_test": n_test}
    mine["out"], yours["out"] = str(folder / "ours.npy"), str(folder / "peer.npy")
    log = folder / "workers.log"
    log.write_text("")
    common = [str(folder), str(MEMORY_GIB)]
    own = Workers([sys.executable, str(HERE / "own_scores.py"), *common], 1, cores(), log)
    theirs = None
    if peers_python:
        script = [peers_python, str(HERE / "peer_scores.py"), case.peer]
        theirs = Workers([*script, *common], 1, cores(), folder / "peer.log")
    sides = {"ours": Side(), "peer": Side()}
    for workers in (own, theirs):
        if workers:
            workers.ask("ready")
    if theirs and case.compiles:
        first = Side()
        call(theirs, first, limit, **yours)
        sides["peer"].stopped, sides["peer"].words = first.stopped, first.words
    for _ in range(MOST_ROUNDS):
        # a side that takes long is called less often than the other, whose single calls vary more
        if sides["ours"].wanted():
            call(own, sides["ours"], None, **mine)
        if sides["ours"].stopped:
            break
        if theirs and sides["peer"].wanted():
            call(theirs, sides["peer"], limit, **yours)
    for workers in (own, theirs):
        if workers:
            workers.close()
    if sides["ours"].stopped:
        raise SystemExit(f"{case.method}: {sides['ours'].words}")
    return row(case, setting, sides["ours"], sides["peer"], limit, folder)


def tested(case: Case, setting: Setting) -> int:
    """Return for how many test samples a case is scored."""
    n_test = setting.dataset.n_test
    return min(FEW, n_test) if setting.name in case.few else n_test


def row(case: Case, setting: Setting, ours: Side, peer: Side, limit: float, folder: Path) -> Row:
    """Put a row together."""
    mine, notes, agreement = median(ours.seconds), [case.note], ""
    ratios, shown = paired(ours.seconds, peer.seconds), ""
    if peer.stopped == "time":
        ratios, shown = [limit / mine], f"> {limit:g}"
        notes = ["not done within the limit"]
    elif peer.stopped == "memory":
        notes = [f"asked for more than {MEMORY_GIB} GiB"]
    elif peer.stopped:
        notes = [f"failed: {peer.words.strip().splitlines()[-1]}"]
    elif peer.seconds:
        shown = f"{median(peer.seconds):.4g}"
        agreement, bad = agree(np.load(folder / "ours.npy"), np.load(folder / "peer.npy"))
        notes += [bad]
    bound = "> " if peer.stopped == "time" else ""
    return Row(
        setting=setting.name,
        method=case.method,
        params=json.dumps(case.params),
        peer=case.peer + (", one batch" if one_batch(case) else ""),
        peer_version=peer_version(folder / "versions.json", case.peer),
        ours_s=f"{mine:.4g}",
        peer_s=shown,
        ratio=bound + f"{median(ratios):.3g}" if ratios else "",
        ratio_min=f"{min(ratios):.3g}" if ratios and not bound else "",
        ratio_max=f"{max(ratios):.3g}" if ratios and not bound else "",
        rounds=max(len(ours.seconds), len(peer.seconds)),
        ours_peak_mb=f"{ours.peak_mb:.0f}",
        peer_peak_mb=f"{peer.peak_mb:.0f}" if peer.seconds else "",
        agreement=agreement,
        note="; ".join(note for note in notes if note),
        n_train=setting.dataset.n_train,
        n_test=tested(case, setting),
        threads=cores(),
        machine=machine(),
        torch=version("torch"),
    )


def paired(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Return peer / ours round by round; the last call of the side with fewer serves the rest."""
    if not ours or not peer:
        return []
    rounds = range(max(len(ours), len(peer)))
    return [peer[min(k, len(peer) - 1)] / ours[min(k, len(ours) - 1)] for k in rounds]


def agree(ours: np.ndarray, peer: np.ndarray) -> tuple[str, str]:
    """Return the correlation of two score matrices, and what is wrong with the peer's."""
    if ours.shape != peer.shape:
        return "", f"the peer gave {peer.shape}"
    good = np.isfinite(peer)
    note = "" if good.all() else f"{1 - good.mean():.0%} of the peer's scores are no numbers"
    if good.sum() < 2:
        return "", note
    return f"{np.corrcoef(ours[good].astype(float), peer[good].astype(float))[0, 1]:.4f}", note


def peer_version(file: Path, peer: str) -> str:
    """Return a library's version from the file that :func:`ask_versions` wrote, if it did."""
    return str(json.loads(file.read_text()).get(peer, "")) if file.exists() else ""


def ask_versions(peers_python: str, file: Path) -> None:
    """Write the versions of the other libraries, as JSON."""
    script = (
        "import json, sys; from importlib.metadata import version\n"
        "print(json.dumps({k: version(v) for k, v in json.loads(sys.argv[1]).items()}))"
    )
    command = [peers_python, "-c", script, json.dumps(PEERS)]
    file.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def geometric_mean(ratios: Sequence[str]) -> float:
    """Return the geometric mean of ratios, lower bounds among them."""
    return float(np.exp(np.mean([np.log(float(ratio.lstrip("> "))) for ratio in ratios])))


def summary(found: Row) -> str:
    """Return a row as text."""
    text = (
        f"{found.setting} {found.method} {found.params}, {found.n_test} test samples: "
        f"{found.ours_s} s, {found.ours_peak_mb} MB"
    )
    if found.ratio:
        text += f"; {found.peer} {found.peer_s} s, {found.peer_peak_mb} MB: {found.ratio}x"
    elif found.note:
        text += f"; {found.peer}"
    agreement = f", r = {found.agreement}" if found.agreement else ""
    return text + agreement + (f" ({found.note})" if found.note else "")


def one_batch(case: Case) -> bool:
    """Return whether dattri gets all training samples at once where its script does not."""
    return case.peer_params.get("batch", 0) is None


def compare(
    peers_python: str | None, quick: bool, limit: float, out: Path, cases: Sequence[Case] = ()
) -> None:
    """Time our methods against the other libraries', print as it goes, and write the table.

    Args:
        peers_python: Python of the peers' environment; without it only our side is timed.
        quick: Few samples.
        limit: Seconds a call of theirs may take.
        out: The table.
        cases: What; all by default.
    """
    table = []
    for name in SETTINGS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if peers_python:
                ask_versions(peers_python, folder / "versions.json")
            prepare(name, quick, folder)
            late: set[str] = set()
            for case in cases or CASES:
                if name not in case.settings or case.function in late:
                    continue
                table.append(time_case(case, folder, peers_python, limit))
                print(summary(table[-1]), flush=True)
                if one_batch(case) and table[-1].peer_s.startswith(">"):
                    late.add(case.function)  # in several batches it takes longer still
    for peer in dict.fromkeys(found.peer for found in table):
        ratios = [found.ratio for found in table if found.ratio and found.peer == peer]
        if ratios:
            bounds = sum(ratio.startswith(">") for ratio in ratios)
            print(
                f"{peer}: geometric mean {geometric_mean(ratios):.3g}x over {len(ratios)} rows, "
                f"{bounds} of them lower bounds"
            )
    write(table, out)
    print(f"wrote {out}")


def grow(quick: bool, out: Path) -> None:
    """Time our methods at growing numbers of training samples, and write the table."""
    table = []
    for name in SETTINGS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            prepare(name, quick, folder)
            for method, params, n_test in GROWING:
                for n_train in [n // 100 for n in SCALES] if quick else SCALES:
                    table.append(growth(name, method, params, n_train, n_test, folder))
                    print(
                        f"{name} {method} {n_train}: {table[-1].seconds} s, "
                        f"{table[-1].beside_mb} MB",
                        flush=True,
                    )
    write(table, out)
    print(f"wrote {out}")


def growth(
    name: str, method: str, params: dict[str, Any], n_train: int, n_test: int, folder: Path
) -> Growth:
    """Time one row, in a process of its own."""
    log = folder / "workers.log"
    command = [sys.executable, str(HERE / "own_scores.py"), str(folder), str(MEMORY_GIB)]
    ask: Message = {"method": method, "params": params, "n_test": n_test}
    with Workers(command, 1, cores(), log) as own:
        own.ask("scale", **ask, n_train=n_train // 10)  # what is only done once is done
        answer = own.ask("scale", **ask, n_train=n_train)[0]
    return Growth(
        setting=name,
        method=method,
        params=json.dumps(params),
        n_train=n_train,
        n_test=n_test,
        seconds=f"{answer['seconds']:.4g}",
        us_per_sample=f"{1e6 * answer['seconds'] / n_train:.3g}",
        data_mb=f"{answer['data_mb']:.0f}",
        peak_mb=f"{answer['peak_mb']:.0f}",
        beside_mb=f"{answer['peak_mb'] - answer['before_mb']:.0f}",
        threads=cores(),
        machine=machine(),
        torch=version("torch"),
    )
