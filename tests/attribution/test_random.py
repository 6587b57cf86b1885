from __future__ import annotations

import dataclasses
from typing import Any

import torch

from leaveout.attribution.random import attribute


def test_scores_depend_on_seed_and_setting_alone(make_task: Any) -> None:
    task = make_task("linear")
    found = attribute(task)
    assert found.shape == (24, 7)
    assert torch.equal(found, attribute(dataclasses.replace(task, full=[])))
    assert not torch.equal(found, attribute(dataclasses.replace(task, seed=1)))
    assert not torch.equal(found, attribute(dataclasses.replace(task, setting="u")))


def test_scores_are_standard_normal(make_task: Any) -> None:
    found = attribute(make_task("linear")).flatten()
    # 168 draws: standard deviations of mean and of standard deviation are .077 and .055
    assert abs(found.mean()) < 4 * 0.077
    assert abs(found.std() - 1) < 4 * 0.055
