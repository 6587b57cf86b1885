"""Retraining with one sample left out: the ground truth of leave-one-out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from leaveout import artefacts, trainings
from leaveout.config import Setting
from leaveout.plan import chunk, train_key
from leaveout.provenance import by_name, provenance
from leaveout.retraining.common import load_data, positions, train_targets
from leaveout.training.trials import Identity, Trial


def loo_trial(setting: Setting, position: int | None, run: int) -> Trial:
    """Return the training that leaves one sample out, or the full run beside it.

    Args:
        setting: Gives the pairing and whether the order is shuffled.
        position: Which training sample is left out; None for the full run.
        run: Which run; another run has another initialisation and order.
    """
    identity: Identity = (setting.name, "full", run)
    shuffle = setting.loo.shuffle
    if position is None:
        return Trial(setting.seed, identity, shuffle=shuffle)
    if setting.loo.pairing == "mask":
        return Trial(setting.seed, identity, removed=position, shuffle=shuffle)
    kept = np.delete(np.arange(setting.dataset.n_train), position)
    if setting.loo.pairing == "none":
        identity = (setting.name, "loo", position, run)
    return Trial(setting.seed, identity, kept=kept, shuffle=shuffle)


def retrain_loo(setting: Setting, name: str, data_path: Path, out: Path, device: str) -> None:
    """Train one chunk of leave-one-out models and write their targets: a ``loo-chunk`` artefact.

    It holds ``target`` (removed, test) and, of the full run trained beside them, ``full_target``
    (test,).

    Args:
        setting: The setting.
        name: Which chunk; all its models belong to one run.
        data_path: The setting's ``data`` artefact.
        out: The file to write.
        device: ``cpu`` or ``cuda``.
    """
    data = load_data(setting, data_path, device)
    wanted = chunk(setting, "loo", name)
    run = wanted[0][1]
    removed = positions(data, [place for place, _ in wanted])
    trials = [loo_trial(setting, None, run)]
    trials += [loo_trial(setting, position, run) for position in removed]
    targets = train_targets(setting, data, trials, "LOO models")
    artefacts.write(
        out,
        "loo-chunk",
        {
            "target": targets[1:],
            "full_target": targets[0],
            "removed_id": data.train.ids[removed],
            "run_id": np.array([run], dtype=np.int64),
            "train_id": data.train.ids,
            "test_id": data.test.ids,
        },
        {
            "target": ("removed", "test"),
            "full_target": ("test",),
            "removed_id": ("removed",),
            "run_id": ("run",),
            "train_id": ("train",),
            "test_id": ("test",),
        },
        {
            **provenance(
                setting, train_key(setting, "loo", name), by_name([data.artefact]), device
            ),
            **trainings.record(trials[1:], len(data.train.ids), shared=trials[:1]),
        },
    )
