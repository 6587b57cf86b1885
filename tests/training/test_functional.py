from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from leaveout.config import CNN
from leaveout.models.build import initialise
from leaveout.training.functional import FunctionalBatchNorm, functional_outputs, stack_states


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm2d, (5, 3, 4, 2)), (nn.BatchNorm1d, (6, 3))]
)
def test_batch_norm_out_of_place_is_torchs_own(
    norm: type[nn.BatchNorm1d], shape: tuple[int, ...]
) -> None:
    rng = torch.Generator().manual_seed(0)
    theirs = norm(3, momentum=0.3, eps=1e-4).double()
    with torch.no_grad():
        theirs.weight.uniform_(0.5, 2, generator=rng)
        theirs.bias.uniform_(-1, 1, generator=rng)
        theirs.running_mean.uniform_(-1, 1, generator=rng)
        theirs.running_var.uniform_(0.5, 2, generator=rng)
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    ours = FunctionalBatchNorm(theirs)
    values = torch.randn(shape, generator=rng, dtype=torch.float64).mul(3).add(2)
    x, y = (values.clone().requires_grad_() for _ in range(2))
    found = ours(x)
    assert ours.updated is not None
    for name, old in before.items():  # nothing was updated in place
        assert torch.equal(theirs.state_dict()[name], old)
    expected = theirs(y)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weights = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view(shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=0)
    for new, name in zip(
        ours.updated, ("running_mean", "running_var", "num_batches_tracked"), strict=True
    ):
        torch.testing.assert_close(new, theirs.state_dict()[name], atol=1e-12, rtol=0)
    ours, theirs = FunctionalBatchNorm(theirs).eval(), theirs.eval()
    torch.testing.assert_close(ours(values), theirs(values), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options", [{"track_running_stats": False}, {"momentum": None}, {"affine": False}]
)
def test_other_batch_norms_are_torchs_own(options: dict[str, Any]) -> None:
    theirs = nn.BatchNorm1d(3, **options).double()
    ours = FunctionalBatchNorm(theirs)
    values = [
        torch.randn(5, 3, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1)
    ]
    found = [ours(each) for each in values]
    new = ours.take("norm")
    expected = [theirs(each) for each in values]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert new == {} or options != {"track_running_stats": False}
    for name, value in theirs.named_buffers():
        torch.testing.assert_close(new[f"norm.{name}"], value, atol=1e-12, rtol=0)
    ours, theirs = FunctionalBatchNorm(theirs).eval(), theirs.eval()
    torch.testing.assert_close(ours(values[0]), theirs(values[0]), atol=1e-12, rtol=0)


def test_a_batch_of_one_sample_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FunctionalBatchNorm(nn.BatchNorm1d(3))(torch.ones(1, 3))


def test_outputs_are_those_of_each_module_and_leave_it_alone() -> None:
    model = CNN(name="cnn", channels=(2, 3), batch_norm=True)
    modules = [initialise(model, (1, 4, 4), 3, seed).double() for seed in range(3)]
    inputs = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    for module in modules:  # running statistics that are not the initial ones
        with torch.no_grad():
            module(inputs * 2)
    names = [name for name, _ in modules[0].named_modules()]
    found = functional_outputs(modules[0], stack_states(modules), inputs)
    with torch.no_grad():
        expected = torch.stack([module.eval()(inputs) for module in modules])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert [name for name, _ in modules[0].named_modules()] == names
    assert isinstance(modules[0].norm1, nn.BatchNorm2d)


class Looking(nn.Module):
    """Looks at values, which torch.func can't map."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.last(x.flatten(1)) * (0 if x.max().item() > 1e9 else 1)}


def test_outputs_that_cannot_be_mapped_are_taken_one_by_one() -> None:
    with torch.random.fork_rng():
        modules = [Looking().double().requires_grad_(False) for _ in range(3)]
    inputs = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    found = functional_outputs(modules[0], stack_states(modules), inputs)
    expected = torch.stack([module(inputs)["logits"] for module in modules])
    torch.testing.assert_close(found["logits"], expected, atol=1e-12, rtol=0)
