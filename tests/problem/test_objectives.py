"""Objectives against autograd, torch's own losses, and sums over labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.problem.objective import Objective
from leaveout.problem.objectives import (
    CROSS_ENTROPY,
    OBJECTIVES,
    binary_cross_entropy,
    cross_entropy,
    multi_label,
    squared_error,
    token_cross_entropy,
)

N, CLASSES, POSITIONS = 6, 4, 5
WEIGHT = [1.0, 5.0, 0.2, 2.0]
IGNORED = 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape: int, high: int = CLASSES) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


def padded() -> Tensor:
    """Targets of sequences of different lengths."""
    targets = labels(N, POSITIONS)
    for row in range(N):
        targets[row, 1 + row % POSITIONS :] = -100
    return targets


H, Y, S, T = drawn(N, CLASSES), labels(N), drawn(N, POSITIONS, CLASSES), padded()
CASES: dict[str, tuple[Objective, Tensor, Tensor]] = {
    "cross_entropy": (CROSS_ENTROPY, H, Y),
    "weighted": (cross_entropy(weight=WEIGHT), H, Y),
    "smoothed": (cross_entropy(label_smoothing=0.2), H, Y),
    "weighted and smoothed": (cross_entropy(weight=WEIGHT, label_smoothing=0.2), H, Y),
    "some ignored": (cross_entropy(weight=WEIGHT, ignore_index=IGNORED), H, Y),
    "tokens": (token_cross_entropy(), S, T),
    "tokens summed": (token_cross_entropy(reduction="sum"), S, T),
    "last token": (token_cross_entropy(reduction="last"), S, T),
    "tokens smoothed": (token_cross_entropy(label_smoothing=0.1), S, T),
    "numbers": (squared_error(), H, drawn(N, CLASSES, seed=2)),
    "one number": (squared_error(), drawn(N, 1), drawn(N, seed=2)),
    "one logit": (binary_cross_entropy(), drawn(N, 1), labels(N, high=2)),
    "one logit weighted": (binary_cross_entropy(pos_weight=3.0), drawn(N), labels(N, high=2)),
    "labels": (multi_label(), H, labels(N, CLASSES, high=2)),
    "labels weighted": (multi_label(pos_weight=3.0), H, labels(N, CLASSES, high=2).double()),
}
ALL = pytest.mark.parametrize("case", CASES)


def curvature(objective: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
    """The second derivative of each sample's loss, by autograd: (samples, numbers, numbers)."""

    def loss(row: int) -> Callable[[Tensor], Tensor]:
        one = slice(row, row + 1)
        shape = outputs[one].shape
        return lambda flat: objective.losses(flat.view(shape), targets[one])[0]

    return torch.stack(
        [
            torch.autograd.functional.hessian(loss(row), outputs[row].reshape(-1))
            for row in range(len(outputs))
        ]
    )


