"""The retraining engine: trials in, trained models out, by the fastest path there is.

Three paths compute the same models to rounding: ``stack`` (hand-written, stacks of linear layers),
``functional`` (``torch.func``, any module) and ``reference`` (one model at a time). On a CPU a
convolution mapped over models is slower than a loop over them, so other modules than stacks of
linear layers are trained one at a time there, and by ``functional`` on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.errors import LeaveoutError
from leaveout.training.functional import functional_outputs, stack_states, train_functional
from leaveout.training.reference import train_one
from leaveout.training.stack import parse, shared_window, stack_outputs, train_stack
from leaveout.training.trials import Trial

State = dict[str, Tensor]
Path = Literal["stack", "functional", "reference"]


def select_device(name: str) -> torch.device:
    """Return a torch device.

    Args:
        name: ``cpu`` or ``cuda``.

    Raises:
        LeaveoutError: ``cuda`` is asked for and there is none.
    """
    if name == "cuda":
        if not torch.cuda.is_available():
            raise LeaveoutError(
                "device: cuda was asked for, but torch finds no GPU here. Set `device: cpu` in "
                "config/config.yaml, or run on a machine with a GPU and a CUDA build of torch."
            )
        # float32 means float32: TensorFloat-32 would change the models, not only their speed
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


@dataclass(frozen=True)
class Trained:
    """One stack of trained models.

    Attributes:
        trials: What was trained, in order.
        snapshots: Stacked states, (models, ...), at the epochs asked for and at the end.
        outputs: Given samples, the outputs of the final models on them, (models, samples, outputs).
    """

    trials: Sequence[Trial]
    snapshots: list[State]
    outputs: Callable[[Tensor], Tensor]


def choose_path(module: nn.Module, device: torch.device) -> Path:
    """Return the fastest path for an architecture on a device."""
    if parse(module) is not None:
        return "stack"
    return "functional" if device.type == "cuda" else "reference"


def _stack_size(module: nn.Module, sample: Tensor, recipe: Recipe, shared: bool) -> int:
    """Return how many models to train at once."""
    states = 2 if recipe.momentum else 1
    numbers = states * sum(p.numel() for p in module.parameters())
    if not shared:
        numbers += recipe.batch_size * sample.numel()
    size = numbers * sample.element_size()
    if sample.is_cuda:
        # activations and gradients of a general module are unknown: take a small part of what is
        # free
        free, _ = torch.cuda.mem_get_info(sample.device)
        return max(1, min(4096, free // (16 * size)))
    # on a CPU: the working set should stay in cache, but be large enough to hide the dispatch of a
    # step
    return max(8, min(128, (4 << 20) // size))


def train(
    build: Callable[[int], nn.Module],
    trials: Sequence[Trial],
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    snapshot_epochs: Collection[int] = (),
    path: Path | None = None,
    stack_size: int | None = None,
) -> Iterator[Trained]:
    """Train models, stack by stack.

    Path, stack size, thread count and the order of the trials change a model by rounding only.

    Args:
        build: Returns a module initialised from an integer seed, on the CPU.
        trials: What to train.
        inputs: Training inputs, (samples, ...); their device and dtype are the models'.
        labels: Training labels, (samples,), on the same device.
        recipe: Optimiser and sizes.
        snapshot_epochs: After which epochs, counted from 1, the states are kept; the last epoch
            always is.
        path: ``stack``, ``functional`` or ``reference``; by default the fastest.
        stack_size: Models at once; by default chosen by working set.

    Yields:
        Trained stacks, together all trials in order.

    Raises:
        ValueError: ``path`` is ``stack`` and the architecture is no stack of linear layers.
    """
    module = build(trials[0].init_seed()).to(inputs)
    path = path or choose_path(module, inputs.device)
    layers = parse(module)
    if path == "stack" and layers is None:
        raise ValueError("the path 'stack' takes stacks of linear layers only")
    window = shared_window(trials, len(inputs), recipe.batch_size) if path == "stack" else None
    size = stack_size or _stack_size(module, inputs[0], recipe, shared=window is not None)
    if path == "reference":
        size = 1
    for start in range(0, len(trials), size):
        part = trials[start : start + size]
        if path == "reference":
            one = build(part[0].init_seed()).to(inputs)
            if not inputs.is_cuda:  # convolutions with few channels take a quarter less time so
                one = one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            states = train_one(one, part[0], inputs, labels, recipe, snapshot_epochs)
            snapshots = [{k: v[None] for k, v in state.items()} for state in states]
            yield Trained(part, snapshots, _one_output(one))
            continue
        # paired trials start from the same weights: build those once
        seeds = [trial.init_seed() for trial in part]
        built = {seed: build(seed).to(inputs) for seed in set(seeds)}
        state = stack_states([built[seed] for seed in seeds])
        if path == "stack":
            assert layers is not None
            snapshots = train_stack(layers, state, part, inputs, labels, recipe, snapshot_epochs)
            yield Trained(part, snapshots, partial(stack_outputs, layers, snapshots[-1]))
        else:
            snapshots = train_functional(
                module, state, part, inputs, labels, recipe, snapshot_epochs
            )
            yield Trained(part, snapshots, partial(functional_outputs, module, snapshots[-1]))


def _one_output(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def outputs(inputs: Tensor) -> Tensor:
        module.eval()
        with torch.no_grad():
            return module(inputs)[None]  # type: ignore[no-any-return]

    return outputs
