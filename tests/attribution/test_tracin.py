from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from leaveout.attribution.tracin import attribute
from leaveout.errors import LeaveoutError


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_grad_dot_summed_over_final_models(task: Any, gradients: Any, runs: int) -> None:
    expected = 0
    for trajectory in task.full[:runs]:
        g, h = (gradients(task, trajectory.states[-1], part) for part in (task.train, task.test))
        expected = expected + 0.01 * g @ h.T
    np.testing.assert_allclose(
        torch.cat([*attribute(task, runs=runs, weight=0.01)]), expected, atol=1e-12
    )


@pytest.mark.parametrize("runs", [0, 4])
def test_more_runs_than_there_are(task: Any, runs: int) -> None:
    with pytest.raises(LeaveoutError, match=rf"tracin.runs: {runs} .* 3 full runs; lower"):
        torch.cat([*attribute(task, runs=runs, weight=1.0)])
