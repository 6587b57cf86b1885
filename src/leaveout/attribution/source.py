"""SOURCE: unrolled training in a few segments, each with one curvature and one gradient.

Paper: Bae et al. 2024, Training Data Attribution via Approximate Unrolled Differentiation,
arXiv:2405.12186.
Formula: score[i, j] = g_j(w_T)' sum_l S_L .. S_l+1 r_l(i), over L segments of K steps each of full
run 0: S_l = exp(-K rate_l H_l) and r_l(i) = 1/N (I - S_l) H_l^-1 gbar_l(i), H_l and gbar_l(i) the
curvature and i's gradient averaged over the segment's checkpoints, rate_l the mean learning rate of
its steps, over 1 - momentum. It is what leaving i out of all its batches adds to the loss of j, to
first order, in nats (no constant is left out).
Cost: EK-FAC over the training samples at every checkpoint, and products of all training gradients
there with n_test vectors.
Memory: L + 6 vectors of all parameters for each of as many test samples as fit; training gradients
are gone through once for each such block.
Approximated: the Hessian, by the Gauss-Newton matrix in EK-FAC's form, and weight decay; steps, by
the gradient flow they follow; within a segment curvature and gradients do not change, and do not
vary together. Steps that do not follow the gradient's own flow are refused: Adam's and AdamW's,
clipped ones, and decay of some parameters alone. Dropout is off, batch norm in evaluation mode. No
damping is needed: where H is flat, r_l is K rate_l / N times the gradient. The initial weights are
no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leaveout.attribution.if_kfac import fisher_samples
from leaveout.attribution.solved import tests_at_once
from leaveout.attribution.task import State, Task
from leaveout.curvature.ekfac import ekfac
from leaveout.curvature.kfac import FisherData
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import gradient_products, per_sample_gradients
from leaveout.training.optimisers import rate, total_steps

Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Segment:
    """A part of the training.

    Attributes:
        states: Its checkpoints.
        span: Steps times learning rate, over 1 - momentum: the time of the gradient flow.
        apply: Multiplies vectors by a function of the segment's curvature.
    """

    states: Sequence[State]
    span: float
    apply: Callable[[Tensor, Scale], Tensor]


def attribute(task: Task, *, segments: int) -> Iterator[Tensor]:
    """Yield g_j' sum_l S_L .. S_l+1 r_l(i).

    Args:
        task: The task.
        segments: Parts of equally many steps; each must have a checkpoint.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        NotComputableError: The vectors take too much memory, or the run's optimiser is not one that
            follows the flow of the gradient.
        LeaveoutError: A segment has no checkpoint.
    """
    _check(task)
    size = tests_at_once(task, segments + 6)
    parts = _segments(task, segments)
    if size >= len(task.test):
        yield from _scores(task, parts)
        return
    task.need(float(len(task.train) * len(task.test) * task.like.element_size()), "the scores")
    columns = [
        torch.cat([*_scores(replace(task, test=some), parts)]) for some in task.test.split(size)
    ]
    for start in range(0, len(task.train), 1000):
        yield torch.cat([column[start : start + 1000] for column in columns], dim=1)


def _scores(task: Task, parts: list[Segment]) -> Iterator[Tensor]:
    """Yield the scores for all test samples of a task at once, in blocks of rows."""
    samples = int(task.full[0].trained_on.sum())
    right = per_sample_gradients(task.module, task.full[0].final, task.test)
    vectors = segment_vectors(parts, right, samples, task.recipe.weight_decay)
    for block in task.train_blocks():
        total = task.like.new_zeros(len(block), len(task.test))
        for part, mine in zip(parts, vectors, strict=True):
            for state in part.states:
                found = gradient_products(task.module, state, block, mine)
                total += found / len(part.states)
        yield total


def segment_vectors(
    parts: Sequence[Segment], right: Tensor, samples: int, decay: float
) -> list[Tensor]:
    """Return for each segment the vectors that a sample's mean gradient there is multiplied with.

    Args:
        parts: The segments, first to last.
        right: Test gradients at the end, (test, parameters).
        samples: N.
        decay: Weight decay, added to the curvature.

    Returns:
        For each segment 1/N H_l^-1 (I - S_l) S_l+1 .. S_L right, (test, parameters).
    """

    def contraction(span: float, values: Tensor) -> Tensor:
        return torch.exp(-span * (values + decay))

    def response(span: float, values: Tensor) -> Tensor:
        x = span * (values + decay)
        ratio = torch.where(x.abs() < 1e-12, 1.0, -torch.expm1(-x) / x)
        return ratio * (span / samples)

    found = []
    for number, part in reversed(list(enumerate(parts))):
        found.append(part.apply(right, partial(response, part.span)))
        if number > 0:
            right = part.apply(right, partial(contraction, part.span))
    return found[::-1]


def _check(task: Task) -> None:
    """See that the run's steps follow the flow of the gradient.

    Raises:
        NotComputableError: They do not.
    """
    recipe = task.recipe
    why = ""
    if recipe.optimizer != "sgd":
        why = f"{recipe.optimizer} scales each parameter's gradient"
    elif recipe.clip is not None:
        why = "clipped steps are shorter than the gradient says"
    elif recipe.weight_decay and recipe.decay != "all":
        why = "some parameters decay and others do not"
    if why:
        raise NotComputableError("undefined", f"SOURCE follows the gradient's own flow: {why}")


def _segments(task: Task, count: int) -> list[Segment]:
    """Cut full run 0 into parts, with the EK-FAC of all checkpoints of each."""
    run, recipe = task.full[0], task.recipe
    # a checkpoint at the end of a part belongs to it
    total = recipe.iterations or recipe.epochs
    assert total is not None
    of = [-(-epoch * count // total) - 1 for epoch in run.epochs]
    empty = sorted(set(range(count)) - set(of))
    if count < 1:
        raise LeaveoutError(f"source: segments = {count}; take at least 1")
    if empty:
        raise NotComputableError(
            "undefined",
            f"of {len(run.epochs)} checkpoints none falls into segment {empty[0] + 1} of {count}; "
            "take fewer segments, or more checkpoints (full.checkpoints)",
        )
    steps = total_steps(recipe, int(run.trained_on.sum()))
    parts = []
    for number in range(count):
        mine = [place for place, part in enumerate(of) if part == number]
        states = [run.states[place] for place in mine]
        if recipe.schedule == "constant" and not recipe.warmup:
            mean = sum(run.learning_rates[place] for place in mine) / len(mine)
        else:
            within = range(steps * number // count, steps * (number + 1) // count)
            mean = sum(rate(recipe, step, steps) for step in within) / len(within)
        averaged = ekfac(_at(task, states))
        span = steps / count * mean / (1 - recipe.momentum)
        parts.append(Segment(states, span, averaged.apply))
    return parts


def _at(task: Task, states: Sequence[State]) -> FisherData:
    """Describe the training samples, once under each of some states, to EK-FAC."""
    run, n = task.full[0], len(task.train)
    each = [
        fisher_samples(replace(task, full=[replace(run, states=[state])]), "true")
        for state in states
    ]

    def outputs(model: nn.Module, batch: Any, start: int) -> tuple[Tensor, Iterable[Tensor]]:
        under, own = batch
        found: tuple[Tensor, Iterable[Tensor]] = under(model, own, start % n)
        return found

    batches = [(one.outputs, batch) for one in each for batch in one.batches]
    return FisherData(task.module, batches, outputs, known=each[0].known)
