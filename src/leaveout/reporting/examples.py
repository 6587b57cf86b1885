"""Pictures of samples: the supporters and opponents of test samples, and the most self-influential.

Both read the scores at each method's chosen hyper-parameters, and only the columns they show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from numpy.typing import NDArray

from leaveout.errors import LeaveoutError
from leaveout.reporting.figures import STYLE, WIDTH, svg
from leaveout.reporting.pictured import Samples, read_samples
from leaveout.reporting.sheet import SIZE, STEP, Frame, Sheet
from leaveout.reporting.tables import held_out, read_metrics
from leaveout.store.artefacts import Artefact, Rows, read

SIDE = 4
"""Supporters shown, and as many opponents."""
TOP = 20
"""Samples shown by their self-influence."""
ROW = SIZE + 0.34
"""Inches: pictures and what stands below them."""
_COLUMN = 1.36
"""Inches, of what stands left of the pictures."""
_GAP = 0.12
"""Inches, between supporters and opponents."""
SAME, OTHER, PLAIN = "#0072B2", "#D55E00", "0.45"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Array = NDArray[Any]


@dataclass(frozen=True)
class Strip:
    """What one method, or the ground truth, says of the test samples shown.

    Attributes:
        name: Whose it is.
        note: A remark below the name.
        ids: (train,), of the training samples it scores.
        score: (train, test sample shown).
    """

    name: str
    note: str
    ids: Array
    score: NDArray[np.float64]


def losses(truth: Artefact) -> tuple[NDArray[np.float64], str]:
    """Return the loss of each test sample, (test,), and of which models it is.

    Args:
        truth: A ground truth, in its file's order of test samples.
    """
    if "full_target" in truth.tensors:
        return truth.tensors["full_target"].mean(axis=0, dtype=np.float64), "the model"
    rows = truth.rows["target"]
    total = np.zeros(rows.shape[-1])
    for _, block in rows.blocks(np.arange(rows.shape[0])):
        total += block.mean(axis=1, dtype=np.float64).sum(axis=0)
    return total / rows.shape[0], "a model of some of the samples, on average,"


def chosen_tests(
    loss: NDArray[np.float64], test_id: Array, likely: bool = True
) -> list[tuple[int, str]]:
    """Return which test samples are shown: an ordinary, an undecided and the worst one.

    The choice is neither random nor does it depend on scores: losses decide, then the lowest id.

    Args:
        loss: (test,); samples whose loss is not finite are not chosen.
        test_id: (test,).
        likely: Whether the loss is minus the log-probability of a class; else no sample is
            undecided.

    Returns:
        Of each: its place, and why it is shown.
    """
    known = np.flatnonzero(np.isfinite(loss))
    if not len(known):
        return []
    order = known[np.lexsort((test_id[known], loss[known]))]
    undecided = order[np.lexsort((test_id[order], np.abs(np.exp(-loss[order]) - 0.5)))[0]]
    worst = order[np.lexsort((test_id[order], -loss[order]))[0]]
    found = {int(order[(len(order) - 1) // 2]): "the median loss: an ordinary one"}
    if likely:
        found[int(undecided)] = "nearest to one half: the model is undecided"
    found[int(worst)] = "the highest loss: the one it gets least right"
    return list(found.items())


def _columns(rows: Rows, positions: Array) -> NDArray[np.float64]:
    """Return some columns of an array on disk, (row, position); runs between are averaged."""
    parts = []
    for _, block in rows.blocks(np.arange(rows.shape[0])):
        block = block[..., positions].astype(np.float64)
        parts.append(block.mean(axis=1) if block.ndim == 3 else block)
    return np.concatenate(parts)


def _places(artefact: Artefact, wanted: Array) -> Array:
    """Return where in an artefact some test samples are."""
    have = artefact.tensors["test_id"]
    missing = np.setdiff1d(wanted, have)
    if len(missing):
        raise LeaveoutError(
            f"{artefact.path}: it has no test sample {', '.join(map(str, missing))}, which the "
            "ground truth has. Make both from the same setting."
        )
    return np.array([np.flatnonzero(have == test)[0] for test in wanted])


def _chosen(
    csvs: Sequence[Path], scores: Sequence[Path], setting: str, kind: str
) -> dict[str, Artefact]:
    """Return each method's scores at the hyper-parameters chosen on held-out samples.

    Args:
        csvs: The metric CSVs by which they are chosen; they order the methods.
        scores: The scores of these methods, all or at least the chosen ones.
        setting: The setting all must be of.
        kind: Of the scores.
    """
    if not csvs:
        raise LeaveoutError("no metric was given to choose hyper-parameters by.")
    with Path(csvs[0]).open(encoding="utf-8") as handle:
        metric = (handle.readlines()[1:2] or [","])[0].split(",")[1]
    metrics = read_metrics(metric, csvs)
    leave = ["score"] if kind == "score" else []
    found = {}
    for path in scores:
        artefact = read(path, kind, leave=leave)
        if artefact.meta.get("setting") != setting:
            raise LeaveoutError(
                f"{path}: it is of {artefact.meta.get('setting')}, not of {setting}."
            )
        found[artefact.meta["method"], artefact.meta["label"]] = artefact
    chosen = {}
    for (of, method), rows in metrics.items():
        params = held_out(rows)["params"]
        if of != setting or (method, params) not in found:
            raise LeaveoutError(
                f"no scores were given of {method} at {params} in {of}, which its metrics chose."
            )
        chosen[method] = found[method, params]
    return chosen


def _strip(method: str, artefact: Artefact, wanted: Array) -> Strip:
    ids = artefact.tensors["train_id"]
    why = artefact.meta.get("not_computed")
    if why:
        nothing = np.full((len(ids), len(wanted)), math.nan)
        return Strip(method, f"no scores: {why['reason']}", ids, nothing)
    score = _columns(artefact.rows["score"], _places(artefact, wanted))
    return Strip(method, "", ids, score)


def _truth_strip(truth: Artefact, wanted: Array, n_train: int) -> Strip:
    places = _places(truth, wanted)
    base = truth.tensors["full_target"].astype(np.float64).mean(axis=0)[places]
    rise = _columns(truth.rows["target"], places) - base
    ids = truth.tensors["removed_id"]
    note = "" if len(ids) == n_train else f"of {len(ids)} left out"
    return Strip("leave-one-out", note or "the truth", ids, rise)


def extremes(score: NDArray[np.float64], ids: Array, count: int) -> tuple[Array, Array]:
    """Return the places of the highest scores and of the lowest, the most extreme first.

    Args:
        score: (train,); NaN is in neither.
        ids: (train,): of equal scores, the lowest id comes first.
        count: How many of each, at most; none is in both.
    """
    known = np.flatnonzero(np.isfinite(score))
    count = min(count, len(known) // 2)
    high = known[np.lexsort((ids[known], -score[known]))][:count]
    rest = np.setdiff1d(known, high)
    return high, rest[np.lexsort((ids[rest], score[rest]))][:count]


def scaled(values: Array) -> tuple[list[str], str]:
    """Return numbers as short texts, and the power of ten they were divided by ("" for none)."""
    largest = float(np.abs(values).max(initial=0.0))
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    if -2 < power < 2:
        power = 0
    texts = [f"{value / 10.0**power:+.{1 if power or largest >= 10 else 2}f}" for value in values]
    texts = [text.replace("-", "−") for text in texts]
    return texts, f"×10{str(power).translate(_SUPERSCRIPT)}" if power else ""


def _frame(same: bool | None, flipped: bool) -> Frame:
    if same is None:
        return Frame(PLAIN, 0.8)
    return Frame(SAME, 2.0, "-", flipped) if same else Frame(OTHER, 1.2, (0, (2, 1)), flipped)


def _said(samples: Samples, sample: int) -> str:
    """Return the label of a training sample; of a flipped one also what it was."""
    was, label = samples.original.get(sample), samples.label(sample)
    if label is None:
        return f"id {sample}"
    return f"{label}" if was is None else f"{was}→{label}"


def examples_figure(
    setting: str,
    data: Path,
    truth: Path,
    csvs: Sequence[Path],
    scores: Sequence[Path],
    likely: bool = True,
) -> str:
    """Draw some test samples with their strongest supporters and opponents, by several methods.

    The first row of each is what leaving out really did, where the ground truth given is that.

    Args:
        setting: Name of the setting.
        data: Its ``data`` artefact.
        truth: A ground truth: its losses choose the test samples (:func:`chosen_tests`).
        csvs: One metric's CSVs of the methods shown, in order; hyper-parameters are chosen by them.
        scores: Score artefacts of these methods.
        likely: Whether a sample's loss is minus the log-probability of its class.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or damaged, or they do not fit together.
    """
    samples, ground = read_samples(data), read(truth, leave=["target"])
    loss, whose = losses(ground)
    shown = chosen_tests(loss, ground.tensors["test_id"], likely)
    wanted = np.array([ground.tensors["test_id"][place] for place, _ in shown])
    strips = []
    if ground.kind == "loo":
        strips.append(_truth_strip(ground, wanted, len(samples.train_id)))
    chosen = _chosen(csvs, scores, setting, "score")
    strips += [_strip(method, artefact, wanted) for method, artefact in chosen.items()]
    sheet = Sheet(np.zeros((1, *samples.shape)), samples.full_scale)
    sheet.words(0.05, 0.06, setting, fontsize=10, fontweight="bold")
    y = 0.34
    if not shown:
        sheet.words(0.05, y, "no test sample has a finite loss")
        y += 0.3
    for k, (place, why) in enumerate(shown):
        sheet.line(y)
        label = samples.wanted(int(wanted[k]))
        value = float(loss[place])
        says = f"{whose} gives its class a probability of {math.exp(-value):.2g},"
        if not likely:
            says = f"its loss under {whose} is {value:.3g},"
        y = _draw_test(sheet, samples, int(wanted[k]), label, (says, why), y + 0.1)
        truly = strips[0] if ground.kind == "loo" else None
        for strip in strips:
            _draw_strip(sheet, samples, strip, k, label, truly, y)
            y += ROW
        y += 0.04
    entries = [
        (_frame(True, False), "trained with the same label"),
        (_frame(False, False), "with another"),
    ]
    if samples.labels is None:
        entries = [(_frame(None, False), "a training sample")]
    if samples.original:
        entries.append((Frame(PLAIN, 0.8, marked=True), "flipped, from→to"))
    first = "id" if samples.labels is None else "label"
    note = f"below a picture: its {first}; its score, or the rise of the loss when it was left out"
    y = _draw_legend(sheet, entries, note, y + 0.04)
    with rc_context(STYLE):
        return svg(sheet.figure(y))


def _draw_test(
    sheet: Sheet,
    samples: Samples,
    test: int,
    label: int | None,
    says: tuple[str, str],
    y: float,
) -> float:
    """Draw a test sample, and return where what follows begins."""
    sheet.picture(0.06, y, samples.tested(test), (), Frame("black", 1.0))
    x = 0.06 + SIZE + 0.12
    title = f"test sample {test}" + ("" if label is None else f", of class {label}")
    sheet.words(x, y - 0.01, title, fontsize=9, fontweight="bold")
    sheet.words(x, y + 0.16, says[0])
    sheet.words(x, y + 0.30, says[1])
    y += SIZE + 0.08
    high = _COLUMN + 2 * STEP - (STEP - SIZE) / 2
    for centre, text in (
        (high, "supporters: highest scores"),
        (high + SIDE * STEP + _GAP, "opponents: lowest scores"),
    ):
        sheet.words(centre, y, text, ha="center", color="0.25")
    return y + 0.17


def _draw_strip(
    sheet: Sheet,
    samples: Samples,
    strip: Strip,
    k: int,
    label: int | None,
    truly: Strip | None,
    y: float,
) -> None:
    score = strip.score[:, k]
    high, low = extremes(score, strip.ids, SIDE)
    places = np.concatenate([high, low])
    texts, power = scaled(score[places])
    notes = [strip.note, power]
    if missing := int((~np.isfinite(score)).sum()):
        notes[0] = notes[0] or f"{missing} NaN"
    if truly is not None and strip is not truly and len(places):
        theirs = extremes(truly.score[:, k], truly.ids, SIDE)
        shared = sum(
            int(np.isin(strip.ids[ours], truly.ids[there]).sum())
            for ours, there in zip((high, low), theirs, strict=True)
        )
        notes.append(f"{shared} of {len(places)} are the truth's")
    sheet.words(0.06, y + 0.02, strip.name, fontweight="bold")
    for i, note in enumerate(note for note in notes if note):
        sheet.words(0.06, y + 0.17 + 0.14 * i, note, color="0.3")
    for i, (place, text) in enumerate(zip(places, texts, strict=True)):
        lower = i >= len(high)
        column = i - len(high) + SIDE if lower else i
        x = _COLUMN + column * STEP + _GAP * lower
        sample = int(strip.ids[place])
        same = None if label is None else samples.label(sample) == label
        frame = _frame(same, sample in samples.original)
        sheet.picture(x, y, samples.picture(sample), (_said(samples, sample), text), frame)


def _draw_legend(sheet: Sheet, entries: Sequence[tuple[Frame, str]], note: str, y: float) -> float:
    """Draw frames and what they mean, then a line of text; return where all ends."""
    sheet.line(y)
    x = 0.06
    for frame, text in entries:
        sheet.frame(x, y + 0.09, 0.2, 0.2, frame)
        sheet.words(x + 0.27, y + 0.12, text)
        x += 0.27 + 0.066 * len(text) + 0.25
    sheet.words(0.06, y + 0.37, note)
    return y + 0.58


def self_influence_figure(
    setting: str, data: Path, csvs: Sequence[Path], scores: Sequence[Path]
) -> str:
    """Draw the training samples with the highest self-influence, by several methods.

    Args:
        setting: Name of the setting, of which some labels were flipped.
        data: Its ``data`` artefact.
        csvs: The ``auc`` CSVs of the methods shown, in order; hyper-parameters are chosen by them.
        scores: Artefacts of kind ``self_influence`` of these methods.

    Returns:
        SVG.

    Raises:
        LeaveoutError: A file is missing or damaged, or they do not fit together.
    """
    samples = read_samples(data)
    chosen = _chosen(csvs, scores, setting, "self_influence")
    sheet = Sheet(np.zeros((1, *samples.shape)), samples.full_scale)
    sheet.words(0.05, 0.06, setting, fontsize=10, fontweight="bold")
    share = len(samples.original) / len(samples.train_id)
    sheet.words(
        0.05, 0.27,
        f"highest self-influence first; {len(samples.original)} of {len(samples.train_id)} "
        f"labels ({share:.0%}) are flipped",
    )  # fmt: skip
    y = 0.5
    for method, artefact in chosen.items():
        sheet.line(y)
        y = _draw_top(sheet, samples, method, artefact, y + 0.08)
    entries = [
        (_own_frame(True), "label flipped on purpose, from→to"),
        (_own_frame(False), "as it was"),
    ]
    y = _draw_legend(sheet, entries, "below a picture: the label it was trained with", y + 0.02)
    with rc_context(STYLE):
        return svg(sheet.figure(y))


def _own_frame(flipped: bool) -> Frame:
    return Frame(OTHER, 2.0, marked=True) if flipped else Frame(PLAIN, 0.8)


def _draw_top(sheet: Sheet, samples: Samples, method: str, artefact: Artefact, y: float) -> float:
    """Draw one method's samples, and return where what follows begins."""
    why = artefact.meta.get("not_computed")
    sheet.words(0.06, y, method, fontweight="bold")
    right: dict[str, Any] = {"ha": "right", "color": "0.25"}
    if why:
        sheet.words(WIDTH - 0.06, y, f"no scores: {why['reason']}", **right)
        return y + 0.22
    ids, score = artefact.tensors["train_id"], artefact.tensors["self_influence"]
    known = np.flatnonzero(np.isfinite(score))
    top = ids[known[np.lexsort((ids[known], -score[known]))][:TOP]]
    found = sum(int(sample) in samples.original for sample in top)
    nan = f", {len(ids) - len(known)} NaN" if len(known) < len(ids) else ""
    sheet.words(WIDTH - 0.06, y, f"{found} of these {len(top)} are flipped{nan}", **right)
    y += 0.2
    across = int((WIDTH - 0.2) / STEP)
    for k, sample in enumerate(int(sample) for sample in top):
        frame = _own_frame(sample in samples.original)
        x, down = 0.22 + STEP * (k % across), (SIZE + 0.2) * (k // across)
        sheet.picture(x, y + down, samples.picture(sample), (_said(samples, sample),), frame)
    return y + (SIZE + 0.2) * -(-len(top) // across) + 0.04
