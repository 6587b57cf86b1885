"""What the methods with Kronecker-factored curvature share: their samples and their scores.

Where all layers are linear and see one input a sample, gradients stay factored: in the
eigenvectors' basis a gradient is (Q_out' d) (Q_in' a)', and the inverse divides its numbers by
eigenvalue plus damping. No vector is turned there and back.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from leaveout.attribution.task import Task
from leaveout.curvature.kfac import (
    Curvature,
    Samples,
    empirical_fisher,
    inverse,
    true_fisher,
)
from leaveout.curvature.taps import supported, sweep
from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import gradient_factors
from leaveout.gradients.per_sample import (
    gradient_chunks,
    gradient_products,
    per_sample_gradients,
)
from leaveout.training.losses import sample_losses

Batch = tuple[Tensor, Tensor]

BATCH_BYTES = 128 << 20
"""Inputs of all layers, as the sums take them, held at once, about."""
VECTOR_BYTES = 256 << 20
"""Solved test gradients held at once, at most."""
TRAIN_BYTES = 16 << 20
"""Training gradients formed at once, at most: few enough to stay near the cache."""


def task_samples(task: Task, fisher: str) -> Samples:
    """Describe full run 0 of a task and its training samples to K-FAC and EK-FAC.

    Args:
        task: The task.
        fisher: ``true``: labels are the model's own; ``empirical``: the samples'.

    Raises:
        LeaveoutError: There is no such Fisher.
    """
    state = {name: value.detach() for name, value in task.full[0].final.items()}

    def logits(module: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = functional_call(module, state, (batch[0],))
        return outputs

    match fisher:
        case "true":
            ids = task.train.ids
            outputs = true_fisher(logits, lambda number: f"{task.setting} {ids[number]}", task.seed)
        case "empirical":
            outputs = empirical_fisher(lambda m, batch: sample_losses(logits(m, batch), batch[1]))
        case other:
            raise LeaveoutError(f"fisher: expected true or empirical, got {other!r}")
    inputs, labels = task.train.inputs, task.train.labels
    one = [(inputs[:1], labels[:1])]
    (seen,) = sweep(task.module, supported(task.module), one, outputs)
    numbers = sum(a.numel() for a in seen.inputs.values())
    size = max(1, BATCH_BYTES // (max(1, numbers) * inputs.element_size()))
    batches = list(zip(inputs.split(size), labels.split(size), strict=True))
    return Samples(task.module, batches, outputs)


def scores(task: Task, curvature: Curvature, damping: float) -> Iterator[Tensor]:
    """Yield g_i' (curvature + damping I)^-1 g_j at full run 0, (train, test), in blocks of rows."""
    state = task.full[0].final
    right = _rotated(task, curvature, task.test.inputs, task.test.labels)
    if right is None:
        gradients = per_sample_gradients(task.module, state, task.test.inputs, task.test.labels)
        solved = curvature.solve(gradients, damping)
        for block in task.train_blocks():
            yield gradient_products(task.module, state, block.inputs, block.labels, solved)
        return
    for block in task.train_blocks():
        left = _rotated(task, curvature, block.inputs, block.labels)
        assert left is not None
        total = right[0][1].new_zeros(len(block.ids), len(task.test.ids))
        for (a, d), (b, e), part in zip(left, right, curvature.blocks, strict=True):
            scale = inverse(part.values, damping).to(a)
            _add_products(total, (a, d), (b, e), scale)
        yield total


def self_scores(task: Task, curvature: Curvature, damping: float) -> Tensor:
    """Return g_i' (curvature + damping I)^-1 g_i for every training sample, (train,)."""
    found = []
    for block in task.train_blocks():
        rotated = _rotated(task, curvature, block.inputs, block.labels)
        if rotated is not None:
            parts = [
                ((d.square() @ inverse(part.values, damping).to(d)) * a.square()).sum(1)
                for (a, d), part in zip(rotated, curvature.blocks, strict=True)
            ]
            found.append(torch.stack(parts).sum(0))
            continue
        state = task.full[0].final
        for _, g in gradient_chunks(task.module, state, block.inputs, block.labels):
            found.append((g * curvature.solve(g, damping)).sum(1))
    return torch.cat(found)


def _rotated(
    task: Task, curvature: Curvature, inputs: Tensor, labels: Tensor
) -> list[tuple[Tensor, Tensor]] | None:
    """Return every layer's a Q_in and d Q_out, None where gradients do not factor."""
    if curvature.other or any(block.into is None for block in curvature.blocks):
        return None
    factors = gradient_factors(task.module, task.full[0].final, inputs, labels)
    if factors is None:
        return None
    known = {block.names[0]: block for block in curvature.blocks}
    found = []
    for f in factors:
        block = known[f"{f.name}.weight" if f.name else "weight"]
        assert block.into is not None
        assert block.out is not None
        a = functional.pad(f.inputs, (0, 1), value=1.0) if f.bias else f.inputs
        found.append((a @ block.into.to(a), f.deltas @ block.out.to(a)))
    return found


def _add_products(
    total: Tensor, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], scale: Tensor
) -> None:
    """Add <d_i a_i', scale * e_j b_j'> to total[i, j], in blocks."""
    (a, d), (b, e) = left, right
    numbers = scale.numel() * a.element_size()
    rows, columns = (max(1, size // numbers) for size in (TRAIN_BYTES, VECTOR_BYTES))
    for j in range(0, len(b), columns):
        there = slice(j, j + columns)
        vectors = (e[there, :, None] * b[there, None, :]).mul_(scale).flatten(1)
        for i in range(0, len(a), rows):
            here = slice(i, i + rows)
            formed = (d[here, :, None] * a[here, None, :]).flatten(1)
            total[here, there] += formed @ vectors.T
