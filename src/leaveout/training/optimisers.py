"""One step of an optimiser as a pure function, and the learning rate at every step.

The plain loop takes ``torch.optim``; the stacks, the replay and the methods that go back through
training take these, which say the same in plain arithmetic: they can be mapped over models and
differentiated. Sources: torch.optim's SGD, Adam and AdamW; torch.nn.utils.clip_grad_norm_.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from leaveout.config import Recipe

Params = Mapping[str, Tensor]
Slots = dict[str, Params]
"""What an optimiser keeps beside the parameters, by its name: tensors of the parameters' shapes."""


def steps_an_epoch(recipe: Recipe, samples: int) -> int:
    """Return how many batches a pass over so many samples has."""
    return -(-samples // recipe.batch_size)


def total_steps(recipe: Recipe, samples: int) -> int:
    """Return how many steps a training on so many samples takes."""
    if recipe.iterations is not None:
        return recipe.iterations
    assert recipe.epochs is not None
    return recipe.epochs * steps_an_epoch(recipe, samples)


def total_epochs(recipe: Recipe, samples: int) -> int:
    """Return how many passes over so many samples are begun."""
    if recipe.epochs is not None:
        return recipe.epochs
    return -(-total_steps(recipe, samples) // steps_an_epoch(recipe, samples))


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: Its learning rate, schedule and warm-up.
        step: Counted from 0.
        steps: Of the whole training.
    """
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / (recipe.warmup + 1)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    done = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    left = 1 - done if recipe.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * left)


def rates_at(recipe: Recipe, samples: int, marks: Sequence[int]) -> list[float]:
    """Return the learning rate of the last step before each checkpoint.

    Args:
        recipe: The recipe.
        samples: How many a training sees.
        marks: Epochs counted from 1; steps, where the recipe counts iterations.
    """
    each = 1 if recipe.iterations else steps_an_epoch(recipe, samples)
    return [rate(recipe, mark * each - 1, total_steps(recipe, samples)) for mark in marks]


def decay_of(recipe: Recipe, parameter: Tensor) -> float:
    """Return the weight decay of a parameter, of its own shape (without a model dimension)."""
    return recipe.weight_decay if recipe.decay == "all" or parameter.dim() >= 2 else 0.0


def decays(recipe: Recipe, params: Params) -> dict[str, float]:
    """Return the weight decay of every parameter, of their own shapes."""
    return {name: decay_of(recipe, value) for name, value in params.items()}


def new_slots(recipe: Recipe, params: Params) -> Slots:
    """Return what the optimiser keeps, before the first step: zeros."""
    names = (
        ["mean", "square"] if recipe.optimizer != "sgd" else ["velocity"] * bool(recipe.momentum)
    )
    return {slot: {k: torch.zeros_like(v) for k, v in params.items()} for slot in names}


def clipped(recipe: Recipe, gradients: Params) -> Params:
    """Scale the gradients of one model down to the longest norm that the recipe allows."""
    if recipe.clip is None:
        return gradients
    norm = _root(torch.stack([g.square().sum() for g in gradients.values()]).sum())
    scale = (recipe.clip / (norm + 1e-6)).clamp(max=1.0)
    return {name: g * scale for name, g in gradients.items()}


def step(
    recipe: Recipe,
    params: Params,
    gradients: Params,
    slots: Slots,
    number: int | Tensor,
    learning_rate: float | Tensor,
    decay: Mapping[str, float],
) -> tuple[dict[str, Tensor], Slots]:
    """Return parameters and slots after one step; nothing is changed in place.

    Args:
        recipe: The optimiser.
        params: Parameters of one model.
        gradients: Of the batch's loss.
        slots: From :func:`new_slots`, or the step before.
        number: Which step, counted from 0; a tensor where models differ.
        learning_rate: From :func:`rate`.
        decay: From :func:`decays`.
    """
    gradients = clipped(recipe, gradients)
    update = _sgd if recipe.optimizer == "sgd" else _adam
    new: dict[str, Tensor] = {}
    kept: dict[str, dict[str, Tensor]] = {slot: {} for slot in slots}
    for name, value in params.items():
        own = {slot: slots[slot][name] for slot in slots}
        new[name], after = update(
            recipe, value, gradients[name], own, number, learning_rate, decay[name]
        )
        for slot, tensor in after.items():
            kept[slot][name] = tensor
    return new, dict(kept)


def _sgd(
    recipe: Recipe,
    value: Tensor,
    gradient: Tensor,
    slots: Mapping[str, Tensor],
    number: int | Tensor,
    learning_rate: float | Tensor,
    decay: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    gradient = gradient.add(value, alpha=decay) if decay else gradient
    if not recipe.momentum:
        return _plus(value, gradient, -learning_rate), {}
    # zeros before the first step make it the gradient itself, as torch has it
    velocity = slots["velocity"].mul(recipe.momentum).add(gradient)
    moved = gradient.add(velocity, alpha=recipe.momentum) if recipe.nesterov else velocity
    return _plus(value, moved, -learning_rate), {"velocity": velocity}


def _plus(value: Tensor, other: Tensor, factor: float | Tensor) -> Tensor:
    """Return value + factor * other, rounded once where the factor is a number, as torch does."""
    if isinstance(factor, Tensor):
        return value + factor * other
    return value.add(other, alpha=factor)


def _adam(
    recipe: Recipe,
    value: Tensor,
    gradient: Tensor,
    slots: Mapping[str, Tensor],
    number: int | Tensor,
    learning_rate: float | Tensor,
    decay: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    first, second = recipe.betas
    if recipe.optimizer == "adamw":
        value = value * (1 - learning_rate * decay)
    else:
        gradient = gradient.add(value, alpha=decay)
    mean = first * slots["mean"] + (1 - first) * gradient
    square = second * slots["square"] + (1 - second) * gradient.square()
    unbiased = mean / (1 - first ** (number + 1))
    scale = _root(square) / (1 - second ** (number + 1)) ** 0.5 + recipe.eps
    return value - learning_rate * unbiased / scale, {"mean": mean, "square": square}


def _root(square: Tensor) -> Tensor:
    """Return the square root, with derivative 0 at 0.

    Its own is infinite there, but what has no gradient stays without influence.
    """
    some = square > 0
    return torch.where(some, torch.where(some, square, 1.0).sqrt(), 0.0)
