from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leaveout.errors import LeaveoutError
from leaveout.problem.randomness import preserved
from leaveout.seeds import generator
from leaveout.training.dropout import MaskStreams, Site, draw_masks, dropout_sites, dropped


def test_masks_drop_with_their_probability() -> None:
    sites = [Site((50,), 0.1), Site((20, 2), 0.7)]
    first, second = draw_masks(np.random.default_rng(0), 400, sites)
    assert first.shape == (400, 50)
    assert second.shape == (400, 20, 2)
    # 20,000 and 16,000 draws: standard deviations .0021 and .0036
    assert abs(1 - first.mean() - 0.1) < 4 * 0.0021
    assert abs(1 - second.mean() - 0.7) < 4 * 0.0036


def test_no_samples_leave_the_stream_where_it_was() -> None:
    stream = np.random.default_rng(0)
    (mask,) = draw_masks(stream, 0, [Site((3,), 0.5)])
    assert mask.shape == (0, 3)
    assert stream.random() == np.random.default_rng(0).random()


def given(function: Callable[[], Tensor], sites: list[Site], masks: list[Tensor]) -> Tensor:
    with dropped(sites, masks):
        return function()


VALUES = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layer", "units"),
    [
        (nn.Dropout(0.4), (8, 4)),
        (nn.Dropout(0.4, inplace=True), (8, 4)),
        (lambda x: torch.dropout(x, 0.4, True), (8, 4)),
        (nn.Dropout1d(0.4), (8, 1)),
        (nn.Dropout(1.0), (8, 4)),
    ],
)
def test_given_masks_do_what_torch_does_to_its_own(
    layer: Callable[[Tensor], Tensor], units: tuple[int, ...]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        right = layer(VALUES.clone())
    p = layer.p if isinstance(layer, nn.Module) else 0.4
    mask = (right != 0)[:, :, : units[1]]
    changed = VALUES.clone()
    found = given(lambda: layer(changed), [Site(units, p)], [mask])
    torch.testing.assert_close(found, right)
    assert (found is changed) == (isinstance(layer, nn.Dropout) and layer.inplace)


class Attends(nn.Module):
    """Attention by torch's layer, and by its function, causal or not, in one pass."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, dropout=0.3, **options)
        self.causal = True

    def forward(self, x: Tensor) -> Tensor:
        places = x.shape[1] if self.layer.batch_first else x.shape[0]
        later = torch.ones(places, places, dtype=torch.bool).triu(1)
        x = x + self.layer(x, x, x, attn_mask=later, need_weights=False)[0]
        x = x + self.layer(x, x, x)[0]
        p = 0.2 if self.training else 0.0
        return functional.scaled_dot_product_attention(x, x, x, None, p, self.causal)


def dense(model: Attends, x: Tensor, masks: list[Tensor]) -> Tensor:
    """Attend with loops and masks as they stand in the papers' formulas, batch first."""
    layer = model.layer
    for mask, causal in zip(masks, (True, False), strict=False):
        q, k, v = functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
        heads = []
        for number, (a, b, c) in enumerate(
            zip(q.split(4, -1), k.split(4, -1), v.split(4, -1), strict=True)
        ):
            heads.append(one_head(a, b, c, mask[:, number], causal, 0.3))
        x = x + functional.linear(torch.cat(heads, -1), layer.out_proj.weight, layer.out_proj.bias)
    return one_head(x, x, x, masks[2], model.causal, 0.2)


def one_head(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, causal: bool, p: float) -> Tensor:
    out = torch.zeros_like(q)
    for sample in range(len(q)):
        for place in range(q.shape[1]):
            last = place + 1 if causal else q.shape[1]
            scores = (k[sample, :last] @ q[sample, place]) / q.shape[-1] ** 0.5
            weights = scores.softmax(0) * kept[sample, place, :last] / (1 - p)
            out[sample, place] = weights @ v[sample, :last]
    return out


def test_attention_drops_by_given_masks() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attends(batch_first=True).double()
    x = VALUES.mT.double().contiguous()[:3]  # (samples, places, width)
    sites = dropout_sites(model, x[:1])
    # torch merges samples and heads where it returns weights: two rows a sample
    assert sites == [Site((2, 4, 4), 0.3), Site((2, 4, 4), 0.3, 0), Site((4, 4), 0.2)]
    stream = np.random.default_rng(0)
    masks = [torch.from_numpy(mask) for mask in draw_masks(stream, 3, sites)]
    found = given(lambda: model.train()(x), sites, masks)
    torch.testing.assert_close(found, dense(model, x, masks))


class PlacesFirst(nn.Module):
    """A transformer whose samples are in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 6, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


def test_a_samples_masks_are_its_own_wherever_its_dimension_is() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PlacesFirst().double()
    x = VALUES.mT.double()  # (samples, places, width)
    sites = dropout_sites(model, x[:1])
    shapes = [(2, 4, 4), (4, 1, 8), (4, 1, 6), (4, 1, 8)]
    assert sites == [Site(s, 0.3, axis) for s, axis in zip(shapes, (None, 1, 1, 1), strict=True)]
    masks = [torch.from_numpy(m) for m in draw_masks(np.random.default_rng(0), 6, sites)]
    model.train()
    whole = given(lambda: model(x), sites, masks)
    some = [1, 3, 4]
    part = given(lambda: model(x[some]), sites, [mask[some] for mask in masks])
    torch.testing.assert_close(whole[some], part)
    assert not torch.allclose(
        whole[some], given(lambda: model(x[some]), sites, [m[:3] for m in masks])
    )
    alike = given(lambda: model(x), sites, [mask[:1] for mask in masks])
    same = given(lambda: model(x), sites, [mask[:1].expand_as(mask) for mask in masks])
    torch.testing.assert_close(alike, same)


def test_sites_are_found_in_the_order_of_the_forward_pass() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Dropout(0.1)
            self.first = nn.Dropout(0.2)
            self.never = nn.Dropout(0.3)
            self.none = nn.Dropout(0)
            self.norm = nn.BatchNorm1d(4)
            self.linear = nn.Linear(4, 3)

        def forward(self, values: Tensor) -> Tensor:
            values = self.first(self.norm(values)) + self.first(values)
            return self.last(self.none(self.linear(values)))

    with torch.random.fork_rng():
        module = Crossed().eval()
    assert dropout_sites(module, torch.ones(1, 4)) == [
        Site((4,), 0.2),
        Site((4,), 0.2),
        Site((3,), 0.1),
    ]
    assert not module.training
    assert module.norm.num_batches_tracked == 0


class Odd(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = forward

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


def several_times(x: Tensor) -> Tensor:
    for _ in range(len(x)):
        x = functional.dropout(x, 0.1)
    return x


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Odd(lambda x: x * functional.dropout(torch.ones(4), 0.1)), "which are a sample's own"),
        (Odd(lambda x: functional.dropout(x @ x.mT, 0.1) @ x), "which are a sample's own"),
        (Odd(several_times), "depends on the size of a batch"),
        (Odd(lambda x: x * torch.rand(len(x), 1)), "draws random numbers while training"),
        (Odd(lambda x: x * random.random()), "draws random numbers while training"),
        (Odd(lambda x: x * np.random.rand()), "draws random numbers while training"),
        (
            Odd(lambda x: functional.alpha_dropout(x, 0.1, True)),
            "draws random numbers while training",
        ),
        (nn.RReLU(), "draws by itself"),
        (nn.GRU(4, 4, 2, dropout=0.1), "draws by itself"),
        (nn.AlphaDropout(0.1), "draws by itself"),
    ],
)
def test_what_cannot_be_repeated_is_refused(model: nn.Module, words: str) -> None:
    with preserved(), pytest.raises(LeaveoutError, match=words):
        dropout_sites(model, torch.ones(1, 4))


def test_a_pass_that_drops_otherwise_than_its_trial_is_refused() -> None:
    sites, masks = [Site((4,), 0.1)], [torch.ones(3, 4, dtype=torch.bool)]
    x = torch.ones(3, 4)
    for function, words in (
        (lambda: x, "more or less often"),
        (lambda: functional.dropout(functional.dropout(x, 0.1), 0.1), "more or less often"),
        (lambda: functional.dropout(x, 0.2), "more or less often"),
        (lambda: functional.dropout(x[:, :2], 0.1), "masks of shape"),
        (lambda: functional.dropout(x[:2], 0.1), "masks of shape"),
    ):
        with pytest.raises(LeaveoutError, match=words):
            given(function, sites, masks)


def test_an_activation_checkpoint_around_dropout_is_refused() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    with torch.random.fork_rng():
        module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 1))
    sites = dropout_sites(module, x[:1])
    masks = [torch.ones(3, 4, dtype=torch.bool)]
    with pytest.raises(LeaveoutError, match="activation checkpoints"), dropped(sites, masks):
        checkpoint(module, x, use_reentrant=False).sum().backward()


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "lengths", [[[8, 8, 8], [8, 8, 8], [3, 3, 3]], [[8, 8, 8], [8, 5, 8], [1, 0, 7], [0, 0, 6]]]
)
def test_streams_drawn_together_are_those_drawn_alone(
    lengths: list[list[int]], on_device: bool, device: str
) -> None:
    sites = [Site((5,), 0.3), Site((3, 2), 0.5), Site((1,), 0.9)]

    def streams() -> list[np.random.Generator]:
        return [generator(1, "a", k, "dropout") for k in range(3)]

    alone = streams()
    together = MaskStreams(streams(), sites, torch.device(device), on_device)
    for step in lengths:
        expected = [draw_masks(s, n, sites) for s, n in zip(alone, step, strict=True)]
        found = together.draw(np.array(step), 8)
        for layer, site in enumerate(sites):
            assert found[layer].shape == (3, 8, *site.units)
            assert found[layer].dtype == torch.bool
            for k, n in enumerate(step):
                assert np.array_equal(found[layer][k, :n].cpu().numpy(), expected[k][layer])
