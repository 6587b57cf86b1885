"""The proximal Bregman response: where a model goes when one sample's weight changes.

Papers: Bae, Ng, Lo, Ghassemi and Grosse 2022, If Influence Functions are the Answer, Then What is
the Question?, arXiv:2209.05364; Grosse et al. 2023, arXiv:2308.03296, Eq. 7-9.
Formula: theta(eps) = argmin (1/N) sum_i D_i(h(theta, x_i), h(theta_s, x_i)) + eps L(z_m, theta)
+ (damping / 2) |theta - theta_s|^2, D_i the Bregman divergence of the loss in the outputs, for
cross-entropy KL(p_s || p_theta). Removing z_m is eps = -1/N. theta_s need not be an optimum of
anything; weight decay is no part of it, dropout is off and batch norm in evaluation mode.
Method: Newton's with the Gauss-Newton matrix of the whole objective at the current point,
conjugate gradients preconditioned by the matrix at theta_s, which all points share, and a line
search on the objective. The weight of z_m in that matrix is 1/N + eps: at removal the sample's
curvature cancels, and the matrix stays positive definite although eps L is concave.
Cost: some ten to fifty products with the Gauss-Newton matrix a point, each about two passes over
the training samples, and a few gradients.
Kinks: a ReLU or a pooling makes the objective piecewise smooth, and its minimum may lie where a
unit of z_m switches. There the gradient is small on neither side, so that such a point is not
called converged, low as it may be; its gradient norm tells the size of the jump.
Approximated: nothing. Values and gradients are in float64, so that a displacement of 1e-6 of the
parameters is resolved; curvature, which decides the speed only, has the module's dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.curvature.bregman import loss_of
from leaveout.curvature.cg import conjugate_gradients
from leaveout.curvature.hessian import hessian
from leaveout.curvature.hvp import split
from leaveout.curvature.linearise import (
    Linearised,
    linearise_module,
    linearise_stack,
    output_shape,
    output_slopes,
)
from leaveout.curvature.nystrom import nystrom
from leaveout.problem.call import numbers, state_of, trained
from leaveout.problem.samples import Samples
from leaveout.problem.trees import floating
from leaveout.training.memory import in_blocks
from leaveout.training.stack import stack_of

Solver = Literal["newton_cg", "sgd", "adam"]

STACK_BYTES = 256 << 20
"""Activations of the models solved for at once."""

DENSE = 10_000
"""Parameters up to which one linear layer's curvature at theta_s is factored as a matrix."""

SKETCH_BYTES = 256 << 20
"""The sketch that preconditions larger models."""

ITERATIONS = 200
"""Products a Newton step, at most."""

HALVINGS = 12
"""How often a step is halved before it is given up."""


IDLE = 3
"""Newton steps in a row without progress, after which a point is given up: the objective of a ReLU
network can have its minimum at a kink, where no gradient is small."""


@dataclass(frozen=True)
class Proximal:
    """The optima of the proximal Bregman objective of some points.

    Attributes:
        state: Stacked parameters and buffers, (points, ...), parameters in float64: float32 could
            not hold the displacement.
        gradient_norm: L2 norm of the objective's gradient there, (points,), float64.
        initial_norm: The same at theta_s, |eps| |grad L(z_m)|.
        steps: Steps taken, (points,), int64.
        converged: gradient_norm <= tolerance * initial_norm, (points,), bool.
    """

    state: dict[str, Tensor]
    gradient_norm: Tensor
    initial_norm: Tensor
    steps: Tensor
    converged: Tensor


