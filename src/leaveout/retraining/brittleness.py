"""Retraining without the samples a method calls most helpful: does the prediction flip?

Papers: Ilyas et al. 2022 (Datamodels, arXiv:2202.00622), who ask for the smallest set whose removal
flips a prediction; Park et al. 2023 (TRAK, arXiv:2303.14186); Grosse et al. 2023
(arXiv:2308.03296); in the form used here Bae et al. 2024 (SOURCE, arXiv:2405.12186): some test
samples that are classified correctly, a few sizes k of what is removed, a few seeds each.

For a test sample j and a size k, the k training samples with the largest score[., j] are taken out,
and full run r is trained again without them: the same initialisation and order, from which they are
dropped, what stays being batched anew. What is measured is the loss of j, and its margin (the logit
of the right class minus the largest other), which :mod:`leaveout.metrics.brittleness` compares with
the full run's own. Scores that tie are ordered at random, alike for all methods, so that constant
scores take out random samples.

Cost: methods x test samples x sizes x runs trainings on nearly all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leaveout.config import Brittleness, ConfigError, Setting
from leaveout.data.halves import chosen, split
from leaveout.errors import LeaveoutError
from leaveout.retraining import trainings
from leaveout.retraining.common import Data, load_data, progress
from leaveout.retraining.predictions import margins
from leaveout.seeds import generator
from leaveout.store import artefacts
from leaveout.store.artefacts import ALL, Artefact, CorruptArtefactError
from leaveout.store.contents import Arrays
from leaveout.training.engine import train
from leaveout.training.losses import stacked_targets
from leaveout.training.trials import Trial

DIMS = {
    "loss": ("test", "size", "run"),
    "margin": ("test", "size", "run"),
    "full_loss": ("test", "run"),
    "full_margin": ("test", "run"),
    "removed_id": ("test", "rank"),
    "k": ("size",),
    "run_id": ("run",),
    "test_id": ("test",),
}


def section(setting: Setting) -> Brittleness:
    """Return the setting's section.

    Raises:
        ConfigError: It has none.
    """
    if setting.brittleness is None:
        raise ConfigError(
            f"{setting.name}: it has no section `brittleness`, which says how many samples are "
            "taken out and for which test samples. Add one, such as "
            "brittleness: {n_test: 50, k: [10, 50], runs: 3}"
        )
    return setting.brittleness


def drawn_tests(
    setting: Setting, test_id: NDArray[np.int64], margin: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Return which test samples are asked about: the same for all methods.

    Args:
        setting: Gives how many, and the random stream.
        test_id: (test,), ascending.
        margin: (test,), of the full models.

    Returns:
        Positions, in the order drawn: of the reported half, and classified correctly.
    """
    order = generator(setting.seed, setting.name, "brittleness", "tests").permutation(len(test_id))
    good = split(test_id, setting.name, setting.seed)["report"] & (margin > 0)
    return order[good[order]][: section(setting).n_test]


def most_helpful(
    setting: Setting, score: NDArray[np.floating[Any]], test_id: int, count: int
) -> NDArray[np.intp]:
    """Return the training samples with the largest scores, the largest first, ties at random.

    Args:
        setting: Gives the random stream, with the test sample.
        score: (train,), finite; in ascending order of id.
        test_id: Whose scores they are.
        count: How many are wanted.
    """
    rng = generator(setting.seed, setting.name, "brittleness", "ties", test_id)
    order = rng.permutation(len(score))
    return order[np.argsort(-score[order], kind="stable")][:count]


def _choose(scores: Sequence[Path], by: Path | None) -> tuple[Path, str, str]:
    """Return the score file of the chosen hyper-parameters, their label and who chose them."""
    labels = {str(artefacts.read(p, "score", leave=ALL).meta.get("label")): p for p in scores}
    if len(labels) != len(scores) or not labels:
        raise LeaveoutError(f"{', '.join(map(str, scores))}: give each grid point once.")
    if len(labels) == 1 or by is None:
        label, why = next(iter(labels)), "only one" if len(labels) == 1 else "first of the grid"
        return labels[label], label, why
    label = chosen(by)
    if label not in labels:
        raise LeaveoutError(
            f"{by}: it chooses {label}, and no score file given has that label "
            f"({', '.join(labels)}). Make both from the same grid."
        )
    return labels[label], label, "lds"


