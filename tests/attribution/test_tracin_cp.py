from __future__ import annotations

from typing import Any

import numpy as np
import torch

from leaveout.attribution.tracin_cp import attribute


def test_grad_dot_along_run_0_weighted_by_learning_rates(task: Any, gradients: Any) -> None:
    expected = 0
    for state, rate in zip(task.full[0].states, (0.1, 0.2, 0.4), strict=True):
        g, h = (gradients(task, state, part) for part in (task.train, task.test))
        expected = expected + rate * g @ h.T
    np.testing.assert_allclose(torch.cat([*attribute(task)]), expected, atol=1e-12)
