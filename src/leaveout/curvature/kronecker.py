"""Scores under Kronecker-factored curvature: which samples it is taken over, and products with it.

Where all layers are linear and see one input a sample, gradients stay factored: in the
eigenvectors' basis a gradient is (Q_out' d) (Q_in' a)', and the inverse divides its numbers by
eigenvalue plus damping, so that no vector is turned into that basis and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

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
from leaveout.gradients.per_sample import gradient_chunks, solved_products
from leaveout.training.losses import sample_losses

State = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]
"""Inputs and labels of some samples."""

BATCH_BYTES = 128 << 20
"""Inputs of all layers held at once, about, counted as the sums take them."""
VECTOR_BYTES = 256 << 20
"""Solved gradients of right samples held at once, at most."""
TRAIN_BYTES = 16 << 20
"""Gradients of left samples formed at once, at most: few enough to stay near the cache."""


def fisher_samples(
    module: nn.Module,
    state: State,
    samples: Batch,
    fisher: str,
    identity: Callable[[int], str | int],
    seed: int,
) -> Samples:
    """Describe a trained model and its training samples to K-FAC and EK-FAC.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Inputs and labels.
        fisher: ``true``: labels are the model's own; ``empirical``: the samples'.
        identity: From a sample's number to its identity, which decides the labels drawn for it.
        seed: Root seed of the labels drawn.

    Raises:
        LeaveoutError: The Fisher is unknown.
    """
    state = {name: value.detach() for name, value in state.items()}

    def logits(module: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = functional_call(module, state, (batch[0],))
        return outputs

    match fisher:
        case "true":
            outputs = true_fisher(logits, identity, seed)
        case "empirical":
            outputs = empirical_fisher(lambda m, batch: sample_losses(logits(m, batch), batch[1]))
        case other:
            raise LeaveoutError(f"fisher: expected true or empirical, got {other!r}")
    inputs, labels = samples
    one = [(inputs[:1], labels[:1])]
    (seen,) = sweep(module, supported(module), one, outputs)
    numbers = sum(a.numel() for a in seen.inputs.values())
    size = max(1, BATCH_BYTES // (max(1, numbers) * inputs.element_size()))
    batches = list(zip(inputs.split(size), labels.split(size), strict=True))
    return Samples(module, batches, outputs)


def kronecker_scores(
    module: nn.Module,
    state: State,
    curvature: Curvature,
    damping: float,
    blocks: Iterable[Batch],
    right: Batch,
) -> Iterator[Tensor]:
    """Yield g_i' (curvature + damping I)^-1 g_j for block after block of left samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        curvature: From K-FAC or EK-FAC.
        damping: Added to the eigenvalues.
        blocks: Inputs and labels of left samples.
        right: Inputs and labels.

    Yields:
        (left samples of the block, right samples).
    """
    turned = _rotated(module, state, curvature, right)
    if turned is None:
        solve = partial(curvature.solve, damping=damping)
        yield from solved_products(module, state, solve, blocks, right)
        return
    for block in blocks:
        left = _rotated(module, state, curvature, block)
        assert left is not None
        total = turned[0][1].new_zeros(len(block[0]), len(right[0]))
        for (a, d), (b, e), part in zip(left, turned, curvature.blocks, strict=True):
            scale = inverse(part.values, damping).to(a)
            _add_products(total, (a, d), (b, e), scale)
        yield total


def kronecker_self_scores(
    module: nn.Module,
    state: State,
    curvature: Curvature,
    damping: float,
    blocks: Iterable[Batch],
) -> Tensor:
    """Return g_i' (curvature + damping I)^-1 g_i for every sample, (samples,)."""
    found = []
    for block in blocks:
        rotated = _rotated(module, state, curvature, block)
        if rotated is not None:
            parts = [
                ((d.square() @ inverse(part.values, damping).to(d)) * a.square()).sum(1)
                for (a, d), part in zip(rotated, curvature.blocks, strict=True)
            ]
            found.append(torch.stack(parts).sum(0))
            continue
        for _, g in gradient_chunks(module, state, *block):
            found.append((g * curvature.solve(g, damping)).sum(1))
    return torch.cat(found)


def _rotated(
    module: nn.Module, state: State, curvature: Curvature, samples: Batch
) -> list[tuple[Tensor, Tensor]] | None:
    """Return every layer's a Q_in and d Q_out, None where gradients do not factor."""
    if curvature.other or any(block.into is None for block in curvature.blocks):
        return None
    factors = gradient_factors(module, state, *samples)
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
