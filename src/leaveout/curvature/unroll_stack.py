"""Going back through the training of a stack of linear layers, written by hand.

Products with the Hessian are Pearlmutter's (R operator), in place; SGD with a constant rate alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from leaveout.curvature.unroll_any import Curvature
from leaveout.training.replay import Replay, State, Step
from leaveout.training.stack import Layer, parse, trains


def stack_layers(replay: Replay) -> list[Layer] | None:
    """Read the replay's module as a stack; None where module, objective or recipe are others."""
    module = replay.module
    return parse(module) if trains(module, replay.samples, replay.recipe) else None


class ByHand:
    """Goes back step by step; u and a are those of :mod:`leaveout.curvature.unroll`."""

    def __init__(
        self,
        replay: Replay,
        layers: Sequence[Layer],
        final: dict[str, Tensor],
        curvature: Curvature,
    ) -> None:
        """Begin at the end.

        Args:
            replay: The training.
            layers: From :func:`stack_layers`.
            final: Each test sample's gradient there, (test, *shape); overwritten.
            curvature: What is taken for the Hessian.
        """
        self.layers, self.replay, self.curvature = layers, replay, curvature
        self.inputs = replay.samples.inputs.flatten(1)
        self.into, recipe = final, replay.recipe
        rate = recipe.learning_rate
        if recipe.momentum:
            self.velocity = {name: torch.zeros_like(final[name]) for name in replay.names}
            self.scale = 1.0
        else:  # u is -rate a: a serves as u, and its products are scaled
            self.velocity, self.scale = final, -rate / (1 - rate * recipe.weight_decay)

    def back(self, step: Step) -> Tensor:
        """Go back one step; return the derivative in each sample's weight, (samples, test)."""
        recipe, layers, into = self.replay.recipe, self.layers, self.into
        rate, decay = recipe.learning_rate, recipe.weight_decay
        for name in self.replay.names:
            if recipe.momentum:
                self.velocity[name].mul_(recipe.momentum).sub_(into[name], alpha=rate)
                if decay:
                    into[name].add_(self.velocity[name], alpha=decay)
            elif decay:
                into[name].mul_(1 - rate * decay)
        labels = self.replay.samples.targets[step.batch]
        known = _forward_backward(layers, step, self.inputs[step.batch], labels)
        outputs, moved = _moved(layers, step.state, known, self.velocity)
        # a sample's gradient times u is the derivative of its loss along u
        dots = (outputs * (known.probabilities - known.target)).sum(1)
        scale = self.scale / len(step.batch)
        if self.curvature == "outer":
            _add_outer(layers, known, dots, into, scale)
            return dots.T * scale
        _add_hessian(layers, step.state, known, outputs, moved, self.velocity, into, scale)
        return (dots - dots.mean(1, keepdim=True)).T * scale


@dataclass(frozen=True)
class _Pass:
    """One pass forward and backward over a batch, which serves all vectors.

    Attributes:
        probabilities: (classes, samples).
        target: One for the label's class, (classes, samples).
        below: Inputs of each layer, (features, samples).
        gates: Derivative of each layer's inputs in the outputs of the one before, (features,
            samples), from the second on.
        deltas: Derivative of each sample's loss in each layer's outputs, (outputs, samples).
    """

    probabilities: Tensor
    target: Tensor
    below: list[Tensor]
    gates: list[Tensor]
    deltas: list[Tensor]


def _forward_backward(layers: Sequence[Layer], step: Step, inputs: Tensor, labels: Tensor) -> _Pass:
    masks = iter(step.masks)
    values, below, gates = inputs.T, [], []
    for layer in layers:
        below.append(values)
        values = step.state[f"{layer.name}.weight"] @ values
        values += step.state[f"{layer.name}.bias"][:, None]
        if layer.hidden:
            gate = (values > 0).to(values)
            if layer.dropout:
                gate *= next(masks).T.to(values) / (1 - layer.dropout)
            gates.append(gate)
            values = values * gate
    probabilities = torch.softmax(values, dim=0)
    target = functional.one_hot(labels, len(values)).T.to(values)
    delta = probabilities - target
    deltas = [delta]
    for number in range(len(layers) - 1, 0, -1):
        delta = (step.state[f"{layers[number].name}.weight"].T @ delta) * gates[number - 1]
        deltas.insert(0, delta)
    return _Pass(probabilities, target, below, gates, deltas)


def _moved(
    layers: Sequence[Layer], state: State, known: _Pass, vectors: Mapping[str, Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return how outputs, and inputs of the layers, move along vectors: (vectors, ., samples)."""
    moved: list[Tensor | None] = [None]
    values = known.probabilities
    for number, layer in enumerate(layers):
        v, below = vectors[f"{layer.name}.weight"], known.below[number]
        values = (v.flatten(0, 1) @ below).view(len(v), -1, below.shape[1])
        values += vectors[f"{layer.name}.bias"][:, :, None]
        last = moved[-1]
        if last is not None:
            values += state[f"{layer.name}.weight"] @ last
        if layer.hidden:
            values *= known.gates[number]
            moved.append(values)
    return values, moved


def _add_hessian(
    layers: Sequence[Layer],
    state: State,
    known: _Pass,
    outputs: Tensor,
    moved: list[Tensor | None],
    vectors: Mapping[str, Tensor],
    into: dict[str, Tensor],
    scale: float,
) -> None:
    """Add scale times the product of vectors with the Hessian of the sum of losses."""
    p = known.probabilities
    change = p * (outputs - (p * outputs).sum(1, keepdim=True))
    for number in range(len(layers) - 1, -1, -1):
        name, last = layers[number].name, moved[number]
        v, w = vectors[f"{name}.weight"], into[f"{name}.weight"]
        lower = None
        if number > 0:  # before w, which may be v, is changed
            lower = state[f"{name}.weight"].T @ change
            lower += v.transpose(1, 2) @ known.deltas[number]
            lower *= known.gates[number - 1]
        w.view(-1, w.shape[2]).addmm_(change.flatten(0, 1), known.below[number].T, alpha=scale)
        if last is not None:
            delta = known.deltas[number].expand(len(w), -1, -1)
            w.baddbmm_(delta, last.transpose(1, 2), alpha=scale)
        into[f"{name}.bias"].add_(change.sum(2), alpha=scale)
        if lower is not None:
            change = lower


def _add_outer(
    layers: Sequence[Layer], known: _Pass, dots: Tensor, into: dict[str, Tensor], scale: float
) -> None:
    """Add scale times the sum of the samples' gradients, each times its product with u."""
    for layer, below, delta in zip(layers, known.below, known.deltas, strict=True):
        change = dots[:, None, :] * delta
        w = into[f"{layer.name}.weight"]
        w.view(-1, w.shape[2]).addmm_(change.flatten(0, 1), below.T, alpha=scale)
        into[f"{layer.name}.bias"].add_(change.sum(2), alpha=scale)
