from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from leaveout.config import CNN, GPT, MLP, CrossEntropy, Linear, Model, ResNet9, Setting
from leaveout.config.problem import BinaryCrossEntropy, MultiLabel, SquaredError, TokenCrossEntropy
from leaveout.errors import LeaveoutError
from leaveout.models.build import builder, initialise
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples

SHAPE = (1, 9, 8)
CASES: list[tuple[Model, int]] = [
    (Linear(name="linear"), 72 * 4 + 4),
    (MLP(name="mlp", hidden=(6, 5), dropout=0.1), (72 * 6 + 6) + (6 * 5 + 5) + (5 * 4 + 4)),
    # 9 x 8 -> 4 x 4 -> 2 x 2
    (CNN(name="cnn", channels=(3, 2)), (9 * 3 + 3) + (27 * 2 + 2) + (8 * 4 + 4)),
    (
        CNN(name="cnn", channels=(3, 2), batch_norm=True),
        (9 * 3 + 3) + 6 + (27 * 2 + 2) + 4 + (8 * 4 + 4),
    ),
]


@pytest.mark.parametrize(("model", "size"), CASES, ids=["linear", "mlp", "cnn", "cnn-norm"])
def test_sizes_and_shapes(model: Model, size: int) -> None:
    module = initialise(model, SHAPE, 4, 0).eval()
    assert sum(p.numel() for p in module.parameters()) == size
    assert module(torch.zeros(2, *SHAPE)).shape == (2, 4)


