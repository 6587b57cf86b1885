from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from leaveout.seeds import generator
from leaveout.training.dropout import MaskStreams, StreamDropout, draw_masks, use_streams


def test_masks_drop_with_their_probability() -> None:
    layers = [((50,), 0.1), ((20, 2), 0.7)]
    first, second = draw_masks(np.random.default_rng(0), 400, layers)
    assert first.shape == (400, 50)
    assert second.shape == (400, 20, 2)
    # 20,000 and 16,000 draws: standard deviations .0021 and .0036
    assert abs(1 - first.mean() - 0.1) < 4 * 0.0021
    assert abs(1 - second.mean() - 0.7) < 4 * 0.0036


def test_no_samples_leave_the_stream_where_it_was() -> None:
    stream = np.random.default_rng(0)
    (mask,) = draw_masks(stream, 0, [((3,), 0.5)])
    assert mask.shape == (0, 3)
    assert stream.random() == np.random.default_rng(0).random()


def test_streamed_dropout_does_to_given_masks_what_torch_does_to_its_own() -> None:
    values = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = nn.Dropout(0.4)(values)
    layer = StreamDropout(0.4)
    layer.mask = expected != 0
    torch.testing.assert_close(layer(values), expected)
    layer.eval()
    assert torch.equal(layer(values), values)


def test_a_mask_nobody_set_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="mask"):
        StreamDropout(0.5)(torch.ones(1, 2))


def test_layers_are_found_in_the_order_of_the_forward_pass() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Dropout(0.1)
            self.first = nn.Dropout(0.2)
            self.linear = nn.Linear(4, 3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.last(self.linear(self.first(values)))

    with torch.random.fork_rng():
        module = Crossed()
    found = use_streams(module, torch.ones(1, 4))
    assert [(layer.probability, layer.unit_shape) for layer in found] == [(0.2, (4,)), (0.1, (3,))]
    assert module.training


@pytest.mark.parametrize("times", [0, 2])
def test_a_dropout_layer_is_used_once_in_a_forward_pass(times: int) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.1)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            for _ in range(times):
                values = self.dropout(values)
            return values

    with pytest.raises(ValueError, match="more than once, or never"):
        use_streams(Odd(), torch.ones(1, 4))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "lengths", [[[8, 8, 8], [8, 8, 8], [3, 3, 3]], [[8, 8, 8], [8, 5, 8], [1, 0, 7], [0, 0, 6]]]
)
def test_streams_drawn_together_are_those_drawn_alone(
    lengths: list[list[int]], on_device: bool, device: str
) -> None:
    layers = [((5,), 0.3), ((3, 2), 0.5), ((1,), 0.9)]

    def streams() -> list[np.random.Generator]:
        return [generator(1, "a", k, "dropout") for k in range(3)]

    alone = streams()
    together = MaskStreams(streams(), layers, torch.device(device), on_device)
    for step in lengths:
        expected = [draw_masks(s, n, layers) for s, n in zip(alone, step, strict=True)]
        found = together.draw(np.array(step), 8)
        for layer, (shape, _) in enumerate(layers):
            assert found[layer].shape == (3, 8, *shape)
            assert found[layer].dtype == torch.bool
            for k, n in enumerate(step):
                assert np.array_equal(found[layer][k, :n].cpu().numpy(), expected[k][layer])
