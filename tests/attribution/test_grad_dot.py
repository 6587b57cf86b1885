from __future__ import annotations

from typing import Any

import numpy as np
import torch

from leaveout.attribution.grad_dot import attribute


def test_inner_products_at_the_end_of_run_0(task: Any, gradients: Any) -> None:
    g, h = (gradients(task, task.full[0].final, part) for part in (task.train, task.test))
    expected = [[sum(a * b) for b in h] for a in g]
    np.testing.assert_allclose(torch.cat([*attribute(task)]), expected, atol=1e-12)
