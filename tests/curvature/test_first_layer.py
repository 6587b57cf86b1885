from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leaveout.curvature.first_layer import on_samples, pull, push


def problem(share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, outputs of a ReLU that are on for a share of the samples, and vectors."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator).double()
    after = (torch.rand(5, 40, generator=generator) < share).double()
    after[2] = 0  # a unit that is never on
    weight = torch.randn(5, 3, 6, generator=generator).double()  # units, vectors, features
    return inputs, after, weight, torch.randn(5, 3, generator=generator).double()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_sparing_samples_changes_nothing_that_counts(share: float) -> None:
    inputs, after, weight, bias = problem(share)
    active = on_samples(after)
    assert (active is None) == (share == 1.0)
    on = after[:, None]
    expected = (torch.einsum("uvf,nf->uvn", weight, inputs) + bias[:, :, None]) * on
    torch.testing.assert_close(push(inputs, active, weight, bias) * on, expected)
    found = pull(inputs, active, expected)
    torch.testing.assert_close(found, torch.einsum("uvn,nf->uvf", expected, inputs))


def test_samples_a_unit_is_off_for_are_not_read() -> None:
    inputs, after, weight, bias = problem(0.3)
    off = (after == 0).all(0)
    assert off.any()
    inputs[off] = torch.nan
    active = on_samples(after)
    assert push(inputs, active, weight, bias).isfinite().all()
    assert pull(inputs, active, after[:, None].expand(-1, 3, -1)).isfinite().all()
