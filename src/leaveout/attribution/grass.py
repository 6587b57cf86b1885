"""GraSS: influence in a random part of the gradient, sparsely projected.

Paper: Hu et al. 2025, GraSS: Scalable Data Attribution with Gradient Sparsification and Sparse
Projection, arXiv:2505.18976.
Formula: score[i, j] = sum over parts of g_i' (F + damping I)^-1 g_j at the final state of full run
0, with g = S M grad: M keeps ``blowup`` x projection of the coordinates of a sample's gradient,
drawn at random (and is scaled so that inner products are right on average), S is a sparse
projection with one sign a coordinate, and F the mean of g g' over all training samples. There is
one part, all parameters. ``factored`` is FactGraSS: each linear layer and convolution is a part,
and M keeps some inputs and some outputs of it.
Cost: two passes over the training samples, one backward each; projection^2 memory a part.
Approximated: the Hessian by the empirical Fisher matrix of compressed gradients. The mask is drawn,
not optimised (the paper's selective mask).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from leaveout import seeds
from leaveout.attribution.task import Task
from leaveout.curvature.compressed import compressed_scores
from leaveout.curvature.factored import layer_factors, matrix_layers, samples_at_once
from leaveout.curvature.taps import CHECKED
from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import Factor, gradient_factors
from leaveout.gradients.per_sample import gradient_chunks, n_parameters
from leaveout.gradients.projection import draw_sparse, project
from leaveout.problem.samples import Samples

VERSION = 2  # from 2 on also of convolutions and of layers on sequences


def attribute(
    task: Task, *, damping: float, projection: int, blowup: int = 4, factored: bool = False
) -> Iterator[Tensor]:
    """Yield g_i' (F + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the diagonal of each part's Fisher matrix.
        projection: Numbers of a compressed gradient, of each layer if ``factored``.
        blowup: How many coordinates are kept for each of these.
        factored: Whether to keep rows and columns of each linear layer's weight (FactGraSS).

    Yields:
        (train, test), in blocks of rows.

    Raises:
        LeaveoutError: Nothing would be kept.
        NotComputableError: FactGraSS of a model without such layers.
    """
    if min(projection, blowup) < 1:
        raise LeaveoutError(f"grass: projection = {projection}, blowup = {blowup}; 1 is the least")
    compress = (_of_layers if factored else _of_all)(task, projection, blowup)
    yield from compressed_scores(compress, task.train_blocks, task.test, damping)


Compress = Callable[[Samples], list[Tensor]]


def _of_all(task: Task, projection: int, blowup: int) -> Compress:
    """GraSS: one part, all parameters."""
    size, state = n_parameters(task.module), task.full[0].final
    stream = seeds.generator(task.seed, task.setting, "grass", "mask")
    mask, scale = _mask(stream, size, blowup * projection)
    _check(task, projection, len(mask))
    sketch = draw_sparse(
        len(mask),
        projection,
        task.seed,
        (task.setting, "grass", "projection"),
        task.train.device,
    )
    where = torch.from_numpy(mask).to(task.train.device)

    def compress(samples: Samples) -> list[Tensor]:
        factors = gradient_factors(task.module, state, samples)
        if factors is not None:
            return [project(sketch, _entries(factors, where)) * scale]
        found = [
            project(sketch, gradients[:, where])
            for _, gradients in gradient_chunks(task.module, state, samples)
        ]
        return [torch.cat(found) * scale]

    return compress


def _of_layers(task: Task, projection: int, blowup: int) -> Compress:
    """FactGraSS: each linear layer a part, rows and columns of its weight kept."""
    state, device = task.full[0].final, task.train.device
    layers = matrix_layers(task.module, state, task.train)
    factors = partial(layer_factors, task.module, state, layers=layers)
    first = factors(task.train[:CHECKED])
    at_once = samples_at_once(first)
    side = math.ceil(math.sqrt(blowup * projection))
    parts = []
    for f in first:
        width = f.inputs.shape[2]
        stream = seeds.generator(task.seed, task.setting, "factgrass", "mask", f.name)
        columns, column_scale = _mask(stream, width, side)
        rows, row_scale = _mask(stream, f.deltas.shape[2], side)
        _check(task, projection, len(columns) * len(rows))
        sketch = draw_sparse(
            len(columns) * len(rows),
            projection,
            task.seed,
            (task.setting, "factgrass", "projection", f.name),
            device,
        )
        places = torch.from_numpy(columns).to(device), torch.from_numpy(rows).to(device)
        parts.append((sketch, *places, column_scale * row_scale))

    def some(samples: Samples) -> list[Tensor]:
        found = []
        for f, (sketch, columns, rows, scale) in zip(factors(samples), parts, strict=True):
            a, d = f.inputs[:, :, columns], f.deltas[:, :, rows]
            found.append(project(sketch, (d.mT @ a).flatten(1)) * scale)
        return found

    def compress(samples: Samples) -> list[Tensor]:
        found = [some(part) for part in samples.split(at_once)]
        return [torch.cat(column) for column in zip(*found, strict=True)]

    return compress


def _mask(stream: np.random.Generator, size: int, count: int) -> tuple[np.ndarray, float]:
    """Draw which coordinates are kept, in order, and return the factor they are multiplied by."""
    count = min(size, count)
    return np.sort(stream.permutation(size)[:count]), math.sqrt(size / count)


def _check(task: Task, projection: int, kept: int) -> None:
    rows = max(len(samples) for samples in task.train_blocks())
    task.need(
        24.0 * projection**2 + (8.0 + task.like.element_size()) * rows * (kept + projection),
        "the Fisher matrix and compressed gradients of a block of samples",
    )


def _entries(factors: list[Factor], where: Tensor) -> Tensor:
    """Return some coordinates of the gradients, in order, (samples, coordinates)."""
    found, start = [], 0
    for f in factors:
        width, height = f.inputs.shape[1], f.deltas.shape[1]
        inside = where[(where >= start) & (where < start + width * height)] - start
        found.append(f.deltas[:, inside // width] * f.inputs[:, inside % width])
        start += width * height
        if f.bias:
            inside = where[(where >= start) & (where < start + height)] - start
            found.append(f.deltas[:, inside])
            start += height
    return torch.cat(found, dim=1)
