"""TRAK: least squares of the models' margins in randomly projected gradients.

Paper: Park et al. 2023, TRAK: Attributing Model Behavior at Scale, arXiv:2303.14186. Masks: Deng et
al. 2024, Efficient Ensembles Improve Training Data Attribution, arXiv:2405.17293. Relative: Barshan
et al. 2020, RelatIF, arXiv:2003.11630.
Formula: score[i, j] = mean over models of x_i' K x_j, times mean over models of c_i (1 - p_i), with
x = P grad(margin), margin = log p - log(1 - p), p a sample's probability of its label, X the
training samples' x, K = (X'X)^-1, and c_i how often a sample counts in the training loss: 1, or its
class's weight, or its number of tokens or labels, over the mean count where it is divided by that.
The models are half models, each with its own P. With
``relative`` it is the mean over models of x_i' K x_j / sqrt(x_i' K x_i): RelatIF divides by the
norm of the training sample's loss gradient -c_i (1 - p_i) x_i in K, and c_i (1 - p_i) cancels.
Where a sample has several targets (tokens, labels), p is the geometric mean of their probabilities:
its loss is then c_i times their mean loss -log p. Of smoothed labels the smoothing is left out.
What is attributed is the test sample's margin, whatever else the setting's ``measure`` says.
Cost: one backward pass a sample and model, its projection, and n x projection^2; memory of n_train
x (n_test + projection).
Approximated: the loss by the margin, which is linear in the parameters near the model; the Hessian
by X'X; both by what the projection keeps. Where X'X is singular (more dimensions than training
samples or parameters, say) K is its pseudo-inverse, the limit of a vanishing regularisation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leaveout import seeds
from leaveout.attribution.task import State, Task
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import n_parameters
from leaveout.gradients.projection import Projection, draw, projected_gradients
from leaveout.problem.call import call_with, slow_paths
from leaveout.problem.samples import Samples
from leaveout.training.dropout import Site, draw_masks, dropout_sites, dropped

NEEDS = ("half",)

NEEDS_MARGIN = "TRAK is about the log odds of a sample's target"

ROWS = 4096
"""Samples in one forward pass, or in one product in double precision."""

COLUMNS = 128
"""Columns of X'X in one product."""


def attribute(
    task: Task,
    *,
    models: int,
    projection: int,
    projector: str = "sparse",
    masks: int = 0,
    relative: bool = False,
) -> Iterator[Tensor]:
    """Yield TRAK scores.

    Args:
        task: The task.
        models: How many half models, from the first on.
        projection: Dimensions that gradients are projected to.
        projector: ``sparse``, ``rademacher``, or ``identity``, which takes all dimensions there
            are. The first two keep inner products alike; the second takes far longer.
        masks: Dropout masks drawn for each model; each makes another model of it. 0 for none.
        relative: Whether to divide by the training sample's own norm, as RelatIF does.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        LeaveoutError: The setting has fewer half models, or the projector is unknown.
        NotComputableError: The objective has no log odds, or there are masks to draw and the model
            has no dropout.
    """
    n, m, number = len(task.train), len(task.test), task.like.element_size()
    members = _members(task, models, projection, projector, masks)
    width = n_parameters(task.module) if projector == "identity" else projection
    task.need(
        number * float(n) * (m + width) + 24.0 * width**2, "scores and one model's projections"
    )
    total = task.like.new_zeros(n, m)
    doubt = task.like.new_zeros(n)
    for member in members:
        x = _features(task, member, task.train)
        kernel = _kernel(x)
        solved = (_features(task, member, task.test).double() @ kernel).to(x.dtype)
        if relative:
            x = x / _leverage(x, kernel).sqrt().clamp_min(torch.finfo(x.dtype).tiny)[:, None]
        else:
            doubt += _doubt(task, member, task.train)
        total.addmm_(x, solved.T)
    count = models * max(masks, 1)
    total /= count
    if not relative:
        total *= (doubt / count)[:, None]
    start = 0
    for block in task.train_blocks():
        yield total[start : start + len(block)]
        start += len(block)


