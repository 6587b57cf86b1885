"""The derivative of a trained model's losses in every step of its training, from the end backwards.

A step takes weights w and what the optimiser keeps (momentum, Adam's averages) to new ones, by the
gradient g(w) of the batch's loss. Its adjoint takes the derivative of a test sample's final loss in
what the step gives to that in what it was given: with u the derivative in g, the derivative in w
grows by H u, H the Hessian of the batch's loss at the step's weights. The gradient's derivative in
what is put into the step (here: the weight of a sample in the batch's loss) times u is what the
step adds. This holds for all test samples at once, so the cost is one Hessian-vector product a step
and test sample, on a batch. For SGD with momentum, v <- momentum v + g(w) + decay w, w <- w - rate
v, it reads, backwards, with a the derivative in w:

    u <- momentum u - rate a,    a <- a + (H + decay) u.

Weights of samples are those of :func:`leaveout.training.reference.train_one` with a sample removed:
the batch's loss is sum_i w_i l_i / sum_i w_i c_i, w = 1, with the objective's counts c (1 each, or
tokens); and the statistics of batch norm are weighted so.

Stacks of linear layers under cross-entropy and plain SGD take a hand-written way
(:mod:`leaveout.curvature.unroll_stack`), anything else is differentiated by ``torch.func``
(:mod:`leaveout.curvature.unroll_any`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import grad

from leaveout.config import Recipe
from leaveout.curvature.hvp import split
from leaveout.curvature.plain import undefined_if_not_differentiated
from leaveout.curvature.unroll_any import ByAutograd, Curvature, weighted_norm
from leaveout.curvature.unroll_stack import ByHand, stack_layers
from leaveout.errors import NotComputableError
from leaveout.gradients.per_sample import n_parameters, per_sample_gradients
from leaveout.problem.call import call_with, numbers, slow_paths
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, one_by_one
from leaveout.training.functional import replace_modules
from leaveout.training.optimisers import steps_an_epoch, total_epochs
from leaveout.training.progress import progress_bar
from leaveout.training.replay import Replay, State


def final_gradients(module: nn.Module, state: State, samples: Samples) -> dict[str, Tensor]:
    """Return each test sample's gradient in parameters and running statistics.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Test samples.

    Returns:
        For each trained parameter, and each buffer that is no counter, (test, *its shape).
    """
    formed = split(module, per_sample_gradients(module, state, samples))
    out = {name: part.contiguous() for name, part in formed.items()}
    statistics = {
        name: state[name]
        for name, value in module.named_buffers()
        if name in state and value.is_floating_point()  # what is no part of a state stays
    }
    if statistics:
        fixed = {name: value for name, value in state.items() if name not in statistics}
        module = copy.deepcopy(module)
        replace_modules(module, weighted_norm)  # torch's own has no derivative in its statistics
        module.eval()

        def loss(buffers: State, x: Tree, y: Tree) -> Tensor:
            return samples.objective.losses(call_with(module, {**fixed, **buffers}, x), y)[0]

        def gradient(x: Tree, y: Tree) -> tuple[Tensor, ...]:
            found = grad(loss)(statistics, x, y)
            return tuple(found[name] for name in statistics)

        with slow_paths(), undefined_if_not_differentiated("in its statistics"):
            found = one_by_one(gradient, samples.inputs, samples.targets)
        out |= dict(zip(statistics, found, strict=True))
    return out


def unroll_bytes(
    module: nn.Module, state: Mapping[str, Tensor], recipe: Recipe, train: int, tests: int
) -> float:
    """Return the bytes that :func:`unroll` and its arguments take at their peak."""
    p, number = n_parameters(module), numbers(module, state).element_size()
    slots = 2 if recipe.optimizer != "sgd" else 1 if recipe.momentum else 0
    starts = total_epochs(recipe, train) + steps_an_epoch(recipe, train)
    adjoints = (2 + slots) * tests * p
    return number * float((1 + slots) * starts * p + adjoints + train * tests)


def unroll(
    replay: Replay, final: dict[str, Tensor], curvature: Curvature, seconds: float = math.inf
) -> Tensor:
    """Return the derivative of final losses in the weight of each training sample.

    Args:
        replay: The training.
        final: From :func:`final_gradients`; overwritten.
        curvature: What is taken for H.
        seconds: Time it may take.

    Returns:
        (train, test).

    Raises:
        NotComputableError: The first epoch took so long that all would take longer than allowed,
            the training was in bfloat16, or torch does not differentiate the model so.
    """
    recipe = replay.recipe
    if recipe.precision != "float32":
        raise NotComputableError("undefined", f"{recipe.precision} steps have no exact derivative")
    layers = stack_layers(replay)
    way: ByHand | ByAutograd
    if layers is None:
        way = ByAutograd(replay, final, curvature)
    else:
        way = ByHand(replay, layers, final, curvature)
    first = final[replay.names[0]]
    out = first.new_zeros(len(replay.samples), len(first))
    began = time.monotonic()
    with progress_bar(replay.epochs, "back through training", "epoch", delay=5) as bar:
        for epoch in reversed(range(replay.epochs)):
            if epoch == replay.epochs - 2 and (
                (expected := replay.epochs * (time.monotonic() - began)) > seconds
            ):
                raise NotComputableError(
                    "time",
                    f"going back through {replay.epochs} epochs would take {expected / 3600:.2g} "
                    f"hours, of {seconds / 3600:.2g} allowed (attribution.hours)",
                )
            for step in reversed(replay.epoch(epoch)):
                with undefined_if_not_differentiated("through a step"):
                    out.index_add_(0, step.batch, way.back(step))
            bar.update()
    return out
