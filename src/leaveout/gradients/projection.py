"""Random projections of gradients to few numbers that keep inner products on average.

A projection is a linear map P of the flat parameter vector (``named_parameters()`` order) with
E<Px, Py> = <x, y>. Both kinds here have the same variance for given x and y,

    (|x|^2 |y|^2 + <x, y>^2 - 2 sum_c x_c^2 y_c^2) / dim,

so what tells them apart is their cost: the dense one takes ``dim`` products a parameter, the sparse
one as many as it has non-zeros a parameter.

Papers: Johnson and Lindenstrauss 1984; signs: Achlioptas 2003; sparse: Charikar et al. 2002 (count
sketch), Kane and Nelson 2014, arXiv:1012.1577 (several non-zeros, in blocks).

Numbers are drawn by NumPy from identities, so they are the same on every device, in every chunk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout import seeds
from leaveout.errors import LeaveoutError
from leaveout.gradients import per_sample
from leaveout.gradients.factors import Factor, form, gradient_factors
from leaveout.gradients.per_sample import gradient_chunks
from leaveout.training.losses import SampleFunction, sample_losses

State = Mapping[str, Tensor]

ROWS = 4096
"""Parameters whose signs are drawn at once; part of a dense projection's identity."""

LANES = 32
"""Samples projected at once by a sparse projection: few, so that their gradients stay in cache."""


@dataclass(frozen=True)
class Rademacher:
    """Signs / sqrt(dim), drawn again block by block wherever they are wanted.

    Attributes:
        size: Parameters.
        dim: Numbers after projection.
        root: Root seed.
        identity: What it is for, see ``leaveout.seeds``.
    """

    size: int
    dim: int
    root: int
    identity: tuple[str | int, ...]


@dataclass(frozen=True)
class Sparse:
    """So many signs / sqrt(non-zeros) a parameter, each in another part of the projected vector.

    Attributes:
        size: Parameters.
        dim: Numbers after projection.
        order: Parameter of each non-zero, sorted by where it goes, (size x non-zeros,).
        starts: First of those that go to each number, (dim,).
        weights: The non-zeros themselves, in that order.
    """

    size: int
    dim: int
    order: Tensor
    starts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Identity:
    """No projection: for exact results where there are few parameters.

    Attributes:
        size: Parameters.
    """

    size: int

    @property
    def dim(self) -> int:
        """As many numbers as parameters."""
        return self.size


Projection = Rademacher | Sparse | Identity
Kind = Literal["rademacher", "sparse", "identity"]


def draw(
    kind: str, size: int, dim: int, root: int, identity: tuple[str | int, ...], device: torch.device
) -> Projection:
    """Draw a projection.

    Args:
        kind: ``rademacher``, ``sparse`` (one non-zero a parameter), or ``identity``.
        size: Parameters.
        dim: Numbers after projection; ``identity`` has ``size``.
        root: Root seed.
        identity: What it is for.
        device: Where it will be used.

    Raises:
        LeaveoutError: There is no such kind, or ``dim`` is not positive.
    """
    if dim < 1:
        raise LeaveoutError(f"projection: {dim} numbers were asked for, 1 is the least")
    match kind:
        case "rademacher":
            return Rademacher(size, dim, root, identity)
        case "sparse":
            return draw_sparse(size, dim, root, identity, device)
        case "identity":
            return Identity(size)
    raise LeaveoutError(
        f"projector: no projection is called {kind!r}. Valid: rademacher, sparse, identity"
    )


def draw_sparse(
    size: int,
    dim: int,
    root: int,
    identity: tuple[str | int, ...],
    device: torch.device,
    nonzeros: int = 1,
) -> Sparse:
    """Draw a sparse projection: part t of ``nonzeros`` equal parts gets non-zero t.

    Raises:
        LeaveoutError: There are more non-zeros than numbers.
    """
    if not 1 <= nonzeros <= dim:
        raise LeaveoutError(f"projection: {nonzeros} non-zeros a parameter, of {dim} numbers")
    stream = seeds.generator(root, *identity)
    edges = [dim * t // nonzeros for t in range(nonzeros + 1)]
    places = np.stack([stream.integers(a, b, size) for a, b in itertools.pairwise(edges)]).ravel()
    signs = 1.0 - 2.0 * stream.integers(0, 2, nonzeros * size, dtype=np.int8)
    # parts of unequal size, where dim is no multiple, are no matter: each is unbiased by itself
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=dim)
    return Sparse(
        size,
        dim,
        order=torch.from_numpy(order % size).to(device),
        starts=torch.from_numpy(np.cumsum(counts) - counts).to(device),
        weights=torch.from_numpy(signs[order] / math.sqrt(nonzeros)).to(device),
    )


