"""Attribute a trained model of one's own: which training samples helped which test samples."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from leaveout import attribution
from leaveout.attribution.task import State, Task, Trajectory
from leaveout.config import Recipe, nearest
from leaveout.doors.samples import Given, plainly, samples_of, tried
from leaveout.doors.scores import Scores, collected
from leaveout.errors import LeaveoutError
from leaveout.problem.call import load_state, numbers, refuse_mixing, state_of
from leaveout.problem.randomness import preserved
from leaveout.problem.torch_losses import Given as Loss
from leaveout.problem.torch_losses import objective_of
from leaveout.scoring.run import held, score_blocks
from leaveout.scoring.self_influence import self_influence
from leaveout.tracing.checkpoints import list_checkpoints, load_checkpoint
from leaveout.training.trials import Trial

HELPERS = {"task", "solved"}
"""Modules beside the methods."""
REPLAYED = {"magic", "dvemb"}
"""Methods that go through the training again, and so need to know how to."""
STEPPED = {"source"}
"""Methods that need the recipe of the training, though not the training itself."""

Checkpoint = State | str | Path


def method_names() -> list[str]:
    """Return the names of the methods that ship."""
    found = (module.name for module in pkgutil.iter_modules(attribution.__path__))
    return sorted(name for name in found if name not in HELPERS)


def method_module(name: str) -> ModuleType:
    """Return a method's module, by its name or by its path.

    Raises:
        LeaveoutError: There is none; names the nearest.
    """
    if "." in name:
        return importlib.import_module(name)
    if name not in method_names():
        raise LeaveoutError(f"method: {name!r} is unknown{nearest(name, method_names(), 0)}")
    return importlib.import_module(f"leaveout.attribution.{name}")


def check_params(module: ModuleType, params: dict[str, Any]) -> None:
    """See that a method gets the hyper-parameters that it takes.

    Raises:
        LeaveoutError: One is missing or unknown.
    """
    name = module.__name__.rpartition(".")[2]
    takes = {
        key: parameter
        for key, parameter in inspect.signature(module.attribute).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for key in params:
        if key not in takes:
            raise LeaveoutError(f"{name}: it takes no {key!r}{nearest(key, list(takes), 0)}")
    missing = [k for k, p in takes.items() if p.default is p.empty and k not in params]
    if missing:
        raise LeaveoutError(f"{name}: give {', '.join(missing)}")


def attribute(
    method: str,
    model: nn.Module,
    train: Given,
    test: Given | None = None,
    *,
    loss: Loss,
    test_loss: Loss | None = None,
    checkpoints: str | Path | Sequence[Checkpoint] | None = None,
    learning_rates: Sequence[float] | None = None,
    ensemble: Sequence[Checkpoint] = (),
    recipe: Recipe | None = None,
    memory_gb: float = 8.0,
    seed: int = 0,
    **params: Any,
) -> Scores:
    """Score all training samples for each test sample, by any method.

    The model is evaluated as it is in evaluation mode, on the device it is on, and left as it was.

    Args:
        method: A method's name, such as ``if_ekfac``, or the path of a module of your own.
        model: The trained model; its architecture, where checkpoints are given.
        train: Training samples: ``(inputs, targets)``, a ``Dataset`` or a ``DataLoader`` that keeps
            their order. A dictionary of inputs goes to the model by name, a tuple in order.
        test: Test samples, in one of the same forms; None for the influence of each training sample
            on itself.
        loss: What was trained on: a torch loss module with any of its options, a function
            ``loss(outputs, targets)``, the name of an objective of ours, or an ``Objective``.
        test_loss: What is attributed, of a test sample; by default its loss.
        checkpoints: States along the training, the last one final: state dicts, or files of them
            (safetensors, or torch's with weights alone), or their folder. By default the model as
            it is.
        learning_rates: At each checkpoint; by default what the files say, or 1.
        ensemble: States of other models of the same architecture, for methods that take several:
            TRAK takes these, or the model itself, TracIn the model and these.
        recipe: How the model was trained, for SOURCE.
        memory_gb: Memory that the method may take, beside data and models.
        seed: Of what a method draws.
        **params: The method's hyper-parameters, such as ``damping=1e-3``.

    Returns:
        Scores (train, test), positive where the training sample helps.

    Raises:
        NotComputableError: The method is not defined for this problem, or takes too much memory.
        LeaveoutError: An argument is wrong or missing; the message says which.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> scores = attribute("grad_dot", model, data, data, loss=nn.CrossEntropyLoss())
        >>> ids, values = scores.top(3)
    """
    module = method_module(method)
    check_params(module, params)
    name = module.__name__.rpartition(".")[2]
    if name in REPLAYED:
        raise LeaveoutError(
            f"{name}: it goes through the training again, step by step, which a trained model does "
            "not tell; train by leaveout.Benchmark, and take its score()"
        )
    if name in STEPPED and recipe is None:
        raise LeaveoutError(f"{name}: give recipe=leaveout.Recipe(...), how the model was trained")
    objective = objective_of(loss)
    asked = (objective if test_loss is None else objective_of(test_loss)).measured()
    with preserved():
        try:
            own = copy.deepcopy(model).eval()
        except (RuntimeError, ValueError) as error:
            raise LeaveoutError(
                f"model: it can't be copied ({error}). Where a hook made a tensor of it anew, as "
                "nn.utils.weight_norm does, run it once under torch.no_grad()"
            ) from error
        device = numbers(own).device
        left = plainly(samples_of(train, objective, "train"), loss).to(device)
        objective = left.objective
        averaged = left.asked(objective.averaged(left.targets))
        right = averaged if test is None else samples_of(test, asked, "test").to(device)
        tried(own, averaged, "train")
        if test is not None:
            tried(own, right, "test")
        given = list_checkpoints(checkpoints) if checkpoints else [state_of(model)]
        loaded = [_state(own, point) for point in given]
        states = [state for state, _ in loaded]
        rates = [rate for _, rate in loaded] if learning_rates is None else [*learning_rates]
        if len(rates) != len(states):
            raise LeaveoutError(
                f"learning_rates: {len(rates)} were given for {len(states)} checkpoints"
            )
        others = [
            _trajectory([_state(own, point)[0]], [1.0], len(left), k + 1)
            for k, point in enumerate(ensemble)
        ]
        run = _trajectory(states, rates, len(left), 0)
        task = Task(
            setting="own",
            seed=seed,
            module=own,
            train=averaged,
            test=right,
            objective=objective,
            full=[run, *others],
            half=others or [run],
            build=_no_build,
            recipe=recipe or Recipe(learning_rate=1.0, epochs=1, batch_size=len(left)),
            memory=memory_gb * 1e9,
        )
        if test is None:
            refuse_mixing(own)
            values = torch.from_numpy(self_influence(module, task, params, []))
            return Scores(values, left.ids, np.zeros(0, np.int64), name, params)
        shape = (len(left), len(right))
        blocks = score_blocks(lambda: module.attribute(task, **params), shape, name, [])
        values = collected(held(module, task, blocks), len(left), name)
    return Scores(values, left.ids, right.ids, name, params)


def _no_build(_: int) -> nn.Module:
    raise LeaveoutError("this method builds models anew; train by leaveout.Benchmark")


def _trajectory(
    states: Sequence[State], rates: Sequence[float], samples: int, number: int
) -> Trajectory:
    return Trajectory(
        trial=Trial(0, ("own", number)),
        states=states,
        epochs=range(1, len(states) + 1),
        learning_rates=rates,
        trained_on=torch.ones(samples, dtype=torch.bool),
    )


def _state(module: nn.Module, given: Checkpoint) -> tuple[dict[str, Tensor], float]:
    """Return a checkpoint's parameters and buffers, on the module's device, and its rate."""
    rate = 1.0
    if isinstance(given, str | Path) and Path(given).suffix == ".safetensors":
        load_state(module, load_file(given))
    elif isinstance(given, str | Path):
        rate = load_checkpoint(module, given)
    else:
        load_state(module, given)
    return {name: value.detach().clone() for name, value in state_of(module).items()}, rate
