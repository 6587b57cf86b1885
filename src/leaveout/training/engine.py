"""The retraining engine: trials in, trained models out, by the fastest path.

Three paths compute the same models to rounding: ``stack`` (hand-written, stacks of linear layers),
``functional`` (``torch.func``, any module) and ``reference`` (one model at a time). On a CPU a
convolution mapped over models is slower than a loop over them, so other modules than stacks of
linear layers are trained one at a time there, and by ``functional`` on CUDA.

On CUDA the stack is sized by free memory, and halved whenever it turns out too large: what has been
trained is kept, and the rest goes on in smaller stacks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.errors import LeaveoutError
from leaveout.problem.call import call
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, count, join, tensors, tree_map
from leaveout.training.functional import functional_outputs, stack_states, train_functional
from leaveout.training.memory import fitting, in_blocks
from leaveout.training.precision import full_float32
from leaveout.training.reference import same_step, train_one
from leaveout.training.stack import parse, shared_window, stack_outputs, train_stack, trains
from leaveout.training.trials import Trial

State = dict[str, Tensor]
Path = Literal["stack", "functional", "reference"]

MOST = 4096
"""Models trained at once, at most; more do not use a GPU better."""

DEVICE_BYTES_PER_SAMPLE = 24
"""Device memory for the indices and weights of an epoch, a model and training sample."""

HOST_BYTES_PER_SAMPLE = 48
"""The same on the host, where orders are drawn."""

HOST_BYTES = 2 << 30
"""Host memory for the orders of an epoch."""


def select_device(name: str) -> torch.device:
    """Return a torch device.

    Args:
        name: ``cpu`` or ``cuda``.

    Raises:
        LeaveoutError: ``cuda`` is asked for, but torch finds no GPU.
    """
    if name == "cuda":
        if not torch.cuda.is_available():
            raise LeaveoutError(
                "device: cuda was asked for, but torch finds no GPU here. Set `device: cpu` in "
                "config/config.yaml, or run on a machine with a GPU and a CUDA build of torch."
            )
        full_float32()
    return torch.device(name)


@dataclass(frozen=True)
class Trained:
    """One stack of trained models.

    Attributes:
        trials: What was trained, in order.
        snapshots: Stacked states, (models, ...), at the epochs asked for and at the end.
        outputs: Given inputs, what the final models return: trees of (models, samples, ...).
    """

    trials: Sequence[Trial]
    snapshots: list[State]
    outputs: Callable[[Tree], Any]


def choose_path(
    module: nn.Module,
    trials: Sequence[Trial],
    samples: Samples,
    recipe: Recipe,
    device: torch.device,
) -> Path:
    """Return the fastest path for an architecture, its samples and a recipe, on a device."""
    if trains(module, samples, recipe):
        return "stack"
    alike = len({trial.size(len(samples)) for trial in trials}) == 1
    if device.type == "cuda" and (recipe.iterations is None or alike):
        return "functional" if _maps(module, samples, recipe) else "reference"
    return "reference"


def _maps(module: nn.Module, samples: Samples, recipe: Recipe) -> bool:
    """Return whether ``functional`` trains a model as ``reference`` does: one step of both.

    It does not where a forward pass depends on values, updates buffers of its own, or has
    operations that can't be mapped over models.
    """
    few = samples[: min(4, len(samples))]
    # plain steps: Adam's first one has only the gradient's sign
    plain = Recipe(learning_rate=recipe.learning_rate, epochs=1, batch_size=len(few))
    trials = [Trial(0, ("mapped",)), Trial(0, ("mapped",), removed=0)]
    before = stack_states([module, module])
    try:
        found = train_functional(module, {**before}, trials, few, plain)[0]
    except (RuntimeError, ValueError, LeaveoutError):
        return False
    return all(
        same_step(before[name][number], found[name][number], value)
        for number, trial in enumerate(trials)
        for name, value in train_one(copy.deepcopy(module), trial, few, plain)[0].items()
    )


def train(
    build: Callable[[int], nn.Module],
    trials: Sequence[Trial],
    samples: Samples,
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
        samples: Training samples with the objective that is minimised; models go to their device.
        recipe: Optimiser and sizes.
        snapshot_epochs: After which epochs, counted from 1, the states are kept; after which steps,
            where the recipe counts iterations. The end is always kept.
        path: ``stack``, ``functional`` or ``reference``; by default the fastest.
        stack_size: Models at once, to begin with; by default what suits a CPU's cache or a GPU's
            free memory.

    Yields:
        Trained stacks, together all trials in order.

    Raises:
        ValueError: ``path`` is ``stack`` and the architecture is no stack of linear layers.
        LeaveoutError: One model alone does not fit into the device's memory.
    """
    if samples.objective.check is not None:
        samples.objective.check(samples.targets)
    module = build(trials[0].init_seed()).to(samples.device)
    path = path or choose_path(module, trials, samples, recipe, samples.device)
    if path == "stack" and not trains(module, samples, recipe):
        raise ValueError("the path 'stack' takes stacks of linear layers only, and plain recipes")
    job = _Job(build, module, path, trials, samples, recipe, snapshot_epochs)
    if path == "reference":
        size = 1
    elif stack_size is not None:
        size = stack_size
    elif samples.device.type == "cuda":
        size = _fitting_size(job)
    else:
        window = shared_window(trials, len(samples), recipe.batch_size) if path == "stack" else None
        size = _cached_size(module, samples[:1].inputs, recipe, shared=window is not None)
    for _, trained in in_blocks(job, len(trials), size, "models trained at once"):
        yield trained
        del trained  # or it would live on while the next stack is trained


