"""Scores under Kronecker-factored curvature: which samples it is taken over, and products with it.

Where all layers are linear and see one input a sample, gradients stay factored: in the
eigenvectors' basis a gradient is (Q_out' d) (Q_in' a)', and the inverse divides its numbers by
eigenvalue plus damping, so that no vector is turned into that basis and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.curvature.kfac import (
    Curvature,
    FisherData,
    empirical_fisher,
    inverse,
    true_fisher,
)
from leaveout.curvature.taps import CHECKED, Layer, checked, own_gradients, supported, sweep
from leaveout.errors import LeaveoutError
from leaveout.gradients.factors import gradient_factors
from leaveout.gradients.per_sample import gradient_chunks, solved_products
from leaveout.problem.call import call_with, slow_paths
from leaveout.problem.samples import Samples
from leaveout.problem.trees import tensors
from leaveout.training.stack import parse

State = Mapping[str, Tensor]
BATCH_BYTES = 128 << 20
"""Inputs of all layers held at once, about, counted as the sums take them."""
VECTOR_BYTES = 256 << 20
"""Solved gradients of right samples held at once, at most."""
TRAIN_BYTES = 16 << 20
"""Gradients of left samples formed at once, at most: few enough to stay near the cache."""

FEW = 16
"""Left gradients of a layer at once, below which none is formed."""


def fisher_samples(
    module: nn.Module,
    state: State,
    samples: Samples,
    fisher: str,
    identity: Callable[[int], str | int],
    seed: int,
) -> FisherData:
    """Describe a trained model and its training samples to K-FAC and EK-FAC.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Training samples; the curvature is that of the mean of their losses.
        fisher: ``true``: labels are the model's own; ``empirical``: the samples'.
        identity: From a sample's number to its identity, which decides the labels drawn for it.
        seed: Root seed of the labels drawn.

    Raises:
        LeaveoutError: The Fisher is unknown.
        NotComputableError: The objective states no curvature, and the true Fisher is asked for.
    """
    state = {name: value.detach() for name, value in state.items()}

    def run(module: nn.Module, batch: Samples) -> Any:
        with slow_paths():
            return call_with(module, state, batch.inputs)

    match fisher:
        case "true":
            known = samples.objective.need("likelihood", "the true Fisher needs a likelihood")
            outputs = true_fisher(
                lambda m, batch: known.outputs(run(m, batch)),
                lambda _: known,
                lambda batch: batch.targets,
                identity,
                seed,
            )
        case "empirical":
            outputs = empirical_fisher(lambda m, batch: batch.losses(run(m, batch)))
        case other:
            raise LeaveoutError(f"fisher: expected true or empirical, got {other!r}")
    layers = checked_layers(module, state, samples)
    (seen,) = sweep(module, layers, [samples[:1]], outputs)
    numbers = sum(a.numel() * a.element_size() for a in seen.inputs.values())
    size = max(1, BATCH_BYTES // max(1, numbers))
    return FisherData(module, [*samples.split(size)], outputs, known=tuple(layers))


def checked_layers(module: nn.Module, state: State, samples: Samples) -> list[Layer]:
    """Return the layers whose curvature is known, compared with autograd on a few samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        samples: Some to compare on.

    Raises:
        NotComputableError: A layer's gradients are not what it shows; names it.
    """
    layers, samples = supported(module), samples[:CHECKED]
    if parse(module) is not None or len(samples) < CHECKED or not layers:
        return layers

    def run(batch: Samples, state: State = state) -> Tensor:
        with slow_paths():
            outputs = call_with(module, state, batch.inputs)
        found = [v for v in tensors(outputs) if v.is_floating_point() and len(v) == len(batch)]
        return torch.cat([value.reshape(len(batch), -1) for value in found], dim=1)

    rights = []
    for one in samples.split(1):
        own = {n: state[n].clone().requires_grad_() for layer in layers for n in layer.names}
        with torch.enable_grad():
            rights.append(own_gradients(run(one, {**state, **own}), own))
    return checked(layers, run, samples, rights)


def kronecker_scores(
    module: nn.Module,
    state: State,
    curvature: Curvature,
    damping: float,
    blocks: Iterable[Samples],
    right: Samples,
) -> Iterator[Tensor]:
    """Yield g_i' (curvature + damping I)^-1 g_j for block after block of left samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        curvature: From K-FAC or EK-FAC.
        damping: Added to the eigenvalues.
        blocks: Left samples.
        right: Right samples.

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
        total = turned[0][1].new_zeros(len(block), len(right))
        for (a, d), (b, e), part in zip(left, turned, curvature.blocks, strict=True):
            scale = inverse(part.values, damping).to(a)
            _add_products(total, (a, d), (b, e), scale)
        yield total


def stays_factored(module: nn.Module, state: State, curvature: Curvature, samples: Samples) -> bool:
    """Return whether scores need no gradient formed: all layers are linear, one input a sample."""
    return _rotated(module, state, curvature, samples[:1]) is not None


def kronecker_self_scores(
    module: nn.Module,
    state: State,
    curvature: Curvature,
    damping: float,
    blocks: Iterable[Samples],
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
        for _, g in gradient_chunks(module, state, block):
            found.append((g * curvature.solve(g, damping)).sum(1))
    return torch.cat(found)


def _rotated(
    module: nn.Module, state: State, curvature: Curvature, samples: Samples
) -> list[tuple[Tensor, Tensor]] | None:
    """Return every layer's a Q_in and d Q_out, None where gradients do not factor."""
    if curvature.other or any(block.into is None for block in curvature.blocks):
        return None
    factors = gradient_factors(module, state, samples)
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
    if rows < FEW:  # of a large layer: forming the left gradients would take most of the time
        for j in range(len(b)):
            solved = scale * e[j, :, None] * b[j]
            total[:, j] += ((d @ solved) * a).sum(1)
        return
    for j in range(0, len(b), columns):
        there = slice(j, j + columns)
        vectors = (e[there, :, None] * b[there, None, :]).mul_(scale).flatten(1)
        for i in range(0, len(a), rows):
            here = slice(i, i + rows)
            formed = (d[here, :, None] * a[here, None, :]).flatten(1)
            total[here, there] += formed @ vectors.T