def _columns(
    score: Artefact, data: Data, test_id: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return the scores (train, test) of some test samples, and where each row lies in the data.

    Rows are in ascending order of the training samples' ids.
    """
    places = []
    for part, wanted in (("train", np.sort(data.train.ids)), ("test", test_id)):
        have = score.tensors[f"{part}_id"]
        order = np.argsort(have)
        found = np.searchsorted(have[order], wanted)
        there = np.take(have[order], found, mode="clip") == wanted
        if not there.all() or (part == "train" and len(have) != len(wanted)):
            raise LeaveoutError(
                f"{score.path}: its {part} ids are not those of the setting's data. Make both from "
                "the same setting."
            )
        places.append(order[found])
    if "score" not in score.rows:
        raise CorruptArtefactError(score.path, "it has no array 'score'")
    rows, columns = places
    block = np.empty((len(rows), len(columns)), np.float32)
    for part_of, found_rows in score.rows["score"].blocks(rows):
        block[part_of] = found_rows[:, columns]
    return block, np.argsort(data.train.ids)


def retrain_brittleness(
    setting: Setting,
    method: str,
    data_path: Path,
    predictions_path: Path,
    scores: Sequence[Path],
    chosen_by: Path | None,
    device: str,
) -> Arrays:
    """Retrain without the top samples of one method: a ``brittleness`` artefact.

    It holds ``loss`` and ``margin`` (test, size, run) of the retrained models, each on the test
    sample it was trained for; ``full_loss`` and ``full_margin`` (test, run) of the full models; and
    ``removed_id`` (test, rank), the samples taken out, the most helpful first: those of a size are
    the first so many. A test sample with a score that is NaN or infinite has no most helpful ones;
    nothing is trained for it, its outcomes are NaN and its ids -1. So it is with all where the
    method could not be computed, and the header says why.

    Args:
        setting: The setting; its section ``brittleness`` says how much is trained.
        method: The method.
        data_path: The setting's ``data`` artefact.
        predictions_path: Its ``predictions`` artefact.
        scores: The method's ``score`` artefacts, in grid order.
        chosen_by: The method's LDS, which chooses among them; None for the first of the grid.
        device: ``cpu`` or ``cuda``.

    Raises:
        LeaveoutError: A file is missing or damaged, the files do not fit together, or the full
            models classify no test sample correctly.
    """
    wanted = section(setting)
    data = load_data(setting, data_path, device)
    score_path, label, why = _choose(scores, chosen_by)
    score = artefacts.read(score_path, "score", leave=["score"])
    for name, expected in (("setting", setting.name), ("method", method)):
        if score.meta.get(name) != expected:
            raise LeaveoutError(f"{score_path}: its {name} is not {expected!r}.")

    said = artefacts.read(predictions_path, "predictions").tensors
    order = np.argsort(said["test_id"])
    if len(said["run_id"]) < wanted.runs or not np.array_equal(
        said["test_id"][order], np.sort(data.test.ids)
    ):
        raise LeaveoutError(
            f"{predictions_path}: not of the {wanted.runs} full runs and the test samples of "
            f"{setting.name}. Make it anew."
        )
    loss, margin = (said[name][: wanted.runs, order] for name in ("loss", "margin"))
    tests = drawn_tests(setting, said["test_id"][order], margin.mean(axis=0))
    if not len(tests):
        raise LeaveoutError(
            f"{setting.name}: the full models classify no test sample of the reported half "
            "correctly, so no prediction can flip. Leave out brittleness."
        )
    test_id = said["test_id"][order][tests]
    by_id = np.argsort(data.test.ids)[tests]

    shape = (len(tests), len(wanted.k), wanted.runs)
    outcome = {name: np.full(shape, np.nan) for name in ("loss", "margin")}
    removed = np.full((len(tests), wanted.k[-1]), -1, dtype=np.int64)
    trials: list[Trial] = []
    cells: list[tuple[int, int, int]] = []
    if not score.meta.get("not_computed"):
        columns, places = _columns(score, data, test_id)
        n = len(data.train.ids)
        for t in np.flatnonzero(np.isfinite(columns).all(axis=0)):
            top = places[most_helpful(setting, columns[:, t], int(test_id[t]), wanted.k[-1])]
            removed[t] = data.train.ids[top]
            for s, k in enumerate(wanted.k):
                kept = np.delete(np.arange(n), top[:k])
                for r in range(wanted.runs):
                    run = int(said["run_id"][r])
                    trials.append(Trial(setting.seed, (setting.name, "full", run), kept=kept))
                    cells.append((int(t), s, r))
    if trials:
        _train(setting, data, by_id, trials, cells, outcome)
    return Arrays(
        "brittleness",
        {
            **outcome,
            "full_loss": loss[:, tests].T,
            "full_margin": margin[:, tests].T,
            "removed_id": removed,
            "k": np.array(wanted.k, dtype=np.int64),
            "run_id": said["run_id"][: wanted.runs],
            "test_id": test_id,
        },
        DIMS,
        {
            **trainings.record(trials, len(data.train.ids)),
            "method": method,
            "label": label,
            "chosen_by": why,
            "not_computed": score.meta.get("not_computed"),
        },
    )


def _train(
    setting: Setting,
    data: Data,
    tests: NDArray[np.intp],
    trials: list[Trial],
    cells: list[tuple[int, int, int]],
    outcome: dict[str, NDArray[np.float64]],
) -> None:
    """Train models, and note for each the loss and the margin of its own test sample.

    Args:
        setting: The setting.
        data: Its data.
        tests: Where each test sample asked about lies in them.
        trials: What is trained.
        cells: The place of each in the outcome: which test sample, size and run.
        outcome: Arrays (test, size, run) to fill.
    """
    asked = data.test[torch.from_numpy(tests).to(data.test.device)]
    classes = data.objective.need("classes", "a prediction that flips is a class")
    stacks = train(data.build, trials, data.train, setting.recipe)
    done = 0
    for trained in progress(stacks, len(trials), "models without top samples"):
        outputs = trained.outputs(asked.inputs)
        of = {
            "loss": stacked_targets(outputs, asked).cpu().numpy(),
            "margin": margins(outputs, classes(asked.targets)).cpu().numpy(),
        }
        for model, cell in enumerate(cells[done : done + len(trained.trials)]):
            for name, values in of.items():
                value = values[model, cell[0]]
                outcome[name][cell] = value if np.isfinite(value) else np.nan
        done += len(trained.trials)