def sign_blocks(
    projection: Rademacher, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Draw the rows of a dense projection, times sqrt(dim).

    Yields:
        (which parameters, signs (parameters, dim)).
    """
    width = -(-projection.dim // 8)
    # the eight signs of each byte: one gather instead of shifts
    table = torch.from_numpy(
        1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    ).to(device, dtype)
    for number, start in enumerate(range(0, projection.size, ROWS)):
        stop = min(start + ROWS, projection.size)
        stream = seeds.generator(projection.root, *projection.identity, number)
        drawn = np.frombuffer(stream.bytes(ROWS * width), dtype=np.uint8)[: (stop - start) * width]
        places = torch.from_numpy(drawn.astype(np.int32)).to(device)
        signs = functional.embedding(places, table).view(stop - start, 8 * width)
        yield slice(start, stop), signs[:, : projection.dim]


def project(projection: Projection, vectors: Tensor) -> Tensor:
    """Project vectors, (vectors, parameters), to (vectors, dim)."""
    match projection:
        case Identity():
            return vectors
        case Rademacher():
            out = vectors.new_zeros(len(vectors), projection.dim)
            for part, signs in sign_blocks(projection, vectors.dtype, vectors.device):
                out.addmm_(vectors[:, part], signs)
            return out.mul_(projection.dim**-0.5)
        case Sparse():
            out = vectors.new_empty(len(vectors), projection.dim)
            weights = projection.weights.to(vectors.dtype)
            for lanes in _lanes(projection, vectors):
                out[lanes] = _sum_bags(projection, vectors[lanes].T.contiguous(), weights).T
            return out


def project_factors(projection: Projection, factors: Sequence[Factor]) -> Tensor:
    """Project gradients of linear layers, without forming more than a few at a time.

    Returns:
        (samples, dim).
    """
    first = factors[0].deltas
    n, layers = len(first), [*factors]
    match projection:
        case Identity():
            return form(layers)
        case Rademacher():
            out = first.new_zeros(n, projection.dim)
            step = max(1, per_sample.CHUNK_BYTES // (2 * ROWS * first.element_size()))
            # blocks outside, so that signs are drawn once for all samples
            for part, signs in sign_blocks(projection, first.dtype, first.device):
                for start in range(0, n, step):
                    rows = slice(start, start + step)
                    out[rows].addmm_(_columns(take(layers, rows), part), signs)
            return out.mul_(projection.dim**-0.5)
        case Sparse():
            out = first.new_empty(n, projection.dim)
            weights = projection.weights.to(first.dtype)
            for lanes in _lanes(projection, first):
                gradients = _upright(take(layers, lanes), projection.size)
                out[lanes] = _sum_bags(projection, gradients, weights).T
            return out


def projected_gradients(
    projection: Projection,
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    function: SampleFunction = sample_losses,
) -> Tensor:
    """Project the gradient of each sample's loss, or of another function of its outputs.

    Args:
        projection: The projection, of as many parameters as the module has.
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).
        function: What is differentiated.

    Returns:
        (samples, dim).
    """
    factors = gradient_factors(module, state, inputs, labels, function)
    if factors is not None:
        return project_factors(projection, factors)
    out = inputs.new_empty(len(inputs), projection.dim)
    for part, gradients in gradient_chunks(module, state, inputs, labels, function):
        out[part] = project(projection, gradients)
    return out


def take(factors: Sequence[Factor], rows: slice) -> list[Factor]:
    """Return the factors of some samples."""
    return [replace(f, inputs=f.inputs[rows], deltas=f.deltas[rows]) for f in factors]


def _lanes(projection: Sparse, like: Tensor) -> Iterator[slice]:
    """Cut samples so that the formed gradients of some stay in cache, or in memory at least."""
    fitting = per_sample.CHUNK_BYTES // (projection.size * like.element_size())
    size = max(1, min(LANES, fitting))
    for start in range(0, len(like), size):
        yield slice(start, start + size)


def _sum_bags(projection: Sparse, upright: Tensor, weights: Tensor) -> Tensor:
    """Project gradients (parameters, samples) to (dim, samples)."""
    return functional.embedding_bag(
        projection.order, upright, projection.starts, mode="sum", per_sample_weights=weights
    )


def _upright(factors: Sequence[Factor], size: int) -> Tensor:
    """Form gradients as (parameters, samples)."""
    n = len(factors[0].deltas)
    out, start = factors[0].deltas.new_empty(size, n), 0
    for f in factors:
        a, d = f.inputs.T, f.deltas.T
        stop = start + len(a) * len(d)
        torch.mul(d[:, None], a, out=out[start:stop].view(len(d), len(a), n))
        start = stop
        if f.bias:
            out[start : start + len(d)] = d
            start += len(d)
    return out


def _columns(factors: Sequence[Factor], part: slice) -> Tensor:
    """Form some columns of the gradients, (samples, columns)."""
    found, start = [], 0
    for f in factors:
        width = f.inputs.shape[1]
        size = width * f.deltas.shape[1]
        low, high = max(part.start, start) - start, min(part.stop, start + size) - start
        if low < high:  # rows of the weight that the columns touch, and then what is wanted of them
            first, last = low // width, -(-high // width)
            block = (f.deltas[:, first:last, None] * f.inputs[:, None, :]).flatten(1)
            found.append(block[:, low - first * width : high - first * width])
        start += size
        if f.bias:
            size = f.deltas.shape[1]
            low, high = max(part.start, start) - start, min(part.stop, start + size) - start
            if low < high:
                found.append(f.deltas[:, low:high])
            start += size
    return torch.cat(found, dim=1)