@pytest.mark.parametrize("model", [model for model, _ in CASES])
def test_the_weights_depend_on_the_seed_alone(model: Model) -> None:
    before = torch.random.get_rng_state().clone()
    first, again, other = (initialise(model, SHAPE, 4, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(*(state[next(iter(state))] for state in (first, other)))


def test_the_weights_are_torchs_own_of_that_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        expected = nn.Linear(72, 4)
    found = initialise(Linear(name="linear"), SHAPE, 4, 9)
    assert torch.equal(found.linear.weight, expected.weight)
    assert torch.equal(found.linear.bias, expected.bias)


def test_no_dropout_builds_no_dropout_layer() -> None:
    kinds = [type(m) for m in initialise(MLP(name="mlp", hidden=(6,)), SHAPE, 4, 0).children()]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_an_activation_of_choice() -> None:
    model = MLP(name="mlp", hidden=(6, 5), activation="tanh")
    found = initialise(model, SHAPE, 4, 0)
    assert [type(m) for m in found.children()].count(nn.Tanh) == 2
    # the weights are those of the same net with ReLU
    plain = initialise(MLP(name="mlp", hidden=(6, 5)), SHAPE, 4, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(found.parameters(), plain.parameters(), strict=True)
    )
    x = torch.linspace(-1, 1, 2 * 72).reshape(2, *SHAPE)
    first, second, last = (m for m in found if isinstance(m, nn.Linear))
    by_hand = last(second(first(x.flatten(1)).tanh()).tanh())
    torch.testing.assert_close(found(x), by_hand)


def test_the_residual_net_is_the_published_one() -> None:
    found = initialise(ResNet9(name="resnet9"), (3, 32, 32), 2, 0).eval()
    assert round(count(found) / 1e6, 2) == 4.83
    sizes = []
    for name in ("conv", "block1", "block2", "block3", "pool"):
        module = found.get_submodule(name)
        module.register_forward_hook(lambda m, args, out: sizes.append(tuple(out.shape[1:])))
    assert found(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert sizes == [(64, 32, 32), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 1, 1)]


def test_a_block_adds_its_shortcut() -> None:
    block = initialise(ResNet9(name="resnet9", width=2), (3, 8, 8), 2, 0).block2.double().eval()
    x = torch.linspace(-1, 1, 4 * 6 * 6, dtype=torch.float64).reshape(1, 4, 6, 6)

    def norm(x: torch.Tensor) -> torch.Tensor:  # as it is built: mean 0, variance 1
        return x / (1 + 1e-5) ** 0.5

    def conv(x: torch.Tensor, layer: nn.Conv2d) -> torch.Tensor:
        return nn.functional.conv2d(x, layer.weight, None, layer.stride, layer.padding)

    inner = norm(conv(norm(conv(x, block.conv1)).relu(), block.conv2))
    expected = (inner + norm(conv(x, block.shortcut))).relu()
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (1, 8, 3, 3)


GPT_BIG = {"vocabulary": 65, "context": 256, "layers": 6, "heads": 6, "width": 384, "bias": False}


def test_the_transformer_has_the_published_size() -> None:
    found = initialise(GPT(name="gpt", **GPT_BIG, dropout=0.2), (256,), 65, 0)
    # 10.65 M without the positions, as nanoGPT counts them
    assert round((count(found) - 256 * 384) / 1e6, 2) == 10.65
    assert round(count(found) / 1e6, 1) == 10.7
    untied = initialise(GPT(name="gpt", **GPT_BIG, tied=False), (256,), 65, 0)
    assert count(untied) - count(found) == 65 * 384


@pytest.mark.parametrize("bias", [True, False])
def test_the_transformer_is_torchs_own_layers(bias: bool) -> None:
    sizes = {"vocabulary": 11, "context": 7, "layers": 2, "heads": 2, "width": 6}
    found = initialise(GPT(name="gpt", **sizes, bias=bias), (5,), 11, 3).double().eval()
    ids = torch.tensor([[1, 4, 10, 0, 3], [2, 2, 9, 8, 7]])
    x = found.tokens.weight[ids] + found.positions.weight[:5]
    for block in found.blocks:
        with torch.random.fork_rng():
            layer = nn.TransformerEncoderLayer(
                6, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True, bias=bias, dtype=x.dtype
            )
        renamed = {
            "self_attn.in_proj_": block.attention.qkv,
            "self_attn.out_proj.": block.attention.out,
            "norm1.": block.norm1,
            "norm2.": block.norm2,
            "linear1.": block.up,
            "linear2.": block.down,
        }
        state = {
            f"{name}{kind}": value
            for name, module in renamed.items()
            for kind, value in module.state_dict().items()
        }
        layer.load_state_dict(state)
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        x = layer(x, src_mask=mask)
    expected = found.norm(x) @ found.tokens.weight.T
    torch.testing.assert_close(found(ids), expected)


def test_no_position_sees_a_later_one() -> None:
    sizes = {"vocabulary": 11, "context": 7, "layers": 2, "heads": 2, "width": 6}
    found = initialise(GPT(name="gpt", **sizes), (5,), 11, 3).double().eval()
    ids = torch.tensor([[1, 4, 10, 0, 3]])
    other = torch.tensor([[1, 4, 10, 5, 6]])
    assert torch.equal(found(ids)[:, :3], found(other)[:, :3])
    assert not torch.allclose(found(ids)[:, 3:], found(other)[:, 3:])


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (CNN(name="cnn", channels=(2,)), (10,), r"cnn takes images, .* inputs are \(10,\)"),
        (ResNet9(name="resnet9"), (8, 8), "resnet9 takes images"),
        (Linear(name="linear"), {"x": (3,)}, "linear takes one tensor"),
        (MLP(name="mlp", hidden=(2,)), ((3,), (2,)), "mlp takes one tensor"),
        (GPT(name="gpt", vocabulary=4, context=5), (3, 4), "gpt takes token ids"),
        (GPT(name="gpt", vocabulary=4, context=5), (6,), "5 positions at most, and samples have 6"),
    ],
)
def test_inputs_that_a_model_can_not_take(model: Model, shape: Any, expected: str) -> None:
    with pytest.raises(LeaveoutError, match=expected):
        initialise(model, shape, 2, 0)


CLASSES = CrossEntropy()
NUMBERS = SquaredError(name="squared_error")


@pytest.mark.parametrize(
    ("objective", "targets", "n_classes", "expected"),
    [
        (CLASSES, torch.tensor([0, 1, 1]), 5, 5),
        (CLASSES, torch.tensor([0, 1, 3]), None, 4),
        (NUMBERS, torch.zeros(3), None, 1),
        (NUMBERS, torch.zeros(3, 2, 4), None, 8),
        (NUMBERS, torch.tensor([0, 1, 3]), 4, 1),
        (BinaryCrossEntropy(name="binary_cross_entropy"), torch.tensor([0, 1, 1]), 2, 1),
        (MultiLabel(name="multi_label"), torch.tensor([[0, 1, 1]] * 3), None, 3),
        (TokenCrossEntropy(name="token_cross_entropy"), torch.tensor([[0, -100, 6]]), None, 7),
    ],
)
def test_as_many_outputs_as_the_objective_takes(
    make_setting: Callable[..., Setting],
    objective: Any,
    targets: torch.Tensor,
    n_classes: int | None,
    expected: int,
) -> None:
    setting = make_setting().model_copy(update={"objective": objective})
    inputs = torch.zeros(len(targets), 2, 3)
    samples = Samples(inputs, targets, CROSS_ENTROPY)
    model = builder(setting, samples, samples, n_classes)(0)
    assert model(inputs).shape == (len(targets), expected)
