"""Retraining with one sample left out: the ground truth of leave-one-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from leaveout.config import Setting
from leaveout.retraining import trainings
from leaveout.retraining.common import Data, load_data, positions, train_targets
from leaveout.retraining.items import chunk
from leaveout.seeds import generator
from leaveout.store.contents import Arrays
from leaveout.training.trials import Identity, Trial

NUDGE = 2.0**-20
"""How far, relative to its size, a nudged run moves an initial weight: some eight rounding errors
of float32, as much as another machine's order of summation might make of it in a few steps."""


def nudged(setting: Setting, build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Return a builder of the same models with initial weights moved by a millionth.

    Two trainings that differ by no more than that say what the training itself makes of rounding:
    how well defined the effect of one sample is for one and the same run.

    Args:
        setting: Names the random stream.
        build: Returns an initialised model from a seed.
    """

    def nudged_build(seed: int) -> nn.Module:
        module, draw = build(seed), generator(setting.seed, setting.name, "nudge", seed)
        with torch.no_grad():
            for weight in module.parameters():
                step = torch.from_numpy(draw.standard_normal(tuple(weight.shape)))
                weight.mul_(1 + NUDGE * step)
        return module

    return nudged_build


def loo_trial(setting: Setting, position: int | None, run: int) -> Trial:
    """Return the training that leaves one sample out, or the full run beside it.

    Args:
        setting: Gives the pairing and whether the order is shuffled.
        position: Which training sample is left out; None for the full run.
        run: Which run; another run has another initialisation and order, unless it is the first
            one nudged.
    """
    if setting.loo.second == "nudge":
        run = 0
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


def retrain_loo(setting: Setting, name: str, data_path: Path, device: str) -> Arrays:
    """Train one chunk of leave-one-out models: a ``loo-chunk`` artefact of their targets.

    It holds ``target`` (removed, test) and, of the full run trained beside them, ``full_target``
    (test,).

    Args:
        setting: The setting.
        name: Which chunk; all its models belong to one run.
        data_path: The setting's ``data`` artefact.
        device: ``cpu`` or ``cuda``.
    """
    return loo_chunk(setting, name, load_data(setting, data_path, device))


def loo_chunk(setting: Setting, name: str, data: Data) -> Arrays:
    """Do the same with data at hand."""
    wanted = chunk(setting, "loo", name)
    run = wanted[0][1]
    removed = positions(data, [place for place, _ in wanted])
    trials = [loo_trial(setting, None, run)]
    trials += [loo_trial(setting, position, run) for position in removed]
    again = run > 0 and setting.loo.second == "nudge"
    if again:
        data = replace(data, build=nudged(setting, data.build))
    targets = train_targets(setting, data, trials, "LOO models")
    return Arrays(
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
            **trainings.record(
                trials[1:], len(data.train.ids), trials[:1], suffix=" nudged" * again
            ),
            **({"second": setting.loo.second} if run else {}),
        },
    )
