"""LoGra: influence in gradients whose two factors are projected, layer by layer.

Paper: Choe et al. 2024, What is Your Data Worth to GPT?, arXiv:2405.13954.
Formula: score[i, j] = sum over layers of g_i' (F + damping I)^-1 g_j at the final state of full run
0, with g = sum_t (Q d_t) (P a_t)' of a layer's inputs a_t at positions t (1 appended for the bias)
and output gradients d_t of a sample's loss, and F the mean of g g' over all training samples. The
layers are linear ones and convolutions; other parameters have no part in it. With ``pca`` the rows
of P and Q are the eigenvectors of E[a a'] and E[d d'] with the largest eigenvalues, with ``random``
normal numbers of variance 1 / rank.
Cost: three passes over the training samples, one backward each; rank^4 memory a layer.
Approximated: the Hessian by the empirical Fisher matrix without blocks across layers; gradients by
their rank x rank projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from leaveout import seeds
from leaveout.attribution.task import Task
from leaveout.curvature.compressed import compressed_scores
from leaveout.curvature.factored import (
    Sequences,
    layer_factors,
    matrix_layers,
    samples_at_once,
)
from leaveout.errors import LeaveoutError
from leaveout.problem.samples import Samples

VERSION = 2  # from 2 on also of convolutions and of layers on sequences


def attribute(task: Task, *, damping: float, rank: int, start: str = "pca") -> Iterator[Tensor]:
    """Yield g_i' (F + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the diagonal of each layer's Fisher matrix.
        rank: Dimensions that inputs, and output gradients, are projected to; a layer with fewer
            keeps all of them.
        start: Which directions they are projected on: ``pca`` or ``random``.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        LeaveoutError: ``start`` is unknown, or the rank is not positive.
        NotComputableError: The model has no linear layer and no convolution.
    """
    if start not in ("pca", "random") or rank < 1:
        raise LeaveoutError(
            f"logra: start = {start!r} and rank = {rank}; valid: pca or random, and 1 or more"
        )
    layers = matrix_layers(task.module, task.full[0].final, task.train)
    factors = partial(layer_factors, task.module, task.full[0].final, layers=layers)
    first = factors(task.train[:2])
    at_once = samples_at_once(first)
    number, m = task.like.element_size(), len(task.test)
    sizes = [(min(rank, f.inputs.shape[2]), min(rank, f.deltas.shape[2])) for f in first]
    numbers = [p * q for p, q in sizes]
    block = max(len(samples) for samples in task.train_blocks())
    held = 24.0 * sum(k**2 for k in numbers) + (number + 8.0) * max(numbers) * block
    task.need(held + 2.0 * number * m * sum(numbers), "Fisher matrices of projected gradients")
    pairs = (
        _directions(map(factors, task.train.split(at_once)), sizes)
        if start == "pca"
        else _random(task, first, sizes)
    )

    def project(samples: Samples) -> list[Tensor]:
        found = [
            [
                ((f.deltas @ q).mT @ (f.inputs @ p)).flatten(1)
                for f, (p, q) in zip(factors(some), pairs, strict=True)
            ]
            for some in samples.split(at_once)
        ]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    yield from compressed_scores(project, task.train_blocks, task.test, damping)


def _directions(
    factors: Iterable[list[Sequences]], sizes: list[tuple[int, int]]
) -> list[tuple[Tensor, Tensor]]:
    """Return the first principal axes of inputs and output gradients, (numbers, rank) each."""
    sums: list[tuple[Tensor, Tensor]] = []
    like = torch.empty(0)
    for some in factors:
        like = some[0].inputs
        found = [
            (a.T @ a, d.T @ d)
            for a, d in (
                (f.inputs.double().flatten(0, 1), f.deltas.double().flatten(0, 1)) for f in some
            )
        ]
        if not sums:
            sums = found
            continue
        for (aa, dd), (more_aa, more_dd) in zip(sums, found, strict=True):
            aa += more_aa
            dd += more_dd
    return [
        (
            torch.linalg.eigh(aa).eigenvectors[:, -p:].to(like),
            torch.linalg.eigh(dd).eigenvectors[:, -q:].to(like),
        )
        for (aa, dd), (p, q) in zip(sums, sizes, strict=True)
    ]


def _random(
    task: Task, factors: list[Sequences], sizes: list[tuple[int, int]]
) -> list[tuple[Tensor, Tensor]]:
    """Draw normal directions, (numbers, rank) each."""

    def draw(rows: int, columns: int, name: str, side: str) -> Tensor:
        stream = seeds.generator(task.seed, task.setting, "logra", name, side)
        drawn = torch.from_numpy(stream.standard_normal((rows, columns)) / columns**0.5)
        return drawn.to(task.like)

    return [
        (draw(f.inputs.shape[2], p, f.name, "in"), draw(f.deltas.shape[2], q, f.name, "out"))
        for f, (p, q) in zip(factors, sizes, strict=True)
    ]
