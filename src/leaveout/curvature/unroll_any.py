"""Going back through the training of any module, by ``torch.func``.

The adjoint of a step is that of the optimiser's pure step
(:func:`leaveout.training.optimisers.step`, with schedule, decay and clipping) and of the gradient
of the weighted batch loss: exact for whatever these are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from leaveout.errors import NotComputableError
from leaveout.problem.call import call_with, slow_paths
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, bytes_of, one_by_one
from leaveout.training.dropout import dropped
from leaveout.training.functional import FunctionalBatchNorm, is_batch_norm, replace_modules
from leaveout.training.optimisers import Slots, new_slots, step
from leaveout.training.reference import same_step
from leaveout.training.replay import Replay, State, Step

Curvature = Literal["hessian", "outer"]
"""``outer`` stands in the mean of per-sample gradients' outer products for the Hessian, and takes a
sample's share out of the batch's mean without dividing the rest anew (Wang et al. 2024)."""

CHUNK_BYTES = 64 << 20
"""Aim for the largest intermediate of a module that is differentiated by ``torch.func``."""


class ByAutograd:
    """Goes back step by step."""

    def __init__(self, replay: Replay, final: dict[str, Tensor], curvature: Curvature) -> None:
        """Begin at the end.

        Args:
            replay: The training.
            final: Each test sample's gradient there, in parameters and running statistics, (test,
                *shape); overwritten.
            curvature: What is taken for the Hessian.
        """
        self.replay, self.curvature = replay, curvature
        self.module = copy.deepcopy(replay.module).requires_grad_(False).train()
        replace_modules(self.module, weighted_norm)
        self.norms = {
            name: m for name, m in self.module.named_modules() if isinstance(m, _WeightedBatchNorm)
        }
        if curvature == "outer":
            for norm in self.norms.values():  # no sample has a gradient of its own in statistics
                norm.eval()
        self.params = {name: final[name] for name in replay.names}
        self.statistics = {n: v for n, v in final.items() if n not in self.params}
        self.slots = new_slots(replay.recipe, self.params)
        self.checked = False

    def back(self, now: Step) -> Tensor:
        """Go back one step; return the derivative in each sample's weight, (samples, test)."""
        replay, samples = self.replay, self.replay.samples[now.batch]
        params = {name: now.state[name] for name in replay.names}
        statistics = {name: now.state[name] for name in self.statistics}
        fixed = {n: v for n, v in now.state.items() if n not in params | statistics}
        weights = params[replay.names[0]].new_ones(len(samples))

        def gradient(p: State, b: State, w: Tensor) -> tuple[State, State]:
            found: tuple[State, State] = grad(self._loss, has_aux=True)(
                p, {**b, **fixed}, w, samples, now.masks
            )
            return found

        def move(p: State, g: State, s: Slots) -> Any:
            return step(replay.recipe, p, g, s, now.number, now.rate, replay.decay)

        with slow_paths():
            known: Any = vjp(gradient, params, statistics, weights)
            (taken, after), pull = known
            (moved, _), back_optimiser = cast("Any", vjp(move, params, taken, now.slots))
            if not self.checked and self.curvature == "hessian":
                self._check(now, {**moved, **after})
            formed = self._formed(now, samples, params, {**statistics, **fixed})
            dots = []
            for part in self._chunks(samples):
                a = {name: value[part] for name, value in self.params.items()}
                kept = {k: {n: v[part] for n, v in of.items()} for k, of in self.slots.items()}
                direct, u, before = vmap(back_optimiser)((a, kept))
                b = {name: value[part] for name, value in self.statistics.items()}
                if formed is None:
                    changed, passed, found = vmap(pull)((u, b))
                else:
                    found, changed, passed = *_outer(u, formed), b
                for name in replay.names:
                    self.params[name][part] = direct[name] + changed[name]
                    for slot, of in before.items():
                        self.slots[slot][name][part] = of[name]
                for name in self.statistics:
                    self.statistics[name][part] = passed[name]
                dots.append(found)
        return torch.cat(dots).T

    def _check(self, last: Step, moved: State) -> None:
        """Compare the last step as it is differentiated with the step that was taken.

        Raises:
            NotComputableError: They differ: something in the model is not differentiated, such as
                a buffer of its own that training changes.
        """
        self.checked = True
        for name, value in self.replay.final.items():
            before = last.state[name]
            if value.is_floating_point() and not same_step(before, moved.get(name, before), value):
                raise NotComputableError(
                    "undefined",
                    f"{name} is moved by training in a way that is not differentiated: beside "
                    "parameters, only batch norm's statistics are",
                )

    def _chunks(self, samples: Samples) -> list[slice]:
        """Cut the test samples, so that what is held of a step stays within ``CHUNK_BYTES``."""
        tests = len(self.params[self.replay.names[0]])
        own = sum(v[0].numel() * v.element_size() for v in self.params.values())
        size = max(1, CHUNK_BYTES // (32 * bytes_of(samples.inputs) + 8 * own))
        return [slice(start, start + size) for start in range(0, tests, size)]

    def _outputs(self, state: State, x: Tree, masks: Sequence[Tensor]) -> Any:
        with dropped(self.replay.sites, masks):
            return call_with(self.module, state, x)

    def _loss(
        self, params: State, rest: State, weights: Tensor, samples: Samples, masks: list[Tensor]
    ) -> tuple[Tensor, State]:
        """Return the weighted loss of a batch, and new statistics."""
        for norm in self.norms.values():
            norm.weights = weights
        outputs = self._outputs({**params, **rest}, samples.inputs, masks)
        value = samples.objective.batch_loss(outputs, samples.targets, weights)
        new = {name: rest[name] for name in self.statistics}
        for name, norm in self.norms.items():
            taken = norm.take(name)
            new |= {key: value for key, value in taken.items() if key in new}  # no counters
        return value, new

    def _formed(
        self, now: Step, samples: Samples, params: State, rest: State
    ) -> dict[str, Tensor] | None:
        """Return each sample's part of the batch's gradient, (samples, *shape), for ``outer``."""
        if self.curvature != "outer":
            return None
        objective = samples.objective

        def loss(p: State, x: Tree, y: Tree, masks: list[Tensor]) -> Tensor:
            return objective.losses(self._outputs({**p, **rest}, x, masks), y)[0]

        def one(x: Tree, y: Tree, masks: list[Tensor]) -> tuple[Tensor, ...]:
            found = grad(loss)(params, x, y, masks)
            return tuple(found[name] for name in params)

        found = one_by_one(one, samples.inputs, samples.targets, now.masks)
        counts = objective.counts
        total = len(samples) if counts is None else counts(samples.targets).sum().to(found[0])
        return {name: value / total for name, value in zip(params, found, strict=True)}


def _outer(u: State, formed: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return u times each sample's part, (test, samples), and the mean outer product times u."""
    n, tests = (len(next(iter(of.values()))) for of in (formed, u))
    flat = {name: part.reshape(n, -1) for name, part in formed.items()}
    dots = sum(u[name].reshape(tests, -1) @ part.T for name, part in flat.items())
    assert isinstance(dots, Tensor)
    # a part is 1/n of a gradient: n times the sum of parts' outer products is the mean of theirs
    changed = {
        name: (n * dots @ flat[name]).view(tests, *part.shape[1:]) for name, part in formed.items()
    }
    return dots, changed


class _WeightedBatchNorm(FunctionalBatchNorm):
    """Batch norm over weighted samples, with running statistics that can be differentiated.

    Attributes:
        weights: Of the samples of the next forward pass, (samples,).
    """

    weights: Tensor

    def forward(self, values: Tensor) -> Tensor:
        """Normalise by the batch's weighted statistics while training, by the running otherwise."""
        if not self.training:
            return super().forward(values)
        others = [d for d in range(values.dim()) if d != 1]
        share = self.weights.view(-1, *[1] * (values.dim() - 1))
        count = self.weights.sum() * (values.numel() / values.shape[0] / values.shape[1])
        mean = (values * share).sum(others) / count
        centred = values - mean.view(1, -1, *[1] * (values.dim() - 2))
        var = (centred.square() * share).sum(others) / count
        if self.running_mean is not None:
            self._update(mean, var * count / (count - 1))
        return self._normal(values, mean, var)


def weighted_norm(module: nn.Module) -> nn.Module | None:
    """Return a batch norm over weighted samples in the place of a batch norm."""
    return _WeightedBatchNorm(module) if is_batch_norm(module) else None
