from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.curvature.taps import supported, sweep
from leaveout.errors import LeaveoutError


@pytest.fixture(autouse=True)
def _seeded(_global_randomness_untouched: None) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def seen(model: nn.Module, x: Tensor, **options: Any) -> list[Any]:
    """Return what the hooks see of the sum of squares of the outputs."""

    def outputs(module: nn.Module, batch: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
        values = module(batch).flatten(1).square().sum(1)
        return values, [torch.ones_like(values)]

    return list(sweep(model, supported(model), x.split(2), outputs, **options))


def by_hooks(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Per-sample gradients put together from what the hooks see, by parameter."""
    parts: dict[str, list[Tensor]] = {}
    layers = {layer.name: layer for layer in supported(model)}
    with torch.no_grad():
        for batch in seen(model, x):
            (deltas,) = batch.deltas
            for name, d in deltas.items():
                a, layer = batch.inputs[name], layers[name]
                if layer.matrix:
                    whole = d.transpose(1, 2) @ a
                    width = a.shape[2] - layer.bias
                    found = [whole[:, :, :width], whole[:, :, width:]]
                else:
                    found = [(d * a).sum(1), d.sum(1)]
                for key, part in zip(layer.names, found, strict=False):
                    parts.setdefault(key, []).append(part.flatten(1))
    return {key: torch.cat(values) for key, values in parts.items()}


def one_by_one(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}
    for sample in x:
        loss = model(sample[None]).square().sum()
        for name, p in model.named_parameters():
            (g,) = torch.autograd.grad(loss, p, retain_graph=True)
            rows.setdefault(name, []).append(g.flatten())
    return {name: torch.stack(values) for name, values in rows.items()}


class Twice(nn.Module):
    """One layer used twice, and an activation in place after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.act(self.layer(x)))


class ChangedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x * 1.0
        out = self.layer(hidden)
        hidden += 1
        return torch.as_tensor(out + hidden)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.free = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.free(self.down(self.up(x))))


def norm_model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.Flatten(2),
        nn.LayerNorm([4, 9]), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    for p in model.parameters():
        nn.init.normal_(p)
    assert isinstance(model[1].running_mean, Tensor)
    model[1].running_mean.fill_(0.3)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "bias": (lambda: nn.Linear(4, 3), (4,)),
    "no bias": (lambda: nn.Linear(4, 3, bias=False), (4,)),
    "sequence": (lambda: nn.Linear(4, 3), (5, 4)),
    "more positions": (lambda: nn.Linear(4, 3), (2, 5, 4)),
    "twice": (Twice, (4,)),
    "conv": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
             (2, 6, 7)),
    "conv same": (lambda: nn.Conv2d(2, 3, 4, padding="same", bias=False), (2, 5, 5)),
    "conv reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 5, 5)),
    "norms": (norm_model, (2, 5, 5)),
}  # fmt: skip


# "same" warns of a copy where the kernel is even
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name: str, frozen: bool) -> None:
    make, shape = CASES[name]
    model = make().double().eval()
    x = torch.randn(5, *shape, dtype=torch.float64)
    expected = one_by_one(model, x)
    model.requires_grad_(not frozen)
    found = by_hooks(model, x)
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)
    assert not any(m._forward_hooks for m in model.modules())


def test_layers_it_cannot_treat_are_left_out() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1, groups=2), nn.Embedding(3, 2), nn.BatchNorm2d(4, affine=False),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2),
    )  # fmt: skip
    assert [layer.names for layer in supported(model)] == [("4.weight", "4.bias")]
    assert [layer.name for layer in supported(Tied())] == ["free"]
    assert [layer.names for layer in supported(nn.Linear(2, 2))] == [("weight", "bias")]


def test_an_input_changed_in_place_is_an_error() -> None:
    with pytest.raises(LeaveoutError, match=r"'layer' is changed in place"):
        seen(ChangedInput(), torch.randn(2, 4))


def test_a_batch_norm_that_mixes_samples_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    with pytest.raises(LeaveoutError, match="running statistics"):
        seen(model, torch.randn(2, 2, 3, 3))


def test_positions_under_the_mask_count_for_nothing() -> None:
    model = nn.Linear(4, 3)
    x = torch.randn(2, 5, 4)
    kept = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    (batch,) = seen(model, x, mask=lambda _: kept)
    (deltas,) = batch.deltas
    assert batch.positions == {"": 8}
    for values in (batch.inputs[""], deltas[""]):
        assert values[0, 3:].abs().max() == 0
        assert values[0, :3].abs().min() > 0
    torch.testing.assert_close(
        batch.inputs[""][1], functional.pad(x[1], (0, 1), value=1.0), rtol=0, atol=0
    )
