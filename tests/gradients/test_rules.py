"""Layers' rules, and what has none, against plain autograd sample by sample in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leaveout.gradients.factors import Factor
from leaveout.gradients.parts import Shared, choose, dots, fit, form_parts, gradient_parts
from leaveout.gradients.rules import RULES, rule_of

N = 5
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ids(*shape: int) -> Tensor:
    return torch.randint(6, shape, generator=torch.Generator().manual_seed(1))


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1).sin() * targets.flatten(1)[:, :1]).sum(1)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A model whose values are no special ones, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = make().double()
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.data.copy_(torch.rand_like(value) + 0.2)
        return model.eval()


def by_autograd(model: nn.Module, *batch: Any) -> Tensor:
    """Each sample's gradient in all parameters, one backward pass a sample."""
    model.requires_grad_(True)
    found = []
    for k in range(N):
        one = [v.value if isinstance(v, Shared) else v[k : k + 1] for v in batch]
        gradients = torch.autograd.grad(
            losses(model(*one[:-1]), one[-1]).sum(),
            [*model.parameters()],
            allow_unused=True,
            materialize_grads=True,
        )
        found.append(torch.cat([g.flatten() for g in gradients]))
    model.requires_grad_(False)
    return torch.stack(found)


def by_parts(model: nn.Module, *batch: Any) -> tuple[list[Any], Any]:
    model.requires_grad_(False)
    chosen = choose(model, [name for name, _ in model.named_parameters()])
    fit(model, chosen, losses, batch)
    return gradient_parts(model, chosen, losses, batch), chosen


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(4, 3), drawn(N, 4)),
    "linear of positions": (lambda: nn.Linear(4, 3), drawn(N, 2, 3, 4)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), drawn(N, 2, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), drawn(N, 4, 9)),
    "conv1d in groups": (
        lambda: nn.Conv1d(4, 6, 2, groups=2, padding="same", padding_mode="replicate"),
        drawn(N, 4, 9),
    ),
    "conv2d": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), bias=False),
        drawn(N, 2, 6, 5),
    ),
    "conv2d in groups": (
        lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular"),
        drawn(N, 4, 5, 4),
    ),
    "conv2d reflecting": (
        lambda: nn.Conv2d(4, 2, 3, groups=2, padding=(2, 1), dilation=2, padding_mode="reflect"),
        drawn(N, 4, 6, 7),
    ),
    "embedding": (lambda: nn.Embedding(6, 3), ids(N, 4)),
    "embedding with padding": (lambda: nn.Embedding(6, 3, padding_idx=2), ids(N, 2, 4)),
    "embedding of one id": (lambda: nn.Embedding(6, 3), ids(N)),
    "layer norm": (lambda: nn.LayerNorm(4), drawn(N, 3, 4)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((3, 4)), drawn(N, 2, 3, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False, eps=0.1), drawn(N, 4)),
    "root mean square": (lambda: nn.RMSNorm(4, eps=0.01), drawn(N, 3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), drawn(N, 4, 3, 2)),
    "batch norm": (lambda: nn.BatchNorm1d(4), drawn(N, 4)),
    "batch norm of sequences": (lambda: nn.BatchNorm1d(4), drawn(N, 4, 3)),
    "batch norm of images": (lambda: nn.BatchNorm2d(4, eps=0.1), drawn(N, 4, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_s_rule_gives_autograd_s_gradients(name: str) -> None:
    make, inputs = LAYERS[name]
    model, targets = seeded(make), drawn(N, 1)
    parts, chosen = by_parts(model, inputs, targets)
    assert not chosen.rest
    torch.testing.assert_close(form_parts(parts), by_autograd(model, inputs, targets), **CLOSE)


def test_every_rule_is_tested() -> None:
    assert {type(seeded(make)) for make, _ in LAYERS.values()} == {*RULES}


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * (torch.arange(4) < 2), self.bias)


class Model(nn.Module):
    """An inner layer used as ``use`` says, then a plain one."""

    def __init__(self, use: Callable[..., Tensor], layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.use, self.head = layer(), use, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.a, x).tanh().reshape(len(x), -1, 4).mean(1))  # type: ignore[no-any-return]


def linear() -> nn.Module:
    return nn.Linear(4, 4)


def hooked() -> nn.Module:
    layer = linear()
    layer.register_forward_hook(lambda _, args, out: out * out)
    return layer


