from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leaveout.gradients import formed, per_sample, summed
from leaveout.gradients.per_sample import (
    gradient_chunks,
    gradient_products,
    n_parameters,
    per_sample_gradients,
)
from leaveout.problem.objectives import CROSS_ENTROPY
from leaveout.problem.samples import Samples

CLOSE: dict[str, Any] = {"atol": 1e-12, "rtol": 0}


@pytest.fixture(params=["one chunk", "chunks of 3", "chunks of 1"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, problem: Any) -> None:
    size = {"chunks of 3": 3.5, "chunks of 1": 0}.get(request.param)
    if size is not None:
        monkeypatch.setattr(per_sample, "CHUNK_BYTES", int(size * 8 * n_parameters(problem.module)))


def no_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (per_sample, summed):
        monkeypatch.setattr(module, "gradient_factors", lambda *_: None)


def gradient_dots(
    module: nn.Module, state: dict[str, Tensor], left: Samples, right: Samples, **options: Any
) -> Tensor:
    blocks = left.split(4)
    return torch.cat([*summed.summed_dots(module, [state], [1.0], blocks, right, **options)])


def test_gradients_are_those_of_each_sample_alone(problem: Any) -> None:
    found = per_sample_gradients(problem.module, problem.state, problem.left)
    torch.testing.assert_close(found, problem.naive(problem.left), **CLOSE)
    assert found.norm(dim=1).min() > 0.01


@pytest.mark.usefixtures("chunk")
def test_dots_and_cosines(problem: Any) -> None:
    g, h = problem.naive(problem.left), problem.naive(problem.right)
    arguments = (problem.module, problem.state, problem.left, problem.right)
    torch.testing.assert_close(gradient_dots(*arguments), g @ h.T, **CLOSE)
    expected = functional.cosine_similarity(g[:, None], h[None], dim=2)
    torch.testing.assert_close(gradient_dots(*arguments, cosine=True), expected, **CLOSE)


@pytest.mark.usefixtures("chunk")
def test_products_with_vectors(problem: Any) -> None:
    g = problem.naive(problem.left)
    vectors = torch.randn(4, g.shape[1], generator=torch.Generator().manual_seed(2)).double()
    found = gradient_products(problem.module, problem.state, problem.left, vectors)
    torch.testing.assert_close(found, g @ vectors.T, atol=1e-11, rtol=0)


@pytest.mark.usefixtures("chunk")
def test_chunks_cover_all_samples_once_within_the_bound(problem: Any) -> None:
    parts = list(gradient_chunks(problem.module, problem.state, problem.left))
    assert [i for part, _ in parts for i in range(part.start, part.stop)] == list(range(11))
    bound = max(per_sample.CHUNK_BYTES, 8 * n_parameters(problem.module))
    assert all(g.numel() * g.element_size() <= bound for _, g in parts)
    found = torch.cat([g for _, g in parts])
    torch.testing.assert_close(found, problem.naive(problem.left), **CLOSE)


def test_the_generic_way_gives_the_factored_ones_result(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (problem.module, problem.state, problem.left, problem.right)
    right = per_sample_gradients(problem.module, problem.state, problem.left)
    dots, cosines = gradient_dots(*arguments), gradient_dots(*arguments, cosine=True)
    no_factors(monkeypatch)
    generic = per_sample_gradients(problem.module, problem.state, problem.left)
    torch.testing.assert_close(generic, right, **CLOSE)
    torch.testing.assert_close(gradient_dots(*arguments), dots, **CLOSE)
    torch.testing.assert_close(gradient_dots(*arguments, cosine=True), cosines, **CLOSE)
    for fitting in (0, 2.5, 6):  # of the test samples' gradients
        room = fitting * 8 * n_parameters(problem.module)
        found = gradient_dots(*arguments, cosine=True, room=room)
        torch.testing.assert_close(found, cosines, **CLOSE)


def test_right_samples_are_gone_through_once_and_left_ones_once_a_block(
    problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_factors(monkeypatch)
    seen = {"left": 0, "right": 0}
    known = {"left": problem.left.inputs, "right": problem.right.inputs}

    def counted(module: nn.Module, state: Any, samples: Samples, *rest: Any) -> Any:
        for name, inputs in known.items():
            seen[name] += int(
                sum((row == inputs).flatten(1).all(1).sum() for row in samples.inputs)
            )
        return chunks(module, state, samples, *rest)

    chunks = formed.gradient_chunks
    monkeypatch.setattr(formed, "gradient_chunks", counted)
    arguments = (problem.module, problem.state, problem.left, problem.right)
    n, m = len(problem.left), len(problem.right)
    gradient_dots(*arguments)
    assert seen == {"left": n, "right": m}
    gradient_dots(*arguments, room=3 * 8 * n_parameters(problem.module))
    assert seen == {"left": n + n * -(-m // 3), "right": 2 * m}


def test_order_and_neighbours_do_not_matter(problem: Any) -> None:
    samples = problem.left
    whole = per_sample_gradients(problem.module, problem.state, samples)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    shuffled = per_sample_gradients(problem.module, problem.state, samples[order])
    torch.testing.assert_close(shuffled, whole[order], **CLOSE)
    alone = per_sample_gradients(problem.module, problem.state, samples[4:5])
    torch.testing.assert_close(alone, whole[4:5], **CLOSE)


@pytest.mark.parametrize("factored", [True, False])
def test_a_zero_gradient_has_cosine_zero_with_everything(
    problem: Any, monkeypatch: pytest.MonkeyPatch, factored: bool
) -> None:
    if not factored:
        no_factors(monkeypatch)
    last = list(dict(problem.module.named_parameters()))[-1]
    state = dict(problem.state)
    state[last] = torch.tensor([800.0, 0, 0], dtype=torch.float64)  # exp(-800) is 0
    labels = torch.zeros(len(problem.left), dtype=torch.int64)
    labels[-1] = 1
    found = gradient_dots(
        problem.module, state, replace(problem.left, targets=labels), problem.right, cosine=True
    )
    assert torch.equal(found[:-1], torch.zeros_like(found[:-1]))
    assert found.isfinite().all()


def test_the_cosine_of_a_tiny_gradient_with_itself_is_one(problem: Any) -> None:
    last = list(dict(problem.module.named_parameters()))[-1]
    shifted = {k: v.float() if v.is_floating_point() else v for k, v in problem.state.items()}
    # gradients of order e^-40 = 4e-18: squares are denormal, or nearly, in float32
    shifted[last] = shifted[last] + torch.tensor([40.0, 0, 0])
    labels = torch.zeros(11, dtype=torch.int64)
    left = Samples(problem.left.inputs.float(), labels, CROSS_ENTROPY)
    module = problem.module.float()
    found = gradient_dots(module, shifted, left, left, cosine=True)
    torch.testing.assert_close(found.diagonal(), torch.ones(11), atol=1e-3, rtol=0)


def flags(module: torch.nn.Module) -> list[object]:
    return [
        module.training,
        [p.requires_grad for p in module.parameters()],
        [p.grad for p in module.parameters()],
        [len(m._forward_hooks) for m in module.modules()],
    ]


def values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def test_module_and_state_are_left_as_they_were(problem: Any) -> None:
    before, own, given = (
        flags(problem.module),
        values(problem.module.state_dict()),
        values(problem.state),
    )
    gradient_dots(problem.module, problem.state, problem.left, problem.right, cosine=True)
    per_sample_gradients(problem.module, problem.state, problem.left)
    with torch.no_grad():  # a caller's mode is no obstacle either
        per_sample_gradients(problem.module, problem.state, problem.left)
    assert flags(problem.module) == before
    for now, then in ((problem.module.state_dict(), own), (problem.state, given)):
        torch.testing.assert_close(dict(now), then, atol=0, rtol=0)
    assert not any(value.requires_grad for value in problem.state.values())


def test_too_little_memory_halves_the_chunk_and_changes_nothing(
    problem: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(module: Any, state: Any, samples: Samples, *function: Any) -> Tensor:
        if len(samples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return per_sample_gradients(module, state, samples, *function)

    monkeypatch.setattr(per_sample, "per_sample_gradients", small)
    parts = list(gradient_chunks(problem.module, problem.state, problem.left))
    assert [i for part, _ in parts for i in range(part.start, part.stop)] == list(range(11))
    torch.testing.assert_close(
        torch.cat([g for _, g in parts]), problem.naive(problem.left), **CLOSE
    )
    assert "gradients formed at once: 11 do not fit" in capsys.readouterr().err


class Recomputed(nn.Module):
    """It computes activations anew in the backward pass, with what its parameters are then."""

    def __init__(self, conv: bool) -> None:
        super().__init__()
        self.inner = nn.Conv1d(1, 2, 2) if conv else nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        given = x[:, None] if isinstance(self.inner, nn.Conv1d) else x
        hidden = checkpoint(lambda v: self.inner(v).tanh().flatten(1), given, use_reentrant=False)
        return self.head(hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("conv", [True, False])
def test_activation_checkpoints_are_recomputed_with_the_state(conv: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, other = (Recomputed(conv).double().eval() for _ in range(2))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = Samples(x, torch.tensor([0, 1, 2, 0, 1]), CROSS_ENTROPY)
    state = {name: value.detach() for name, value in other.named_parameters()}
    found = per_sample_gradients(module.requires_grad_(False), state, samples)
    for k in range(5):
        loss = functional.cross_entropy(other(x[k : k + 1]), samples.targets[k : k + 1])
        right = torch.autograd.grad(loss, [*other.parameters()])
        torch.testing.assert_close(found[k], torch.cat([g.flatten() for g in right]))
