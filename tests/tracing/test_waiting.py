from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from leaveout.gradients.factors import Factor
from leaveout.gradients.parts import Formed
from leaveout.tracing import tracincp, waiting
from leaveout.tracing.tracincp import TracInCP, TracInCPFast
from leaveout.tracing.waiting import Waiting, sees_samples

RATES = (0.5, 0.2, 0.1)


class Branches(nn.Module):
    """Two layers see the samples, one of them a part of them, and one what tanh makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Linear(6, 3)
        self.part = nn.Linear(3, 3, bias=False)
        self.squashed = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return self.whole(flat).relu() * self.part(flat[:, 2:5]) + self.squashed(flat.tanh())


def load(model: nn.Module, checkpoint: Any) -> float:
    model.load_state_dict(checkpoint[0])
    return float(checkpoint[1])


@pytest.mark.parametrize("held", [1 << 20, 1, 700])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_scores_are_the_sum_over_checkpoints(
    held: int, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracincp, "HELD_BYTES", held)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [Branches().double() for _ in RATES]
        train, test = ((torch.randn(n, 2, 3).double(), torch.randint(3, (n,))) for n in (9, 4))
    checkpoints = [
        ({k: v.clone() for k, v in m.state_dict().items()}, rate)
        for m, rate in zip(models, RATES, strict=True)
    ]
    expected = 0
    for model, rate in zip(models, RATES, strict=True):
        sides = []
        for data in (test, train):
            rows = []
            for x, y in zip(*data, strict=True):
                loss = functional.cross_entropy(model(x[None]), y[None])
                found = torch.autograd.grad(loss, list(model.parameters()))
                rows.append(torch.cat([g.flatten() for g in found]))
            sides.append(torch.stack(rows))
        expected = expected + rate * sides[0] @ sides[1].T
    tracer = TracInCP(
        copy.deepcopy(models[0]), TensorDataset(*train), checkpoints, load, batch_size=4,
        loss_fn=nn.CrossEntropyLoss(reduction=reduction),
    )  # fmt: skip
    torch.testing.assert_close(tracer.influence(test), expected, rtol=0, atol=1e-12)


def test_layers_that_see_samples_are_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    widths, multiply = [], waiting.factored_dots

    def counted(left: list[Factor], right: list[Factor]) -> Tensor:
        widths.append(left[0].deltas.shape[1])
        return multiply(left, right)

    monkeypatch.setattr(waiting, "factored_dots", counted)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        one = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
        batch = (torch.randn(7, 2, 3), torch.randint(3, (7,)))
    loss = nn.CrossEntropyLoss(reduction="sum")
    states = [model.state_dict()] * 3
    TracInCP(model, TensorDataset(*batch), states, loss_fn=loss).influence(batch)
    assert widths == [15]
    TracInCPFast(model, "3", TensorDataset(*batch), states, loss_fn=loss).influence(batch)
    assert widths == [15]
    states = [one.state_dict()] * 4
    TracInCPFast(one, "1", TensorDataset(*batch), states, loss_fn=loss).influence(batch)
    assert widths == [15, 12]


def test_what_sees_samples() -> None:
    inputs = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    batch, deltas = [inputs, torch.tensor([0, 1, 2])], torch.ones(3, 2)
    assert sees_samples(Factor("a", inputs.flatten(1), deltas, True), batch)
    assert sees_samples(Factor("a", inputs[:, 0], deltas, True), batch)
    assert not sees_samples(Factor("a", inputs.flatten(1).clone(), deltas, True), batch)
    assert not sees_samples(Formed("a", inputs.flatten(1)), batch)


def test_other_views_of_the_samples_are_kept_apart() -> None:
    inputs = torch.arange(12.0).view(3, 4)
    one, other = (
        Factor("a", inputs[:, :2], torch.ones(3, 1), False),
        Factor("a", inputs[:, 2:], torch.full((3, 1), 2.0), False),
    )
    held, scores = Waiting(), torch.zeros(4, 5)
    held.add((1, 2), 0.5, one, one)
    held.add((1, 2), 0.25, other, other)
    held.add((1, 2), 1.0, one, one)
    assert held.taken == 6 * one.deltas.nbytes
    held.add_to(scores)
    expected = torch.zeros(4, 5)
    expected[1:, 2:] = 1.5 * inputs[:, :2] @ inputs[:, :2].T + inputs[:, 2:] @ inputs[:, 2:].T
    torch.testing.assert_close(scores, expected)
    assert held.taken == 0
    held.add_to(scores)
    torch.testing.assert_close(scores, expected)
