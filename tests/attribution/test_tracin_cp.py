from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution.tracin_cp import attribute, self_influence
from leaveout.errors import LeaveoutError


def test_grad_dot_along_run_0_weighted_by_learning_rates(task: Any, gradients: Any) -> None:
    expected = 0
    for state, rate in zip(task.full[0].states, (0.1, 0.2, 0.4), strict=True):
        g, h = (gradients(task, state, part) for part in (task.train, task.test))
        expected = expected + rate * g @ h.T
    np.testing.assert_allclose(torch.cat([*attribute(task)]), expected, atol=1e-12)


def test_the_last_layer_alone_and_its_projection(task: Any, gradients: Any) -> None:
    size = sum(p.numel() for p in list(task.module.parameters())[-2:])
    expected = 0
    for state, rate in zip(task.full[0].states, task.full[0].learning_rates, strict=True):
        g, h = (gradients(task, state, part)[:, -size:] for part in (task.train, task.test))
        expected = expected + rate * g @ h.T
    found = torch.cat([*attribute(task, layers="last")])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # as many numbers as there are: nothing is projected
    whole = torch.cat([*attribute(task, layers="last", projection=17**2)])
    np.testing.assert_allclose(whole, expected, atol=1e-12)
    few = torch.cat([*attribute(task, layers="last", projection=9)])
    assert 0.3 < np.corrcoef(few.flatten(), np.ravel(expected))[0, 1] < 0.9999


def test_all_layers_are_not_projected(make_task: Any) -> None:
    with pytest.raises(LeaveoutError, match="layers: last"):
        next(attribute(make_task("linear"), projection=4))
    with pytest.raises(LeaveoutError, match="layers: last"):
        self_influence(make_task("linear"), projection=4)
