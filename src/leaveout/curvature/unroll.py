"""The derivative of a trained model's losses in every step of its training, from the end backwards.

A step of stochastic gradient descent is v <- momentum v + g(w) + decay w, w <- w - rate v, with g
the gradient of the batch's mean loss. Let a be the derivative of a test sample's final loss in w
after the step, and u the derivative in v. Then, backwards,

    u <- momentum u - rate a,    a <- a + (H + decay) u,

H the Hessian of the batch's mean loss at the step's weights. The gradient's derivative in what is
put into the step (here: the weight of a sample in the batch's mean) times u is what the step adds.
This holds for all test samples at once, so the cost is one Hessian-vector product a step and test
sample, on a batch.

Weights of samples are those of :func:`leaveout.training.reference.train_one` with a sample removed:
the batch's loss is sum_i w_i l_i / sum_i w_i, w = 1, and so are the statistics of batch norm.

Stacks of linear layers take a hand-written way (Pearlmutter's R operator, in place); any other
module is differentiated twice by ``torch.func``, its batch norms with their running statistics.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional

from leaveout.config import Recipe
from leaveout.curvature.hvp import split
from leaveout.errors import NotComputableError
from leaveout.gradients.per_sample import n_parameters, per_sample_gradients
from leaveout.training.dropout import StreamDropout, replace_modules
from leaveout.training.functional import FunctionalBatchNorm
from leaveout.training.losses import sample_losses
from leaveout.training.replay import Replay, State, Step
from leaveout.training.stack import Layer, parse

Curvature = Literal["hessian", "outer"]
"""``outer`` stands in the mean of per-sample gradients' outer products for the Hessian, and takes a
sample's share out of the batch's mean without dividing the rest anew (Wang et al. 2024)."""


CHUNK_BYTES = 64 << 20
"""Aim for the largest intermediate of a module that is differentiated by ``torch.func``."""


def final_gradients(
    module: nn.Module, state: State, inputs: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Return each test sample's gradient in parameters and running statistics.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: Test inputs, (test, ...).
        labels: Test labels, (test,).

    Returns:
        For each parameter, and each buffer that is no counter, (test, *its shape).
    """
    formed = split(module, per_sample_gradients(module, state, inputs, labels))
    out = {name: part.contiguous() for name, part in formed.items()}
    statistics = {
        name: state[name] for name, _ in module.named_buffers() if state[name].is_floating_point()
    }
    if statistics:
        fixed = {name: value for name, value in state.items() if name not in statistics}
        module = copy.deepcopy(module)
        replace_modules(module, _weighted_norm)  # torch's own has no derivative in its statistics
        module.eval()

        def loss(buffers: State, x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(module, {**fixed, **buffers}, (x[None],))
            return sample_losses(outputs, y[None])[0]

        out |= vmap(grad(loss), in_dims=(None, 0, 0))(statistics, inputs, labels)
    return out


def unroll_bytes(module: nn.Module, recipe: Recipe, inputs: Tensor, tests: int) -> float:
    """Return the bytes that :func:`unroll` and its arguments take at their peak."""
    n, p, number = len(inputs), n_parameters(module), inputs.element_size()
    steps = -(-n // recipe.batch_size)
    states = (2 * recipe.epochs + steps) * p
    adjoints = (3 if recipe.momentum else 2) * tests * p
    return number * float(states + adjoints + n * tests)


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
        NotComputableError: The first epoch took so long that all would take longer than allowed, or
            the training was in bfloat16.
    """
    recipe = replay.recipe
    if recipe.precision != "float32":
        raise NotComputableError("undefined", f"{recipe.precision} steps have no exact derivative")
    names = [name for name, _ in replay.module.named_parameters()]
    out = replay.inputs.new_zeros(len(replay.inputs), len(final[names[0]]))
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    if momentum:
        velocity, scale = {name: torch.zeros_like(final[name]) for name in names}, 1.0
    else:  # u is -rate a: a serves as u, and its products are scaled
        velocity, scale = final, -rate / (1 - rate * decay)
    back = _stack_step(replay, curvature) or _other_step(replay, curvature)
    began = time.monotonic()
    for epoch in reversed(range(recipe.epochs)):
        if epoch == recipe.epochs - 2 and (
            (expected := recipe.epochs * (time.monotonic() - began)) > seconds
        ):
            raise NotComputableError(
                "time",
                f"going back through {recipe.epochs} epochs would take {expected / 3600:.2g} hours,"
                f" of {seconds / 3600:.2g} allowed (attribution.hours)",
            )
        for step in reversed(replay.epoch(epoch)):
            for name in names:
                if momentum:
                    velocity[name].mul_(momentum).sub_(final[name], alpha=rate)
                    if decay:
                        final[name].add_(velocity[name], alpha=decay)
                elif decay:
                    final[name].mul_(1 - rate * decay)
            out.index_add_(0, step.batch, back(step, velocity, final, scale))
    return out


Back = Callable[[Step, Mapping[str, Tensor], dict[str, Tensor], float], Tensor]
"""Goes back one step: given u and a, adds scale H u to a and returns scale times the derivative of
the step's gradient in each sample's weight, times u: (samples, test). u and a may be one."""


def _stack_step(replay: Replay, curvature: Curvature) -> Back | None:
    """Return the hand-written way of stacks of linear layers; None for any other module."""
    layers = _layers(replay)
    if layers is None:
        return None
    inputs = replay.inputs.flatten(1)

    def back(
        step: Step, vectors: Mapping[str, Tensor], into: dict[str, Tensor], scale: float
    ) -> Tensor:
        known = _forward_backward(layers, step, inputs[step.batch], replay.labels[step.batch])
        outputs, moved = _moved(layers, step.state, known, vectors)
        # a sample's gradient times u is the derivative of its loss along u
        dots = (outputs * (known.probabilities - known.target)).sum(1)
        scale = scale / len(step.batch)
        if curvature == "outer":
            _add_outer(layers, known, dots, into, scale)
            return dots.T * scale
        _add_hessian(layers, step.state, known, outputs, moved, vectors, into, scale)
        return (dots - dots.mean(1, keepdim=True)).T * scale

    return back


def _layers(replay: Replay) -> list[Layer] | None:
    """Read the replay's module as a stack; its dropout layers are not torch's own any more."""
    plain = copy.deepcopy(replay.module)
    replace_modules(
        plain, lambda m: nn.Dropout(m.probability) if isinstance(m, StreamDropout) else None
    )
    return parse(plain)


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


class _WeightedBatchNorm(FunctionalBatchNorm):
    """Batch norm over weighted samples, with running statistics that can be differentiated.

    Attributes:
        weights: Of the samples of the next forward pass, (samples,).
    """

    weights: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """Normalise by the batch's weighted statistics while training, by the running otherwise."""
        old_mean, old_var = self.running_mean, self.running_var
        assert isinstance(old_mean, Tensor)
        assert isinstance(old_var, Tensor)
        shape = [1, -1, *[1] * (values.dim() - 2)]
        if self.training:
            others = [d for d in range(values.dim()) if d != 1]
            share = self.weights.view(-1, *[1] * (values.dim() - 1))
            count = self.weights.sum() * (values.numel() / values.shape[0] / values.shape[1])
            mean = (values * share).sum(others) / count
            var = ((values - mean.view(shape)).square() * share).sum(others) / count
            keep = 1 - self.momentum
            self.updated = (
                keep * old_mean + self.momentum * mean,
                keep * old_var + self.momentum * var * count / (count - 1),
                torch.empty(0),  # the counter has no derivative
            )
        else:
            mean, var = old_mean, old_var
        normal = (values - mean.view(shape)) * torch.rsqrt(var.view(shape) + self.eps)
        return normal * self.weight.view(shape) + self.bias.view(shape)


def _weighted_norm(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _WeightedBatchNorm(module)
    return None


def _other_step(replay: Replay, curvature: Curvature) -> Back:
    """Return the way of any module, by ``torch.func``."""
    module = copy.deepcopy(replay.module).requires_grad_(False).train()
    replace_modules(module, _weighted_norm)
    norms = {n: m for n, m in module.named_modules() if isinstance(m, _WeightedBatchNorm)}
    dropouts = _in_order(module, replay)
    names = [name for name, _ in module.named_parameters()]

    def outputs(state: State, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        for layer, mask in zip(dropouts, masks, strict=True):
            layer.mask = mask
        found: Tensor = functional_call(module, state, (x,))
        return found

    def loss(
        params: State, buffers: State, weights: Tensor, x: Tensor, y: Tensor, masks: list[Tensor]
    ) -> tuple[Tensor, State]:
        for norm in norms.values():
            norm.weights = weights
        losses = sample_losses(outputs({**params, **buffers}, x, masks), y)
        new = {}
        for name, norm in norms.items():
            assert norm.updated is not None
            new[f"{name}.running_mean"], new[f"{name}.running_var"], _ = norm.updated
            norm.updated = None
        return (losses * weights).sum() / weights.sum(), new

    def exact(
        step: Step, vectors: Mapping[str, Tensor], into: dict[str, Tensor], scale: float
    ) -> Tensor:
        x, y = replay.inputs[step.batch], replay.labels[step.batch]
        params = {name: step.state[name] for name in names}
        statistics = {name: step.state[name] for name in into if name not in params}
        counters = {n: v for n, v in step.state.items() if n not in params | statistics}

        def gradient(p: State, b: State, w: Tensor) -> tuple[State, State]:
            found: tuple[State, State] = grad(loss, has_aux=True)(
                p, {**b, **counters}, w, x, y, step.masks
            )
            return found

        pull: Any = vjp(gradient, params, statistics, x.new_ones(len(x)))[1]
        size = max(1, CHUNK_BYTES // (32 * x.numel() * x.element_size()))
        dots = []
        for start in range(0, len(vectors[names[0]]), size):
            part = slice(start, start + size)
            u = {name: vectors[name][part] for name in names}
            # running statistics are no part of u: their derivative is passed on as it is
            b = {name: into[name][part] / scale for name in statistics}
            changed, passed, weighted = vmap(pull)((u, b))
            for name in names:
                into[name][part] += scale * changed[name]
            for name in statistics:
                into[name][part] = scale * passed[name]
            dots.append(scale * weighted)
        return torch.cat(dots).T

    def outer(
        step: Step, vectors: Mapping[str, Tensor], into: dict[str, Tensor], scale: float
    ) -> Tensor:
        x, y = replay.inputs[step.batch], replay.labels[step.batch]
        params = {name: step.state[name] for name in names}
        fixed = {n: v for n, v in step.state.items() if n not in params}

        def one(p: State, x: Tensor, y: Tensor, masks: list[Tensor]) -> Tensor:
            found = outputs({**p, **fixed}, x[None], [mask[None] for mask in masks])
            return sample_losses(found, y[None])[0]

        found = vmap(grad(one), in_dims=(None, 0, 0, 0))(params, x, y, step.masks)
        formed = {name: found[name].flatten(1) for name in names}
        dots = sum(vectors[name].flatten(1) @ formed[name].T for name in names)
        assert isinstance(dots, Tensor)
        for name in names:
            into[name].flatten(1).addmm_(dots, formed[name], alpha=scale / len(x))
        return dots.T * (scale / len(x))

    if curvature == "outer":
        for norm in norms.values():  # a sample has no gradient of its own in a batch's statistics
            norm.eval()
        return outer
    return exact


def _in_order(module: nn.Module, replay: Replay) -> list[StreamDropout]:
    """Return the copies of the replay's dropout layers, in the order of the forward pass."""
    names = {id(layer): name for name, layer in replay.module.named_modules()}
    copies = dict(module.named_modules())
    found = [copies[names[id(layer)]] for layer in replay.dropouts]
    return [layer for layer in found if isinstance(layer, StreamDropout)]