@dataclass(frozen=True)
class _Job:
    """What :func:`train` was asked for; called with a slice of the trials, it trains these.

    Attributes:
        module: An initialised model of the architecture.
        path: The path to take.
    """

    build: Callable[[int], nn.Module]
    module: nn.Module
    path: Path
    trials: Sequence[Trial]
    samples: Samples
    recipe: Recipe
    snapshot_epochs: Collection[int]

    def __call__(self, which: slice) -> Trained:
        """Train some of the trials as one stack."""
        trials = self.trials[which]
        data = (self.samples, self.recipe, self.snapshot_epochs)
        if self.path == "reference":
            one = self.build(trials[0].init_seed()).to(self.samples.device)
            if self.samples.device.type == "cpu" and _is_convolutional(one):
                # convolutions with few channels take a quarter less so
                one = one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            states = train_one(one, trials[0], *data)
            snapshots = [{k: v[None] for k, v in state.items()} for state in states]
            return Trained(trials, snapshots, self._outputs(_one_output(one), 1))
        state = self._initial(trials)
        layers = parse(self.module) if self.path == "stack" else None
        if layers is not None:
            snapshots = train_stack(layers, state, trials, *data)
            outputs = partial(stack_outputs, layers)
        else:
            snapshots = train_functional(self.module, state, trials, *data)
            outputs = partial(functional_outputs, self.module)
        final = snapshots[-1]
        return Trained(
            trials,
            snapshots,
            self._outputs(
                lambda models, inputs: outputs({k: v[models] for k, v in final.items()}, inputs),
                len(trials),
            ),
        )

    def _initial(self, trials: Sequence[Trial]) -> State:
        """Return the initial states, stacked, on the device.

        Paired trials start from the same weights: those are built, and sent, once.
        """
        seeds = [trial.init_seed() for trial in trials]
        row = {seed: number for number, seed in enumerate(dict.fromkeys(seeds))}
        built = stack_states([self.build(seed) for seed in row])
        there = {name: value.to(self.samples.device) for name, value in built.items()}
        if len(row) == len(seeds):
            return there
        rows = torch.tensor([row[seed] for seed in seeds], device=self.samples.device)
        return {name: value[rows] for name, value in there.items()}

    def _outputs(self, outputs: Callable[[slice, Tree], Any], models: int) -> Callable[[Tree], Any]:
        """Return a function that computes outputs, on a GPU in blocks of models that fit."""
        batch = self.recipe.batch_size
        on_gpu = self.samples.device.type == "cuda"

        def all_outputs(inputs: Tree) -> Any:
            # as many samples in all as a training step sees
            size = max(1, min(models, models * batch // count(inputs))) if on_gpu else models
            parts = [
                part
                for _, part in in_blocks(
                    lambda which: outputs(which, inputs), models, size, "models evaluated at once"
                )
            ]
            return join(parts)

        return all_outputs


def _one_output(module: nn.Module) -> Callable[[slice, Tree], Any]:
    def outputs(_: slice, inputs: Tree) -> Any:
        module.eval()
        with torch.no_grad():
            return tree_map(lambda value: value[None], call(module, inputs))

    return outputs


def _is_convolutional(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) for layer in module.modules())


def _state_bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _cached_size(module: nn.Module, sample: Tree, recipe: Recipe, shared: bool) -> int:
    """Return how many models to train at once on a CPU.

    The working set should stay in cache, but be large enough to hide the dispatch of a step.
    """
    states = 2 if recipe.momentum else 1
    numbers = states * sum(p.numel() for p in module.parameters())
    if not shared:
        numbers += recipe.batch_size * sum(value.numel() for value in tensors(sample))
    size = next((p.element_size() for p in module.parameters()), 4)
    return max(8, min(128, (4 << 20) // max(1, numbers * size)))


def _fitting_size(job: _Job) -> int:
    """Return how many models to train at once on a GPU: what half of the free memory holds.

    The memory of a step is measured on a small stack. The indices and weights of an epoch are added
    to it, and the snapshots of this stack and of the one before, which is still being read.
    """
    n, size = len(job.samples), job.recipe.batch_size
    first = replace(job, samples=job.samples[:size], snapshot_epochs=())
    once = {"epochs": 1, "iterations": None}
    one_step = replace(first, recipe=job.recipe.model_copy(update=once))
    shared = shared_window(job.trials, n, size) is not None

    def step(models: int) -> object:
        trials = [
            # whole batches; and orders that are shared here only if they are in the real work
            replace(t, kept=None, removed=None, identity=t.identity if shared else ("probe", k))
            for k, t in enumerate(job.trials[:models])
        ]
        return replace(one_step, trials=trials)(slice(0, models))

    snapshots = len({*job.snapshot_epochs}) + 1
    beside = 2 * snapshots * _state_bytes(job.module) + DEVICE_BYTES_PER_SAMPLE * n
    most = min(len(job.trials), MOST, max(1, HOST_BYTES // (HOST_BYTES_PER_SAMPLE * n)))
    return fitting(step, beside, most, job.samples.device)
