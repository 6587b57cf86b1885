"""What a method gets, and what it must give: the protocol of all attribution methods.

A method is a module with a function ``attribute``. Its hyper-parameters are keyword-only arguments
with types; the entry in ``config/methods.yaml`` gives their values. It returns score[train, test],
positive where the training sample helps: removing it makes the test sample's loss larger. Where it
can't, it raises :class:`leaveout.errors.NotComputableError`, and the tables say why.

It returns them whole, as a tensor, or yields blocks of consecutive rows, in order. Blocks are
written as they come, so that the scores need not fit in memory; ``Task.train_blocks`` cuts the
training samples into blocks of a good size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.errors import NotComputableError
from leaveout.problem.call import numbers
from leaveout.problem.objective import Objective
from leaveout.problem.samples import Samples
from leaveout.training.trials import Trial

State = Mapping[str, Tensor]

SHARE = 0.5
"""Part of the memory allowed that test gradients and what is solved with them may take."""

BLOCK_BYTES = 32 << 20
"""Scores in one block of ``Task.train_blocks``, at most."""


@dataclass(frozen=True)
class Trajectory:
    """One trained model and the checkpoints on its way.

    Attributes:
        trial: Its training: whose random streams it used, and which samples it saw.
        states: Parameters and buffers at each checkpoint; the last one is the final model.
        epochs: After which epoch, counted from 1, each checkpoint was taken.
        learning_rates: Step size at each checkpoint.
        trained_on: Whether each training sample was seen, bool, (train,).
    """

    trial: Trial
    states: Sequence[State]
    epochs: Sequence[int]
    learning_rates: Sequence[float]
    trained_on: Tensor

    @property
    def final(self) -> State:
        """The trained model."""
        return self.states[-1]


@dataclass(frozen=True)
class Task:
    """All that a method may use.

    Attributes:
        setting: Name of the setting, for seeds.
        seed: Root seed of the setting.
        module: The architecture, in evaluation mode; call it with a state through
            :func:`leaveout.problem.call.call_with`. Methods leave it as it was.
        train: Training samples; the mean of their losses is what training minimised over all.
        test: Test samples; what is attributed is what their objective says of each.
        objective: What training minimised over a batch; ``train`` has the same, averaged.
        full: Models trained on all training samples.
        half: Models trained on random halves; empty unless the method names ``"half"`` in a
            module-level ``NEEDS``.
        build: Returns a freshly initialised model from an integer seed, on the CPU.
        recipe: How the models were trained.
        memory: Bytes the method may take beside the data and the models.
        seconds: Time it may take.
    """

    setting: str
    seed: int
    module: nn.Module
    train: Samples
    test: Samples
    objective: Objective
    full: Sequence[Trajectory]
    half: Sequence[Trajectory]
    build: Callable[[int], nn.Module]
    recipe: Recipe
    memory: float = 8e9
    seconds: float = 7200

    def need(self, memory: float, what: str) -> None:
        """Say, before it is taken, that some memory will be needed.

        Args:
            memory: How much, in bytes.
            what: For what, in words that can be the subject of a sentence.

        Raises:
            NotComputableError: It is more than the setting allows.
        """
        if memory > self.memory:
            raise NotComputableError(
                "memory",
                f"{what} would take {memory / 1e9:.3g} GB, of {self.memory / 1e9:.3g} allowed "
                "(attribution.memory_gb)",
            )

    def train_blocks(self) -> Iterator[Samples]:
        """Cut the training samples into blocks whose scores take at most ``BLOCK_BYTES``."""
        row = max(1, len(self.test)) * self.like.element_size()
        yield from self.train.split(max(1, BLOCK_BYTES // row))

    @property
    def room(self) -> float:
        """Bytes that test gradients, and what is solved with them, may take: half of what is."""
        return SHARE * self.memory

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and device that scores have: those of the parameters."""
        return numbers(self.module, self.full[0].final if self.full else None)


class Attribute(Protocol):
    """A method's function: a task and hyper-parameters in, scores (train, test) out."""

    def __call__(self, task: Task, **hyper_parameters: Any) -> Tensor | Iterator[Tensor]:
        """Return score[train, test], or blocks of its rows in order; positive helps."""
        ...
