from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution.grad_dot import attribute
from leaveout.errors import LeaveoutError


def test_inner_products_at_the_end_of_run_0(task: Any, gradients: Any) -> None:
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    expected = [[sum(a * b) for b in h] for a in g]
    np.testing.assert_allclose(torch.cat([*attribute(task)]), expected, atol=1e-12)


def test_the_last_layer_alone(task: Any, gradients: Any) -> None:
    state = task.full[0].final
    size = sum(p.numel() for p in list(task.module.parameters())[-2:])
    g, h = (gradients(task, state, part)[:, -size:] for part in (task.train, task.test))
    found = torch.cat([*attribute(task, layers="last")])
    np.testing.assert_allclose(found, g @ h.T, atol=1e-12)


def test_unknown_layers_are_an_error(make_task: Any) -> None:
    with pytest.raises(LeaveoutError, match="'first' is not one of all, last"):
        next(attribute(make_task("linear"), layers="first"))