def self_influence(
    task: Task,
    *,
    models: int,
    projection: int,
    projector: str = "sparse",
    masks: int = 0,
    relative: bool = False,
) -> Tensor:
    """Return the score of each training sample for itself, (train,); arguments: ``attribute``'s."""
    total = task.like.new_zeros(len(task.train))
    doubt = torch.zeros_like(total)
    for member in _members(task, models, projection, projector, masks):
        x = _features(task, member, task.train)
        leverage = _leverage(x, _kernel(x))
        total += leverage.sqrt() if relative else leverage
        doubt += _doubt(task, member, task.train)
    count = models * max(masks, 1)
    return total / count if relative else total * doubt / count**2


@dataclass(frozen=True)
class _Member:
    module: nn.Module
    state: State
    projection: Projection


def _members(
    task: Task, models: int, projection: int, projector: str, masks: int
) -> Iterator[_Member]:
    """Check what was asked for, and give one model with its projection after the other."""
    if not 1 <= models <= len(task.half):
        raise LeaveoutError(
            f"trak.models: {models} were asked for, {task.setting} has {len(task.half)} half "
            "models; lower trak.models in the methods file or raise half.runs in the setting"
        )
    sites = dropout_sites(task.module, task.train[:1].inputs) if masks else []
    if masks and not sites:
        raise NotComputableError("undefined", "the model has no dropout")
    task.objective.need("margin", NEEDS_MARGIN)
    size, device = n_parameters(task.module), task.train.device
    # the checks are outside of the generator, so that they come before any computation
    return (
        _Member(
            _masked(task, sites, run, mask) if masks else task.module,
            task.half[run].final,
            draw(
                projector,
                size,
                projection,
                task.seed,
                (task.setting, "trak", "projection", run, mask),
                device,
            ),
        )
        for run in range(models)
        for mask in range(max(masks, 1))
    )


def _masked(task: Task, sites: Sequence[Site], run: int, mask: int) -> nn.Module:
    """Return the model with some units dropped: the same ones for all samples."""
    module = copy.deepcopy(task.module).train()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    stream = seeds.generator(task.seed, task.setting, "trak", "dropout", run, mask)
    drawn = [torch.from_numpy(m).to(task.train.device) for m in draw_masks(stream, 1, sites)]
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **named: Any) -> Any:
        with dropped(sites, drawn):
            return kind.forward(self, *args, **named)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


def _features(task: Task, member: _Member, samples: Samples) -> Tensor:
    margin = task.objective.margin
    return projected_gradients(member.projection, member.module, member.state, samples, margin)


def _doubt(task: Task, member: _Member, samples: Samples) -> Tensor:
    """Return c (1 - p) of each sample's target: minus the loss's derivative in its margin."""
    margin = task.objective.need("margin", NEEDS_MARGIN)
    known = None if task.objective.plain else samples.objective.likelihood
    found = []
    with torch.no_grad(), slow_paths():
        for part in samples.split(ROWS):
            outputs = call_with(member.module, member.state, part.inputs)
            doubt = torch.sigmoid(-margin(outputs, part.targets))
            if known is not None:
                mass = known.mass(known.outputs(outputs), part.targets)
                doubt = doubt * mass.reshape(len(part), -1).sum(1)
            found.append(doubt)
    return torch.cat(found)


def _kernel(x: Tensor) -> Tensor:
    """Return the inverse, or pseudo-inverse, of X'X, in double precision."""
    gram = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for rows in x.split(ROWS):
        double = rows.double()
        for start in range(0, len(gram), COLUMNS):  # nothing above the diagonal is read
            some = slice(start, start + COLUMNS)
            gram[start:, some].addmm_(double[:, start:].T, double[:, some])
    if not gram.isfinite().all():  # a diverged model: its scores are not numbers, and are counted
        return torch.full_like(gram, float("nan"))
    # a zero eigenvalue after rounding: of X, squared, and of the product
    tiny = max(x.shape) * (torch.finfo(x.dtype).eps ** 2 + torch.finfo(gram.dtype).eps)
    lower, failed = torch.linalg.cholesky_ex(gram)
    pivots = lower.diagonal().square()
    if not failed and bool(pivots.min() > tiny * pivots.max()):
        return torch.cholesky_inverse(lower)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > tiny * values[-1]
    vectors = vectors[:, kept]
    return torch.as_tensor(vectors / values[kept] @ vectors.T)


def _leverage(x: Tensor, kernel: Tensor) -> Tensor:
    """Return x_i' K x_i of each sample, (samples,)."""
    found = [((rows.double() @ kernel) * rows).sum(1) for rows in x.split(ROWS)]
    return torch.cat(found).clamp_min(0).to(x.dtype)
