from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.utils.checkpoint import checkpoint

from leaveout.curvature import linearise
from leaveout.curvature.linearise import Linearised, linearise_module, linearise_stack
from leaveout.models.mlp import build
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples
from leaveout.training.stack import parse

SAMPLES, MODELS = 11, 3


def problem() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build((1, 2, 3), 4, [5, 7], 0.1).double().eval()
        inputs = torch.randn(SAMPLES, 1, 2, 3).double()
        state = {
            name: p.detach() + 0.1 * torch.randn(MODELS, *p.shape).double()
            for name, p in module.named_parameters()
        }
    return module, state, inputs


def both(state: dict[str, Tensor]) -> list[Linearised]:
    module, _, inputs = problem()
    layers = parse(module)
    assert layers is not None
    return [
        linearise_stack(layers, state, inputs.flatten(1).T),
        linearise_module(
            module, state, Samples(inputs, torch.zeros(SAMPLES).long(), CROSS_ENTROPY)
        ),
    ]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bound", [1 << 20, 1])
def test_outputs_and_products_are_those_of_each_model_by_autograd(
    monkeypatch: pytest.MonkeyPatch, shared: bool, bound: int
) -> None:
    monkeypatch.setattr(linearise, "BLOCK_BYTES", bound)
    module, state, inputs = problem()
    generator = torch.Generator().manual_seed(4)
    v = {k: torch.randn(t.shape, generator=generator).double() for k, t in state.items()}
    change = torch.randn(MODELS, 4, SAMPLES, generator=generator).double()
    if shared:
        state = {name: value[:1] for name, value in state.items()}
    for found in both(state):
        pushed, pulled = found.push(v), found.pull(change)
        assert found.outputs.shape == (len(state["fc1.bias"]), 4, SAMPLES)
        for k in range(MODELS):
            one = {name: value[0 if shared else k] for name, value in state.items()}

            def run(p: dict[str, Tensor]) -> Tensor:
                return functional_call(module, p, (inputs,)).T  # type: ignore[no-any-return]

            outputs, moved = jvp(run, (one,), ({name: t[k] for name, t in v.items()},))
            torch.testing.assert_close(found.outputs[0 if shared else k], outputs)
            torch.testing.assert_close(pushed[k], moved)
            for name, t in vjp(run, one)[1](change[k])[0].items():
                torch.testing.assert_close(pulled[name][k], t)


class Outside(nn.Module):
    """What torch.func can't run, around a model: it looks at values, or is checkpointed."""

    def __init__(self, inner: nn.Module, checkpointed: bool) -> None:
        super().__init__()
        self.inner, self.checkpointed = inner, checkpointed

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]
        return self.inner(x) * (0 if x.abs().max().item() > 1e9 else 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_model_that_cannot_be_mapped_is_linearised_too(
    monkeypatch: pytest.MonkeyPatch, shared: bool, checkpointed: bool
) -> None:
    monkeypatch.setattr(linearise, "BLOCK_BYTES", MODELS * 4 * 48)
    module, state, inputs = problem()
    samples = Samples(inputs, torch.zeros(SAMPLES).long(), CROSS_ENTROPY)
    generator = torch.Generator().manual_seed(4)
    v = {k: torch.randn(t.shape, generator=generator).double() for k, t in state.items()}
    change = torch.randn(MODELS, 4, SAMPLES, generator=generator).double()
    if shared:
        state = {name: value[:1] for name, value in state.items()}
    right = linearise_module(module, state, samples)
    outside = Outside(module, checkpointed).eval()
    found = linearise_module(outside, {f"inner.{k}": t for k, t in state.items()}, samples)
    torch.testing.assert_close(found.outputs, right.outputs)
    moved = found.push({f"inner.{k}": t for k, t in v.items()})
    torch.testing.assert_close(moved, right.push(v))
    pulled, expected = found.pull(change), right.pull(change)
    for name, value in expected.items():
        torch.testing.assert_close(pulled[f"inner.{name}"], value)
    assert not moved.requires_grad
    assert not any(value.requires_grad for value in pulled.values())


def test_nothing_given_is_changed() -> None:
    _, state, _ = problem()
    before = OrderedDict((name, value.clone()) for name, value in state.items())
    change = torch.ones(MODELS, 4, SAMPLES).double()
    for found in both(state):
        found.push(state)
        found.pull(change)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert torch.equal(change, torch.ones(MODELS, 4, SAMPLES).double())
