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
from leaveout.training.dropout import use_streams
from leaveout.training.losses import sample_losses
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
        masks: For each dropout layer the units kept, (samples, *units), bool.
    """

    state: State
    batch: Tensor
    masks: list[Tensor]


@dataclass(frozen=True)
class _Start:
    """Where an epoch begins: the state, the momentum buffers, and the stream of dropout masks."""

    state: State
    momenta: list[Tensor]
    stream: np.random.Generator


class Replay:
    """A training that can be gone through from the end.

    Attributes:
        module: The architecture with dropout as :class:`StreamDropout`, a copy of its own.
        final: Parameters and buffers at the end.
    """

    def __init__(
        self,
        build: Callable[[int], nn.Module],
        trial: Trial,
        inputs: Tensor,
        labels: Tensor,
        recipe: Recipe,
    ) -> None:
        """Train, and keep the start of every epoch.

        Args:
            build: Returns a freshly initialised model from a seed.
            trial: Which training.
            inputs: Training inputs, (samples, ...).
            labels: Training labels, (samples,).
            recipe: Optimiser and sizes.
        """
        self.trial, self.inputs, self.labels, self.recipe = trial, inputs, labels, recipe
        self.module = build(trial.init_seed()).to(inputs)
        self.dropouts = use_streams(self.module, inputs[:1])
        self._momenta = [torch.zeros_like(p) for p in self.module.parameters()]
        self._stream = trial.dropout_generator()
        self._starts: list[_Start] = []
        for epoch in range(recipe.epochs):
            self._starts.append(
                _Start(
                    self._state(),
                    [buffer.clone() for buffer in self._momenta],
                    copy.deepcopy(self._stream),
                )
            )
            for batch, masks in self._draws(epoch):
                self._take(batch, masks)
        self.final = self._state()

    def epoch(self, number: int) -> list[Step]:
        """Go through one epoch again.

        Args:
            number: Counted from 0.

        Returns:
            Its steps, first to last.
        """
        start = self._starts[number]
        self.module.load_state_dict(start.state)
        self._momenta = [buffer.clone() for buffer in start.momenta]
        self._stream = copy.deepcopy(start.stream)
        steps = []
        for batch, masks in self._draws(number):
            steps.append(Step(self._state(), batch, masks))
            self._take(batch, masks)
        return steps

    def _state(self) -> State:
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def _draws(self, epoch: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        rows = epoch_rows(self.trial, len(self.inputs), epoch, self.recipe.batch_size)
        return draw_steps(rows, self._stream, self.dropouts, self.inputs.device)

    def _take(self, batch: Tensor, masks: list[Tensor]) -> None:
        """Take one step, as torch.optim.SGD does."""
        recipe, parameters = self.recipe, list(self.module.parameters())
        for layer, mask in zip(self.dropouts, masks, strict=True):
            layer.mask = mask
        self.module.train()
        with torch.enable_grad(), forward_precision(recipe, self.inputs.device):
            outputs = self.module(self.inputs[batch])
            loss = sample_losses(outputs.to(self.inputs.dtype), self.labels[batch]).mean()
            gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for weight, buffer, gradient in zip(parameters, self._momenta, gradients, strict=True):
                decayed = gradient.add(weight, alpha=recipe.weight_decay)
                buffer.mul_(recipe.momentum).add_(decayed)
                weight.sub_(buffer, alpha=recipe.learning_rate)
