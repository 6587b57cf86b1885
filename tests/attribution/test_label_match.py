from __future__ import annotations

from typing import Any

import torch

from leaveout.attribution.label_match import attribute, self_influence


def test_one_where_labels_are_equal(task: Any) -> None:
    found = torch.cat([*attribute(task)])
    for i, a in enumerate(task.train.targets):
        for j, b in enumerate(task.test.targets):
            assert found[i, j] == float(a == b)
    assert torch.equal(self_influence(task), torch.ones(len(task.train.ids)))
