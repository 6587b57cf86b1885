"""What a method gets, and what it must give: the protocol of all attribution methods.

A method is a module with a function ``attribute``. Its hyper-parameters are keyword-only arguments
with types; the entry in ``config/methods.yaml`` gives their values. It returns score[train, test],
positive where the training sample helps: removing it makes the test sample's loss larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from leaveout.retraining.common import Samples

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trajectory:
    """One trained model and the checkpoints on its way.

    Attributes:
        run: Number of the run.
        states: Parameters and buffers at each checkpoint; the last one is the final model.
        learning_rates: Step size at each checkpoint.
        trained_on: Whether each training sample was seen, bool, (train,).
    """

    run: int
    states: Sequence[State]
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
            ``torch.func.functional_call``. Methods leave it as it was.
        train: Training samples.
        test: Test samples; what is attributed is the loss of each.
        full: Models trained on all training samples.
        half: Models trained on random halves; empty unless the method names ``"half"`` in a
            module-level ``NEEDS``.
    """

    setting: str
    seed: int
    module: nn.Module
    train: Samples
    test: Samples
    full: Sequence[Trajectory]
    half: Sequence[Trajectory]


class Attribute(Protocol):
    """A method's function: a task and hyper-parameters in, scores (train, test) out."""

    def __call__(self, task: Task, **hyper_parameters: Any) -> Tensor:
        """Return score[train, test]; positive helps."""
        ...
