"""The objective: what training minimises, what is attributed, and what curvature is known of it.

A batch's loss is ``sum_i losses_i / sum_i counts_i``: counts are 1 where it is the mean over
samples, and numbers of tokens, or weights of classes, where it is the mean over these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leaveout.errors import NotComputableError

Losses = Callable[[Any, Any], Tensor]
"""From the outputs of a model and targets, one number a sample, (samples,)."""


@dataclass(frozen=True)
class Family:
    """A convex potential Phi of outputs h: a loss of it is Phi(h) - <t, h>, whatever the target t.

    A *unit* is what has a potential of its own: a position's classes (softmax), or one number.

    Attributes:
        name: ``softmax``, ``bernoulli`` or ``gaussian``.
        vector: Whether a unit is the last dimension of the outputs; else each number is one.
        mean: Phi'(h), of the outputs' shape.
        divergence: Phi(h) - Phi(r) - <Phi'(r), h - r> of each unit, never negative.
        curve: Phi''(h) v, of the outputs' shape.
        root: From outputs and uniform numbers of the units' shape, r with E[r r'] = Phi''(h): the
            gradient of the loss under a label drawn from the model.
        roots: All of few r with sum r r' = Phi''(h), the exact sum, one unit a sample.
    """

    name: str
    vector: bool
    mean: Callable[[Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    curve: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor, Tensor], Tensor]
    roots: Callable[[Tensor], Iterator[Tensor]]

    def units(self, outputs: Tensor) -> tuple[int, ...]:
        """Return the shape of one sample's units."""
        shape = tuple(outputs.shape[1:])
        return shape[:-1] if self.vector else shape


@dataclass(frozen=True)
class Likelihood:
    """The curvature of a loss in the outputs, as a family's with a mass for each unit.

    Attributes:
        family: Its potential.
        outputs: Chooses h, (samples, ..., numbers), among what a model returns; for a softmax
            classes come last. It only takes a part: of gradients it takes the same.
        mass: From h and targets, how often each unit counts, (samples, *units): 0 for what is
            ignored, a class's weight, one part of a mean.
    """

    family: Family
    outputs: Callable[[Any], Tensor]
    mass: Callable[[Tensor, Any], Tensor]

    def mean(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the gradient of the potentials in h, of its shape."""
        return self._scaled(self.family.mean(outputs), self.mass(outputs, targets))

    def divergence(self, outputs: Tensor, reference: Tensor, targets: Any) -> Tensor:
        """Return the Bregman divergence of each sample's loss, (samples,), from h and h_s."""
        units = self.family.divergence(outputs, reference) * self.mass(outputs, targets)
        return units.flatten(1).sum(1) if units.dim() > 1 else units

    def curve(self, outputs: Tensor, targets: Any, vectors: Tensor) -> Tensor:
        """Return the product of the loss's second derivative in h with vectors, shape of h."""
        return self._scaled(self.family.curve(outputs, vectors), self.mass(outputs, targets))

    def root(self, outputs: Tensor, targets: Any, points: Tensor) -> Tensor:
        """Return random r, E[r r'] the second derivative, from uniform points of the units."""
        return self._scaled(self.family.root(outputs, points), self.mass(outputs, targets).sqrt())

    def roots(self, outputs: Tensor, targets: Any) -> Iterator[Tensor]:
        """Yield all r whose r r' add up to the second derivative; one softmax unit a sample."""
        mass = self.mass(outputs, targets).sqrt()
        for root in self.family.roots(outputs):
            yield self._scaled(root, mass)

    def _scaled(self, values: Tensor, mass: Tensor) -> Tensor:
        return values * (mass[..., None] if self.family.vector else mass)


@dataclass(frozen=True)
class Objective:
    """What is asked of a sample.

    Attributes:
        name: As in a setting.
        losses: What training minimises, one number a sample.
        counts: From targets, by how much each sample counts in a batch's mean, (samples,); None
            for 1 each.
        measure: What is attributed, lower is better as for a loss; None for the loss itself.
        margin: Log odds of a sample's target, (samples,), for TRAK; of several targets those of
            their geometric mean. None where it is undefined.
        classes: From targets, the class of each sample, (samples,), int64; None where samples have
            none.
        likelihood: Its curvature in the outputs; None where it is unknown.
        check: Looks at the values of all targets once; raises LeaveoutError where they are wrong.
        plain: Whether the losses are plain cross-entropy, which some fast ways are made for.
    """

    name: str
    losses: Losses
    counts: Callable[[Any], Tensor] | None = None
    measure: Losses | None = None
    margin: Losses | None = None
    classes: Callable[[Any], Tensor] | None = None
    likelihood: Likelihood | None = None
    check: Callable[[Any], None] | None = None
    plain: bool = False

    def batch_loss(self, outputs: Any, targets: Any, weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch, a number, its samples weighted or not."""
        losses = self.losses(outputs, targets)
        counts = torch.ones_like(losses) if self.counts is None else self.counts(targets).to(losses)
        if weights is None:
            return losses.mean() if self.counts is None else losses.sum() / counts.sum()
        return (losses * weights).sum() / (counts * weights).sum()

    def averaged(self, targets: Any) -> Objective:
        """Return it in such units that the mean over these samples is their batch loss.

        Influence functions are about the mean over all training samples; where a batch's mean is
        one over tokens or weights, a sample's own part is its loss divided by the mean count.

        Raises:
            LeaveoutError: The targets' values do not fit the objective.
        """
        if self.check is not None:
            self.check(targets)
        if self.counts is None:
            return self
        mean = self.counts(targets).double().mean()
        losses, likelihood = self.losses, self.likelihood
        if likelihood is not None:
            mass = likelihood.mass
            likelihood = replace(likelihood, mass=lambda h, t: mass(h, t) / mean.to(h))
        return replace(
            self,
            losses=lambda outputs, t: (found := losses(outputs, t)) / mean.to(found),
            counts=None,
            likelihood=likelihood,
        )

    def measured(self) -> Objective:
        """Return what is asked of test samples: the measure, which has no curvature."""
        return replace(
            self,
            losses=self.measure or self.losses,
            counts=None,
            measure=None,
            likelihood=None,
            plain=self.plain and self.measure is None,
        )

    def need(self, what: str, why: str) -> Any:
        """Return a part of it, such as ``likelihood``, or say that a method needs it.

        Raises:
            NotComputableError: It has none.
        """
        found = getattr(self, what)
        if found is None:
            raise NotComputableError("undefined", f"{why}: the objective {self.name} has none")
        return found
