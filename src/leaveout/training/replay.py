"""A training, step by step, over again: for methods that look at the steps and not only at models.

A run is fixed by its :class:`Trial` (initial weights, batches, dropout masks) and its recipe, so it
needs no files: it is trained once more, as :func:`leaveout.training.reference.train_one` trains it.
What is kept is the start of every epoch; an epoch's own steps are gone through again when they are
asked for, which costs a second pass of training and the memory of one epoch's states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.problem.call import call, load_state, numbers, state_of
from leaveout.problem.samples import Samples
from leaveout.problem.trees import floating
from leaveout.training.dropout import dropout_sites, dropped
from leaveout.training.optimisers import (
    Slots,
    decays,
    new_slots,
    rate,
    step,
    steps_an_epoch,
    total_epochs,
    total_steps,
)
from leaveout.training.precision import forward_precision
from leaveout.training.reference import draw_steps
from leaveout.training.trials import Trial, epoch_rows

State = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One step, before it is taken.

    Attributes:
        state: Parameters and buffers.
        batch: Positions of the samples it sees, (samples,).
        masks: For each dropout site the units kept, (samples, *units), bool.
        slots: What the optimiser keeps, before the step.
        number: How many steps were taken before.
        rate: Its learning rate.
    """

    state: State
    batch: Tensor
    masks: list[Tensor]
    slots: Slots
    number: int
    rate: float


@dataclass(frozen=True)
class _Start:
    """Where an epoch begins: the state, the optimiser's, and the stream of dropout masks."""

    state: State
    slots: Slots
    number: int
    stream: np.random.Generator


class Replay:
    """A training that can be gone through from the end.

    Attributes:
        module: The architecture, a copy of its own.
        sites: Where it drops units.
        final: Parameters and buffers at the end.
        names: The parameters that are trained.
        epochs: How many passes are begun.
        decay: Weight decay of each parameter.
    """

    def __init__(
        self, build: Callable[[int], nn.Module], trial: Trial, samples: Samples, recipe: Recipe
    ) -> None:
        """Train, and keep the start of every epoch.

        Args:
            build: Returns a freshly initialised model from a seed.
            trial: Which training.
            samples: Training samples with the objective that was minimised.
            recipe: Optimiser and sizes.
        """
        self.trial, self.samples, self.recipe = trial, samples, recipe
        self.module = build(trial.init_seed()).to(samples.device)
        self.sites = dropout_sites(self.module, samples[:1].inputs)
        own = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.names, self.decay = list(own), decays(recipe, own)
        size = trial.size(len(samples))
        self._steps, self.epochs = total_steps(recipe, size), total_epochs(recipe, size)
        self._slots, self._number = new_slots(recipe, {k: p.detach() for k, p in own.items()}), 0
        self._stream = trial.dropout_generator()
        self._starts: list[_Start] = []
        for epoch in range(self.epochs):
            self._starts.append(
                _Start(self._state(), self._slots, self._number, copy.deepcopy(self._stream))
            )
            for number, batch, masks in self._draws(epoch):
                self._take(self._step(epoch, number, batch, masks))
        self.final = self._state()

    def epoch(self, number: int) -> list[Step]:
        """Go through one epoch again.

        Args:
            number: Counted from 0.

        Returns:
            Its steps, first to last.
        """
        start = self._starts[number]
        load_state(self.module, start.state)
        self._slots, self._number = start.slots, start.number
        self._stream = copy.deepcopy(start.stream)
        steps = []
        for row, batch, masks in self._draws(number):
            steps.append(self._step(number, row, batch, masks))
            self._take(steps[-1])
        return steps

    def _state(self) -> State:
        return {name: value.clone() for name, value in state_of(self.module).items()}

    def _draws(self, epoch: int) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        rows = epoch_rows(self.trial, len(self.samples), epoch, self.recipe.batch_size)
        rows = rows[: self._steps - self._done(epoch)]
        return draw_steps(rows, self._stream, self.sites, self.samples.device)

    def _done(self, epoch: int) -> int:
        """Return how many batches come before an epoch, holes included."""
        return epoch * steps_an_epoch(self.recipe, self.trial.size(len(self.samples)))

    def _step(self, epoch: int, row: int, batch: Tensor, masks: list[Tensor]) -> Step:
        own = rate(self.recipe, self._done(epoch) + row, self._steps)
        return Step(self._state(), batch, masks, self._slots, self._number, own)

    def _take(self, now: Step) -> None:
        """Take one step."""
        recipe, device = self.recipe, self.samples.device
        known = dict(self.module.named_parameters())
        parameters = {name: known[name] for name in self.names}
        self.module.train()
        some = self.samples[now.batch]
        with torch.enable_grad(), dropped(self.sites, now.masks):
            with forward_precision(recipe, device):
                outputs = floating(call(self.module, some.inputs), numbers(self.module).dtype)
            loss = self.samples.objective.batch_loss(outputs, some.targets)
            found = torch.autograd.grad(
                loss, [*parameters.values()], allow_unused=True, materialize_grads=True
            )
        with torch.no_grad():
            gradients = dict(zip(parameters, found, strict=True))
            moved, self._slots = step(
                recipe, parameters, gradients, self._slots, now.number, now.rate, self.decay
            )
            for name, value in moved.items():
                parameters[name].copy_(value)
        self._number += 1