USES: dict[str, tuple[Callable[..., Tensor], Callable[[], nn.Module], bool | None]] = {
    "tokens flattened": (lambda a, x: a(x.flatten(0, 1)), linear, False),
    "time first": (lambda a, x: a(x.transpose(0, 1)).transpose(0, 1), linear, False),
    "twice": (lambda a, x: a(a(x).tanh()), linear, False),
    "past its layer": (lambda a, x: functional.linear(a(x).tanh(), a.weight.T), linear, False),
    "only functionally": (lambda a, x: functional.linear(x, a.weight), linear, False),
    "never": (lambda a, x: x, linear, False),
    "a subclass": (lambda a, x: a(x), lambda: Masked(4, 4), False),
    "parametrised": (
        lambda a, x: a(x),
        lambda: nn.utils.parametrizations.weight_norm(linear()),
        False,
    ),
    "a hook changes its outputs": (lambda a, x: a(x), hooked, None),
    "by keyword": (lambda a, x: a(input=x), linear, True),
    "in place after": (lambda a, x: a(x).mul_(2).relu_(), linear, True),
    "checkpointed": (
        lambda a, x: checkpoint(lambda v: a(v).tanh(), x, use_reentrant=False),
        linear,
        None,
    ),
    "by values": (lambda a, x: a(x) * (2 if float(x.detach().norm()) > 0 else 1), linear, None),
}


@pytest.mark.parametrize("name", USES)
def test_a_layer_used_in_odd_ways_is_differentiated_right(name: str) -> None:
    use, layer, ruled = USES[name]
    model, x, targets = seeded(lambda: Model(use, layer)), drawn(N, 3, 4), drawn(N, 1)
    parts, chosen = by_parts(model, x, targets)
    if ruled is not None:
        assert ("a" in chosen.layers) == ruled
    expected = by_autograd(model, x, targets)
    torch.testing.assert_close(form_parts(parts), expected, **CLOSE)
    torch.testing.assert_close(dots(parts, parts), expected @ expected.T, **CLOSE)


class Causal(nn.Module):
    """A transformer with tied embeddings, a mask shared by all, and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.places = nn.Parameter(torch.zeros(3, 4))
        self.block = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor, padding: Tensor, mask: Tensor) -> Tensor:
        hidden = self.block(self.embed(tokens) + self.places, mask, padding)
        return self.out(hidden)  # type: ignore[no-any-return]


def test_a_transformer_with_tied_embeddings_and_masks() -> None:
    model, targets = seeded(Causal), drawn(N, 1)
    padding = torch.zeros(N, 3, dtype=torch.bool)
    padding[1:3, 2] = True
    mask = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)
    batch = ids(N, 3), padding, Shared(mask), targets
    parts, chosen = by_parts(model, *batch)
    assert "embed.weight" in chosen.rest
    assert {"block.linear1", "block.norm1"} <= {*chosen.layers}
    torch.testing.assert_close(form_parts(parts), by_autograd(model, *batch), **CLOSE)


def test_embeddings_that_change_with_use_have_no_rule() -> None:
    for options in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        assert rule_of(seeded(lambda o=options: nn.Embedding(6, 3, **o))) is None  # type: ignore[misc]
    assert rule_of(nn.BatchNorm1d(3, track_running_stats=False)) is None


def test_a_batch_that_goes_another_way_is_differentiated_sample_by_sample() -> None:
    def use(a: nn.Module, x: Tensor) -> Tensor:
        return a(x) if bool((x[:, 0] < 0).all()) else a(a(x).tanh())

    model, x, targets = seeded(lambda: Model(use, linear)), drawn(N, 4), drawn(N, 1)
    x[:, 0] = -x[:, 0].abs()
    tried, chosen = by_parts(model, x, targets)
    assert "a" in chosen.layers
    torch.testing.assert_close(form_parts(tried), by_autograd(model, x, targets), **CLOSE)
    x = -x  # now through the layer twice
    parts = gradient_parts(model, chosen, losses, (x, targets))
    expected = by_autograd(model, x, targets)
    torch.testing.assert_close(form_parts(parts), expected, **CLOSE)
    assert not isinstance(parts[0], Factor)
    before = by_autograd(model, -x, targets)
    torch.testing.assert_close(dots(tried, parts), before @ expected.T, **CLOSE)


def test_a_gradient_of_zero_is_zero() -> None:
    model, x = seeded(lambda: Model(lambda a, x: a(x), linear)), drawn(N, 4)
    parts, _ = by_parts(model, x, torch.zeros(N, 1).double())
    assert not form_parts(parts).any()
