from __future__ import annotations

import pytest
import torch


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
