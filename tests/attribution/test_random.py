from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from leaveout.attribution.random import attribute


def test_scores_depend_on_seed_and_setting_alone(make_task: Any) -> None:
    task = make_task("linear")
    found = torch.cat([*attribute(task)])
    assert found.shape == (24, 7)
    assert torch.equal(found, torch.cat([*attribute(dataclasses.replace(task, full=[]))]))
    assert not torch.equal(found, torch.cat([*attribute(dataclasses.replace(task, seed=1))]))
    assert not torch.equal(found, torch.cat([*attribute(dataclasses.replace(task, setting="u"))]))


def test_scores_are_standard_normal(make_task: Any) -> None:
    found = torch.cat([*attribute(make_task("linear"))]).flatten()
    # 168 draws: standard deviations of mean and of standard deviation are .077 and .055
    assert abs(found.mean()) < 4 * 0.077
    assert abs(found.std() - 1) < 4 * 0.055


def test_blocks_change_no_draw(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("linear")
    (whole,) = attribute(task)
    monkeypatch.setattr("leaveout.attribution.task.BLOCK_BYTES", 5 * 7 * 8)
    blocks = list(attribute(task))
    assert len(blocks) == 5
    assert torch.equal(torch.cat(blocks), whole)