@ALL
def test_curve_is_the_second_derivative(case: str) -> None:
    objective, outputs, targets = CASES[case]
    right = curvature(objective, outputs, targets)
    assert objective.likelihood is not None
    vectors = drawn(*outputs.shape, seed=3)
    found = objective.likelihood.curve(outputs, targets, vectors).reshape(len(outputs), -1)
    expected = torch.einsum("nij,nj->ni", right, vectors.reshape(len(outputs), -1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [name for name, of in CASES.items() if of[1].dim() < 3])
def test_roots_add_up_to_it(case: str) -> None:
    objective, outputs, targets = CASES[case]
    likelihood = objective.likelihood
    assert likelihood is not None
    total = sum(
        torch.einsum("ni,nj->nij", root.reshape(N, -1), root.reshape(N, -1))
        for root in likelihood.roots(outputs, targets)
    )
    torch.testing.assert_close(total, curvature(objective, outputs, targets))


@ALL
def test_drawn_roots_have_it_for_their_second_moment(case: str) -> None:
    objective, outputs, targets = CASES[case]
    likelihood = objective.likelihood
    assert likelihood is not None
    draws, total = 20_000, torch.zeros(N, outputs[0].numel(), outputs[0].numel()).double()
    outputs, targets = outputs.repeat_interleave(draws, 0), targets.repeat_interleave(draws, 0)
    shape = (len(outputs), *likelihood.family.units(outputs))
    points = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    root = likelihood.root(outputs, targets, points).reshape(N, draws, -1)
    total = torch.einsum("nki,nkj->nij", root, root) / draws
    right = curvature(objective, outputs[::draws], targets[::draws])
    assert float((total - right).abs().max()) < 0.06 * float(right.abs().max())
    assert float(root.mean(1).abs().max()) < 0.06 * float(right.abs().max()) ** 0.5


@ALL
def test_divergence_is_the_loss_less_its_tangent(case: str) -> None:
    """It is Phi(h) - Phi(r) - <Phi'(r), h - r>, and the target's part of the loss is linear."""
    objective, outputs, targets = CASES[case]
    assert objective.likelihood is not None
    reference = (outputs + 0.5 * drawn(*outputs.shape, seed=5)).requires_grad_()
    before = objective.losses(reference, targets)
    (slope,) = torch.autograd.grad(before.sum(), reference)
    moved = (slope * (outputs - reference)).reshape(N, -1).sum(1)
    expected = objective.losses(outputs, targets) - before - moved
    found = objective.likelihood.divergence(outputs, reference, targets)
    torch.testing.assert_close(found, expected)
    assert bool((found >= 0).all())


@pytest.mark.parametrize(
    ("case", "loss"),
    [
        ("cross_entropy", nn.CrossEntropyLoss()),
        ("weighted", nn.CrossEntropyLoss(torch.tensor(WEIGHT).double())),
        ("smoothed", nn.CrossEntropyLoss(label_smoothing=0.2)),
        (
            "weighted and smoothed",
            nn.CrossEntropyLoss(torch.tensor(WEIGHT).double(), label_smoothing=0.2),
        ),
        (
            "some ignored",
            nn.CrossEntropyLoss(torch.tensor(WEIGHT).double(), ignore_index=IGNORED),
        ),
        ("tokens", lambda o, t: functional.cross_entropy(o.flatten(0, 1), t.flatten())),
        ("numbers", lambda o, t: nn.MSELoss()(o, t) * CLASSES / 2),
        ("one logit", lambda o, t: nn.BCEWithLogitsLoss()(o[:, 0], t.double())),
        (
            "one logit weighted",
            lambda o, t: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(o, t.double()),
        ),
        ("labels", lambda o, t: nn.BCEWithLogitsLoss()(o, t.double()) * CLASSES),
    ],
)
def test_a_batch_has_the_loss_that_torch_gives(case: str, loss: Callable[..., Tensor]) -> None:
    objective, outputs, targets = CASES[case]
    torch.testing.assert_close(objective.batch_loss(outputs, targets), loss(outputs, targets))


@ALL
def test_weights_of_one_and_none_take_samples_out(case: str) -> None:
    objective, outputs, targets = CASES[case]
    kept = torch.tensor([0, 1, 3, 5])
    weights = torch.zeros(N, dtype=torch.float64).index_fill_(0, kept, 1.0)
    found = objective.batch_loss(outputs, targets, weights)
    torch.testing.assert_close(found, objective.batch_loss(outputs[kept], targets[kept]))


@ALL
def test_the_mean_of_averaged_losses_is_the_batch_loss(case: str) -> None:
    objective, outputs, targets = CASES[case]
    averaged = objective.averaged(targets)
    assert averaged.counts is None
    whole = objective.batch_loss(outputs, targets)
    torch.testing.assert_close(averaged.losses(outputs, targets).mean(), whole)
    assert averaged.likelihood is not None
    found = averaged.likelihood.curve(outputs, targets, torch.ones_like(outputs)).reshape(N, -1)
    expected = curvature(averaged, outputs, targets).sum(2)
    torch.testing.assert_close(found, expected)


@ALL
def test_losses_of_one_sample_do_not_depend_on_the_others(case: str) -> None:
    objective, outputs, targets = CASES[case]
    alone = [objective.losses(outputs[i : i + 1], targets[i : i + 1]) for i in range(N)]
    torch.testing.assert_close(objective.losses(outputs, targets), torch.cat(alone))


def test_token_sums_ignore_padding() -> None:
    objective, outputs, targets = CASES["tokens summed"]
    for row, (own, wanted) in enumerate(zip(outputs, targets, strict=True)):
        seen = wanted != -100
        right = functional.cross_entropy(own[seen], wanted[seen], reduction="sum")
        torch.testing.assert_close(objective.losses(outputs, targets)[row], right)
        last = functional.cross_entropy(own[seen][-1:], wanted[seen][-1:])
        found = CASES["last token"][0].losses(outputs, targets)[row]
        torch.testing.assert_close(found, last)


def test_shifted_tokens_are_predicted_one_ahead() -> None:
    found = token_cross_entropy(shift=True, reduction="sum").losses(S, T)
    right = token_cross_entropy(reduction="sum").losses(S[:, :-1], T[:, 1:])
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("case", ["cross_entropy", "one logit", "labels", "tokens summed"])
def test_margins_are_log_odds(case: str) -> None:
    objective, outputs, targets = CASES[case]
    assert objective.margin is not None
    units = outputs.reshape(N, -1, CLASSES) if objective.likelihood.family.vector else None  # type: ignore[union-attr]
    for row in range(N):
        if units is not None:
            own, wanted = units[row], targets.reshape(N, -1)[row]
            p = own.softmax(-1)[wanted != -100]
            chosen = p.gather(1, wanted[wanted != -100, None])[:, 0]
        else:
            p, wanted = outputs[row].sigmoid().reshape(-1), targets[row].reshape(-1).double()
            chosen = p * wanted + (1 - p) * (1 - wanted)
        p = chosen.log().mean().exp()  # the geometric mean of what holds
        right = (p / (1 - p)).log()
        torch.testing.assert_close(objective.margin(outputs, targets)[row], right)


@pytest.mark.parametrize("measure", ["margin", "logit", "log_probability"])
def test_what_is_attributed_may_differ_from_the_loss(measure: str) -> None:
    asked = cross_entropy(weight=WEIGHT, measure=measure).measured()
    p = H.softmax(1).gather(1, Y[:, None])[:, 0]
    right = {
        "margin": -(p / (1 - p)).log(),
        "logit": -H.gather(1, Y[:, None])[:, 0],
        "log_probability": -p.log(),
    }[measure]
    torch.testing.assert_close(asked.losses(H, Y), right)
    assert not asked.plain
    assert cross_entropy(measure=measure).plain  # the losses are, what is attributed is not


def test_outputs_may_carry_their_logits() -> None:
    class Output(dict[str, Any]):
        __getattr__ = dict.__getitem__

    right = CROSS_ENTROPY.losses(H, Y)
    for outputs in (Output(logits=H), {"logits": H, "hidden": None}):
        assert torch.equal(CROSS_ENTROPY.losses(outputs, Y), right)
    with pytest.raises(LeaveoutError, match=r"tensor of outputs.*tuple"):
        CROSS_ENTROPY.losses((H,), Y)


@pytest.mark.parametrize(
    ("objective", "outputs", "targets", "words"),
    [
        (CROSS_ENTROPY, H, drawn(N), "integer classes"),
        (CROSS_ENTROPY, drawn(N, 1), labels(N, high=1), "one output has no classes"),
        (CROSS_ENTROPY, S, T, "cross_entropy: expected outputs"),
        (token_cross_entropy(), S, T[:, 1:], "token_cross_entropy: expected outputs"),
        (squared_error(), drawn(N, 2), drawn(N), "targets of the outputs' shape"),
        (binary_cross_entropy(), drawn(N, 2), labels(N, 2, high=2), "one logit"),
        (multi_label(), H, labels(N, CLASSES - 1, high=2), "targets of the outputs' shape"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    objective: Objective, outputs: Tensor, targets: Tensor, words: str
) -> None:
    with pytest.raises(LeaveoutError, match=words):
        objective.losses(outputs, targets)


@pytest.mark.parametrize(
    ("targets", "words"), [(drawn(N), "not classes"), (Y - 1, "targets are negative")]
)
def test_values_of_classes_are_checked_once(targets: Tensor, words: str) -> None:
    with pytest.raises(LeaveoutError, match=words):
        CROSS_ENTROPY.averaged(targets)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotComputableError, match="squared_error has none"):
        squared_error().need("margin", "TRAK needs margins")
    with pytest.raises(LeaveoutError, match="mean, sum, last"):
        token_cross_entropy(reduction="first")
    with pytest.raises(LeaveoutError, match="'odds' is not one of loss"):
        cross_entropy(measure="odds")


def test_every_objective_is_in_the_table() -> None:
    made = [OBJECTIVES[name]() for name in OBJECTIVES]
    assert [objective.name for objective in made] == [*OBJECTIVES]
    assert [a.name for a, _ in itertools.groupby(made)] == [*OBJECTIVES]


def test_measures_of_tokens() -> None:
    h = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([[0, 4, -100, 1], [2, -100, -100, -100], [-100] * 4])
    p = h.softmax(-1)
    expected: dict[str, list[float]] = {"margin": [], "log_probability": []}
    for sample in range(3):
        likely = [p[sample, k, c].item() for k, c in enumerate(t[sample].tolist()) if c >= 0]
        expected["log_probability"].append(-sum(math.log(q) for q in likely))
        mean = math.prod(likely) ** (1 / max(1, len(likely)))
        expected["margin"].append(-math.log(mean / (1 - mean)) if likely else 0.0)
    for measure, values in expected.items():
        asked = token_cross_entropy(label_smoothing=0.2, measure=measure).measured()
        assert asked.losses(h, t).tolist() == pytest.approx(values)


@pytest.mark.parametrize("labels", [1, 3])
def test_measures_of_truths(labels: int) -> None:
    h = torch.randn(4, labels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = (torch.arange(4 * labels) % 3 == 0).reshape(4, labels).double()
    p = torch.where(t == 1, h.sigmoid(), 1 - h.sigmoid())
    make = binary_cross_entropy if labels == 1 else multi_label
    mean = p.log().mean(1).exp()
    for measure, values in {
        "margin": (mean / (1 - mean)).log(),
        "log_probability": p.log().sum(1),
    }.items():
        asked = make(pos_weight=3.0, measure=measure).measured()
        torch.testing.assert_close(asked.losses(h, t), -values)
    for objective in (make, token_cross_entropy):
        with pytest.raises(LeaveoutError, match="'logit' is not one of loss, margin, log_probabil"):
            objective(measure="logit")
