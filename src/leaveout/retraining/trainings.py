"""Which models a file was made from: the record that scores and ground truths share none.

A model that scores are computed from and that is one of the ground truth's own would be compared
with itself. So the header of every file of models, ground truth or scores has an entry
``trainings``: ``models`` names each training whose model is in it, and ``shared`` those that are
the full runs' own by design, the baseline that leave-one-out takes its differences from.

A training is named by what decides it beside the setting: whose random streams it uses and which
samples it sees. Equal streams alone are no overlap: a paired counterfactual has the full run's
initialisation and order, and other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from leaveout.errors import LeaveoutError
from leaveout.store.artefacts import Artefact
from leaveout.training.trials import Trial

Record = dict[str, dict[str, list[str]]]


def name(trial: Trial, n_train: int) -> str:
    """Return the name of a training within its setting and root seed.

    ``full:0`` sees all samples; ``full:0 -17`` all but sample 17, whose place in its batch stays
    empty; ``lds:3:1 on 9f86d081884c`` a subset, by its digest. ``in order`` is added where nothing
    is shuffled.

    Args:
        trial: The training.
        n_train: Training samples of the setting; a subset of so many is no other than all.
    """
    words = [":".join(map(str, trial.identity[1:]))]
    if trial.kept is not None and len(trial.kept) < n_train:
        kept = np.sort(np.asarray(trial.kept, dtype="<i8"))
        words.append(f"on {hashlib.sha256(kept.tobytes()).hexdigest()[:12]}")
    if trial.removed is not None:
        words.append(f"-{trial.removed}")
    if not trial.shuffle:
        words.append("in order")
    return " ".join(words)


def record(
    trials: Iterable[Trial], n_train: int, shared: Iterable[Trial] = (), suffix: str = ""
) -> Record:
    """Return the header's entry for models that have just been trained.

    Args:
        trials: Their trainings.
        n_train: Training samples of the setting.
        shared: Trainings that are the full runs' own by design.
        suffix: What else makes all of them others than those of these names.
    """
    return {
        "trainings": {
            "models": [name(trial, n_train) + suffix for trial in trials],
            "shared": [name(trial, n_train) + suffix for trial in shared],
        }
    }


def moved(base: Trial, positions: Iterable[int], n_train: int) -> Record:
    """Return the header's entry for a full model moved to where one sample counts no more (PBRF).

    Args:
        base: The training of the full model, which scores may well be computed from.
        positions: The samples, one a model.
        n_train: Training samples of the setting.
    """
    start = name(base, n_train)
    return {
        "trainings": {
            "models": [f"{start} moved off {position}" for position in positions],
            "shared": [start],
        }
    }


def joined(files: Sequence[Artefact]) -> Record:
    """Return the entry of a file made from others: all their models; none if one has no record."""
    records = [file.meta.get("trainings") for file in files]
    if any(entry is None for entry in records):
        return {}
    return {
        "trainings": {
            part: list(dict.fromkeys(one for entry in records if entry for one in entry[part]))
            for part in ("models", "shared")
        }
    }


def check_apart(truth: Artefact, scores: Artefact) -> bool:
    """See to it that scores come from no model of a ground truth.

    Args:
        truth: The ground truth.
        scores: The scores.

    Returns:
        Whether it is known: both files have a record.

    Raises:
        LeaveoutError: Some models are the same.
    """
    records = [file.meta.get("trainings") for file in (truth, scores)]
    if records[0] is None or records[1] is None:
        return False
    if any(truth.meta.get(key) != scores.meta.get(key) for key in ("setting", "seed")):
        return True  # other streams altogether
    both = sorted(set(records[0]["models"]) & set(records[1]["models"]))
    if both:
        raise LeaveoutError(
            f"{scores.path}: {len(both)} of the models it was computed from are the ground truth's "
            f"own ({truth.path}): {', '.join(both[:5])}. Compute the scores from other models."
        )
    return True
