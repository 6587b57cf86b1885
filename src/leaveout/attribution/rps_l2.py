"""Representer point selection, RPS-L2: the last layer fitted anew, as a sum over training samples.

Paper: Yeh et al. 2018, Representer Point Selection for Explaining Deep Neural Networks,
arXiv:1811.09720 (Theorem 3.1).
Formula: W = argmin (1/n) sum_i L(W f_i, t_i) + l2 |W|^2, f_i the features that the last linear
layer sees at the final state of full run 0, divided by their norm, and L the cross-entropy. There
W f = sum_i a_i <f_i, f> with a_i = -(1 / (2 l2 n)) dL/d(W f_i), and score[i, j] = a_i[label_j]
<f_i, f_j>: what sample i adds to the output of j's label.
Cost: some Newton steps on (classes x features) numbers, convex, to a checked gradient; then one
product of (train, features) with (features, test).
Approximated: all layers but the last are held fixed, and the last has no bias. The targets t are
what the model itself predicts, as the paper has it for trained models and the published panel does,
so that labels are seen through the model alone; or the labels. (The panel fits features of any norm
and divides by it in the kernel <f_i, f_j> alone, which then represents no W f.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from leaveout.attribution.task import Task
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.features import penultimate_features
from leaveout.problem.call import call_with, slow_paths
from leaveout.problem.objectives import logits

TOLERANCE = 1e-9
"""How far from stationary W may be: |W - sum_i a_i f_i'| relative to |W|."""


def attribute(task: Task, *, l2: float, targets: str = "model") -> Iterator[Tensor]:
    """Yield a_i[label_j] <f_i, f_j>, (train, test), in blocks of rows.

    Args:
        task: The task.
        l2: Strength of the regularisation.
        targets: ``model`` for its predictions, or ``labels``.

    Raises:
        NotComputableError: The objective is no plain cross-entropy of classes, or the model has no
            last linear layer.
    """
    features, alpha = _representers(task, l2, targets)
    state = task.full[0].final
    test = functional.normalize(penultimate_features(task.module, state, task.test))
    start = 0
    for block in task.train_blocks():
        part = slice(start, start + len(block))
        kernel = features[part].to(test.dtype) @ test.T
        yield kernel.mul_(alpha[part][:, task.test.targets].to(test.dtype))
        start = part.stop


def self_influence(task: Task, *, l2: float, targets: str = "model") -> Tensor:
    """Return a_i[label_i] <f_i, f_i>, (train,)."""
    features, alpha = _representers(task, l2, targets)
    own = alpha.gather(1, task.train.targets[:, None])[:, 0]
    return own * features.square().sum(1)


def _representers(task: Task, l2: float, targets: str) -> tuple[Tensor, Tensor]:
    """Return f, (train, features), and a, (train, classes), in float64."""
    if targets not in ("labels", "model"):
        raise LeaveoutError(f"rps_l2.targets: {targets!r} is not one of labels, model")
    if l2 <= 0:
        raise LeaveoutError(f"rps_l2.l2: {l2:g} is not positive, and there is no representer at 0")
    if not task.objective.plain:
        raise NotComputableError(
            "undefined",
            "it fits a last layer anew by plain cross-entropy of classes, and the objective is "
            f"{task.objective.name}",
        )
    state, train = task.full[0].final, task.train
    found = penultimate_features(task.module, state, train)
    task.need(24.0 * found.numel(), f"the features of {len(found)} samples, in float64")
    features = functional.normalize(found.double())
    with torch.no_grad(), slow_paths():
        outputs = torch.cat(
            [logits(call_with(task.module, state, part.inputs)) for part in train.split(256)]
        ).double()
    goal = (
        outputs.softmax(1)
        if targets == "model"
        else functional.one_hot(train.targets, outputs.shape[1]).double()
    )
    weights = fit(features, goal, l2)
    return features, representers(features, goal, weights, l2)


def representers(features: Tensor, targets: Tensor, weights: Tensor, l2: float) -> Tensor:
    """Return a_i = (t_i - softmax(W f_i)) / (2 l2 n), (samples, classes)."""
    return (targets - (features @ weights.T).softmax(1)) / (2 * l2 * len(features))


def fit(features: Tensor, targets: Tensor, l2: float) -> Tensor:
    """Minimise the mean cross-entropy + l2 |W|^2 by Newton's method.

    Args:
        features: (samples, features), float64.
        targets: Probabilities, (samples, classes).
        l2: Strength of the regularisation.

    Returns:
        W, (classes, features).

    Raises:
        LeaveoutError: It did not become stationary.
    """
    n = len(features)

    def objective(weights: Tensor) -> Tensor:
        losses = functional.cross_entropy(features @ weights.T, targets)
        return losses + l2 * weights.square().sum()

    weights = features.new_zeros(targets.shape[1], features.shape[1])
    value, residual = objective(weights), float("inf")
    for _ in range(50):
        p = (features @ weights.T).softmax(1)
        gradient = (p - targets).T @ features / n + 2 * l2 * weights
        # the gradient is 2 l2 (W - sum_i a_i f_i')
        residual = float(gradient.norm() / (2 * l2))
        if residual <= TOLERANCE * float(weights.norm()) or residual == 0:
            return weights
        step = _newton_step(features, p, gradient, l2)
        slope, length = (gradient * step).sum(), 1.0
        while length > 1e-6:
            moved = weights + length * step
            reached = objective(moved)
            # near the end the objective no longer tells points apart
            if reached <= value + 1e-4 * length * slope + 1e-14 * value.abs():
                break
            length /= 2
        weights, value = moved, reached
    raise LeaveoutError(
        f"rps_l2: the last layer did not become stationary at l2 = {l2:g}: W is {residual:.1e} "
        f"from its representation by samples (|W| = {float(weights.norm()):.1e}); raise l2"
    )


def _newton_step(features: Tensor, p: Tensor, gradient: Tensor, l2: float) -> Tensor:
    """Solve H x = -gradient by conjugate gradients, to a residual that ends Newton's quickly."""

    def product(vector: Tensor) -> Tensor:
        moved = p * (features @ vector.T)
        moved -= p * moved.sum(1, keepdim=True)
        return moved.T @ features / len(features) + 2 * l2 * vector

    solution, rest = torch.zeros_like(gradient), -gradient
    direction, square = rest.clone(), rest.square().sum()
    start = float(square.sqrt())
    goal = min(0.1, start) * start
    for _ in range(500):
        moved = product(direction)
        length = square / (direction * moved).sum()
        solution += length * direction
        rest -= length * moved
        before, square = square, rest.square().sum()
        if float(square.sqrt()) <= goal:
            break
        direction = rest + square / before * direction
    return solution