def solve_proximal(
    module: nn.Module,
    samples: Samples,
    points: Sequence[int],
    *,
    epsilon: float | None = None,
    damping: float,
    solver: Solver = "newton_cg",
    steps: int = 50,
    tolerance: float = 1e-4,
    learning_rate: float = 0.01,
    progress: Callable[[int], object] | None = None,
    by_hand: bool = True,
    stack_size: int | None = None,
) -> Iterator[tuple[list[int], Proximal]]:
    """Minimise the proximal Bregman objective for each of some training samples.

    Args:
        module: The model at theta_s; neither it nor its mode is changed. Parameters that require no
            gradient stay where they are, unless none does.
        samples: All training samples; the mean of their losses is what training minimised.
        points: Positions of samples, one optimum each.
        epsilon: Change of the sample's weight, where all weights are 1 / samples; None removes it.
        damping: lambda, positive.
        solver: ``newton_cg``; or plain full-batch steps of ``sgd`` or ``adam``, as many as
            ``steps`` unless the tolerance is reached before.
        steps: Steps at most.
        tolerance: Gradient norm, relative to that at theta_s, at which a point has converged.
        learning_rate: Of the plain steps.
        progress: Called with the number of points that have just been finished.
        by_hand: Whether stacks of linear layers take the hand-written way.
        stack_size: Points at once; by default what keeps activations below ``STACK_BYTES``.

    Yields:
        (points, optima), together all points in order.

    Raises:
        ValueError: The damping is not positive, or a point is not among the samples.
        NotComputableError: The objective states no curvature, so that no divergence is known.
        LeaveoutError: One point alone does not fit into the device's memory.
    """
    if damping <= 0:
        raise ValueError(f"damping must be positive, not {damping}")
    if any(not 0 <= point < len(samples) for point in points):
        raise ValueError(f"points must lie in 0 .. {len(samples) - 1}")
    eps = -1 / len(samples) if epsilon is None else epsilon
    problem = _Problem(module, samples, eps, damping, by_hand, len(points))

    def work(rows: slice) -> Proximal:
        where = torch.tensor(points[rows], device=samples.device)
        if solver == "newton_cg":
            at, initial, taken = _newton(problem, where, steps, tolerance)
        else:
            plain = (learning_rate, solver)
            at, initial, taken = _plain(problem, where, steps, tolerance, *plain)
        final = at.gradient.norm(dim=1)
        state = problem.state(at.moved)
        return Proximal(state, final, initial, taken, final <= tolerance * initial)

    size = stack_size or problem.stack_size()
    for rows, found in in_blocks(work, len(points), size, "points solved at once"):
        yield list(points[rows]), found
        if progress is not None:
            progress(rows.stop - rows.start)


@dataclass
class _At:
    """Where the points stand; all float64.

    Attributes:
        moved: theta - theta_s, (points, parameters).
        value: The objective, less its value at theta_s, (points,).
        gradient: (points, parameters).
    """

    moved: Tensor
    value: Tensor
    gradient: Tensor

    def take(self, rows: Tensor) -> _At:
        return _At(self.moved[rows], self.value[rows], self.gradient[rows])

    def put(self, rows: Tensor, other: _At) -> None:
        self.moved[rows] = other.moved
        self.value[rows] = other.value
        self.gradient[rows] = other.gradient


