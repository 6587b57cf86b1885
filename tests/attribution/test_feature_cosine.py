from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from leaveout.attribution.feature_cosine import attribute, self_influence
from leaveout.gradients.features import penultimate_features


def test_cosines_of_features(task: Any) -> None:
    found = torch.cat([*attribute(task)])
    state = task.full[0].final
    f, h = (penultimate_features(task.module, state, s) for s in (task.train, task.test))
    for i, a in enumerate(f.numpy()):
        for j, b in enumerate(h.numpy()):
            expected = a @ b / np.sqrt((a @ a) * (b @ b))
            np.testing.assert_allclose(found[i, j], expected, atol=1e-12)
    torch.testing.assert_close(self_influence(task), torch.ones_like(found[:, 0]))


def test_a_zero_feature_has_cosine_zero(make_task: Any) -> None:
    task = make_task("linear")
    inputs = task.train.inputs.clone()
    inputs[2] = 0
    task = replace(task, train=replace(task.train, inputs=inputs))
    assert (torch.cat([*attribute(task)])[2] == 0).all()
    assert self_influence(task)[2] == 0