class _Problem:
    """The objective of all points, and its curvature."""

    def __init__(
        self,
        module: nn.Module,
        samples: Samples,
        epsilon: float,
        damping: float,
        by_hand: bool,
        points: int,
    ) -> None:
        self.module = copy.deepcopy(module).eval().to(samples.device)
        self.layers = stack_of(module, samples) if by_hand else None
        if self.layers is not None and len(trained(module)) < 2 * len(self.layers):
            self.layers = None  # some stay where they are
        self.epsilon, self.damping, self.points = epsilon, damping, points
        self.n, self.samples = len(samples), samples
        self.dtype = numbers(self.module).dtype
        self.given: dict[torch.dtype, Any] = {}
        for dtype in {self.dtype, torch.float64}:
            inputs = floating(samples.inputs, dtype)
            if self.layers is not None:
                self.given[dtype] = inputs.flatten(1).T.contiguous()
            else:
                self.given[dtype] = replace(samples, inputs=inputs)
        state = state_of(self.module)
        names = [*trained(self.module)]
        self.buffers = {name: value for name, value in state.items() if name not in names}
        self.start = torch.cat([state[name].double().flatten() for name in names])
        self.loss = loss_of(samples, output_shape(self.module, state, samples))
        reference = self.linearise(torch.zeros_like(self.start)[None], torch.float64).outputs
        self.reference = reference
        self.reference_mean = self.loss.mean(reference)
        # a divergence is about half the square of what the outputs move: this times its root is
        # how much of it the rounding of outputs may change
        self.noise = 16 * torch.finfo(torch.float64).eps * max(1.0, float(reference.abs().max()))
        self.targets = self._targets()

    def _targets(self) -> Tensor:
        """Return t of the losses Phi(h) - <t, h>, (numbers, samples), float64."""
        if self.samples.objective.plain:
            classes = self.reference.shape[1]
            return functional.one_hot(self.samples.targets, classes).T.double()
        wide = {
            name: value.double() if value.is_floating_point() else value
            for name, value in state_of(self.module).items()
        }
        slopes = output_slopes(self.module, wide, self.samples.double())
        return self.reference_mean[0] - slopes

    def stack_size(self) -> int:
        """Return how many points to solve for at once."""
        if self.layers is None:
            # mapped over models, convolutions are slower on a CPU than one at a time
            return 64 if self.start.is_cuda else 1
        width = sum(layer.width for layer in self.layers)
        # in float64, and about as much again for the products' vectors
        bytes_each = 16 * (width * self.n + 8 * len(self.start))
        return max(1, min(64, STACK_BYTES // bytes_each))

    def linearise(self, moved: Tensor, dtype: torch.dtype) -> Linearised:
        state = {k: v.to(dtype) for k, v in split(self.module, self.start + moved).items()}
        if self.layers is not None:
            return linearise_stack(self.layers, state, self.given[dtype])
        for name, value in self.buffers.items():
            state[name] = value.to(dtype) if value.is_floating_point() else value
        return linearise_module(self.module, state, self.given[dtype])

    def flat(self, parts: dict[str, Tensor]) -> Tensor:
        names = [*trained(self.module)]
        return torch.cat([parts[name].reshape(len(parts[name]), -1) for name in names], dim=1)

    def begin(self, points: Tensor) -> _At:
        """Evaluate the objective at theta_s, where the divergences are exactly nothing."""
        rows = torch.arange(len(points), device=points.device)
        there = self.linearise(torch.zeros_like(self.start)[None], torch.float64)
        pulled = self.reference.new_zeros(len(points), *self.reference.shape[1:])
        own = self.reference_mean[0].T[points] - self.targets.T[points]
        pulled[rows, :, points] = self.epsilon * own
        gradient = self.flat(there.pull(pulled))
        return _At(torch.zeros_like(gradient), gradient.new_zeros(len(points)), gradient)

    def evaluate(self, moved: Tensor, points: Tensor) -> _At:
        """Evaluate the objective.

        Args:
            moved: (points, parameters).
            points: Their samples, (points,).
        """
        there = self.linearise(moved, torch.float64)
        outputs, rows = there.outputs, torch.arange(len(points), device=points.device)
        divergences = self.loss.divergence(outputs, self.reference)
        mean = self.loss.mean(outputs)
        target = self.targets.T[points]
        # L(theta) - L(theta_s) is the divergence and a linear part
        change = outputs[rows, :, points] - self.reference[0].T[points]
        slope = self.reference_mean[0].T[points] - target
        own = divergences[rows, points] + (slope * change).sum(1)
        value = divergences.mean(1) + self.epsilon * own
        value += self.damping / 2 * moved.square().sum(1)
        pulled = (mean - self.reference_mean) / self.n
        pulled[rows, :, points] += self.epsilon * (mean[rows, :, points] - target)
        gradient = self.flat(there.pull(pulled)) + self.damping * moved
        return _At(moved, value, gradient)

    def products(
        self, there: Linearised, points: Tensor | None, damping: float
    ) -> Callable[[Tensor], Tensor]:
        """Return products with the Gauss-Newton matrix; without points, that of D alone."""

        def product(vectors: Tensor) -> Tensor:
            pushed = there.push(split(self.module, vectors))
            curved = self.loss.curve(there.outputs, pushed) / self.n
            if points is not None:
                rows = torch.arange(len(points), device=points.device)
                curved[rows, :, points] *= max(0.0, 1 + self.epsilon * self.n)
            found = self.flat(there.pull(curved))
            return found.add_(vectors, alpha=damping) if damping else found

        return product

    @cached_property
    def at_start(self) -> Linearised:
        """theta_s, which all points share, for curvature."""
        return self.linearise(torch.zeros_like(self.start)[None], self.dtype)

    @cached_property
    def precondition(self) -> Callable[[Tensor], Tensor] | None:
        """A matrix near the inverse of the curvature at theta_s."""
        size = len(self.start)
        linear = self.layers is not None and len(self.layers) == 1
        if linear and size <= DENSE and self.points > 8:
            matrix = hessian(self.module, state_of(self.module), self.samples)
            matrix.diagonal().add_(self.damping)
            lower = torch.linalg.cholesky(matrix)
            return lambda v: torch.cholesky_solve(v.double().T, lower).T.to(v.dtype)
        most = SKETCH_BYTES // (size * self.start.element_size())
        # a sketch takes as many products as it has columns, and saves some tens a point
        rank = min(size, 512, most, 8 * self.points)
        if rank < 16:
            return None
        product = self.products(self.at_start, None, 0.0)
        like = self.start.to(self.dtype)
        return nystrom(product, like, rank, self.damping, self.stack_size())

    def state(self, moved: Tensor) -> dict[str, Tensor]:
        """Return the stacked state, (points, ...), parameters in float64."""
        state = split(self.module, self.start + moved)
        for name, value in self.buffers.items():
            state[name] = value.expand(len(moved), *value.shape).clone()
        return state


def _newton(
    problem: _Problem, points: Tensor, steps: int, tolerance: float
) -> tuple[_At, Tensor, Tensor]:
    at = problem.begin(points)
    initial = at.gradient.norm(dim=1)
    taken = torch.zeros_like(points)
    idle, best = torch.zeros_like(points), initial.clone()
    for step in range(steps):
        norms = at.gradient.norm(dim=1)
        rows = ((idle < IDLE) & (norms > tolerance * initial)).nonzero()[:, 0]
        if not len(rows):
            break
        here, which = at.take(rows), points[rows]
        # at theta_s the points share the network's pass
        there = problem.linearise(here.moved, problem.dtype) if step else problem.at_start
        scale = norms[rows, None]
        wanted = (0.5 * tolerance * initial[rows] / norms[rows]).clamp(1e-2, 0.5)
        direction = (
            -scale
            * conjugate_gradients(
                problem.products(there, which, problem.damping),
                (here.gradient / scale).to(problem.dtype),
                ITERATIONS,
                wanted.to(problem.dtype),
                problem.precondition,
            ).double()
        )
        found, moved = _search(problem, here, direction, which)
        fall = (here.value - found.value) / found.value.abs()
        reached = found.gradient.norm(dim=1)
        still = (fall < 1e-5) & (reached > 0.8 * best[rows])
        best[rows] = torch.minimum(best[rows], reached)
        idle[rows] = torch.where(still, idle[rows] + 1, 0)
        idle[rows[~moved]] = IDLE
        at.put(rows, found)
        taken[rows] += 1
    return at, initial, taken


def _search(problem: _Problem, here: _At, direction: Tensor, points: Tensor) -> tuple[_At, Tensor]:
    """Go down a direction; return where to, and which points moved.

    A step is taken if the objective falls by a part of what its slope promises (Armijo); or, where
    the fall drowns in rounding, if the slope at the new place says so (Hager and Zhang 2005).
    """
    slope = (here.gradient * direction).sum(1)
    up = ~(slope < 0)
    direction = torch.where(up[:, None], -here.gradient, direction)
    slope = torch.where(up, -here.gradient.square().sum(1), slope)
    out = here.take(torch.arange(len(points), device=points.device))
    waiting = torch.arange(len(points), device=points.device)
    length = 1.0
    for _ in range(HALVINGS):
        old, way = here.take(waiting), direction[waiting]
        trial = problem.evaluate(old.moved + length * way, points[waiting])
        fall, promised = trial.value - old.value, slope[waiting]
        flat = fall.abs() <= problem.noise * old.value.abs().sqrt()
        good = fall <= 1e-4 * length * promised
        good |= flat & ((trial.gradient * way).sum(1).abs() <= 0.9 * promised.abs())
        good &= trial.gradient.isfinite().all(1)
        done = waiting[good]
        out.put(done, trial.take(good.nonzero()[:, 0]))
        waiting = waiting[~good]
        if not len(waiting):
            break
        length /= 2
    moved = torch.ones_like(points, dtype=torch.bool)
    moved[waiting] = False
    return out, moved


def _plain(
    problem: _Problem,
    points: Tensor,
    steps: int,
    tolerance: float,
    learning_rate: float,
    solver: Solver,
) -> tuple[_At, Tensor, Tensor]:
    """Take steps of plain gradient descent, or of Adam (Kingma and Ba 2015) as torch sets it."""
    at = problem.begin(points)
    moved = at.moved.clone().requires_grad_()
    kind = torch.optim.Adam if solver == "adam" else torch.optim.SGD
    optimiser = kind([moved], lr=learning_rate)
    initial = at.gradient.norm(dim=1)
    taken = torch.zeros_like(points)
    going = initial > 0
    for _ in range(steps):
        if not going.any():
            break
        before = moved.detach().clone()
        moved.grad = at.gradient
        optimiser.step()
        with torch.no_grad():
            moved[~going] = before[~going]  # Adam would go on by its momentum
        taken += going
        at = problem.evaluate(moved.detach(), points)
        going &= at.gradient.norm(dim=1) > tolerance * initial
    return at, initial, taken
