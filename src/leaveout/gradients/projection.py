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
from leaveout.gradients.factors import Factor, SampleFunction, form, gradient_factors
from leaveout.gradients.per_sample import gradient_chunks
from leaveout.training.losses import sample_losses

State = Mapping[str, Tensor]

ROWS = 4096
"""Parameters whose signs are drawn at once; part of a dense projection's identity."""

PIECE = 8192
LANES = 32
"""Parameters and samples whose gradients are formed at once for a sparse projection: so few that
they stay in cache."""


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
class Piece:
    """Non-zeros of some consecutive parameters.

    Attributes:
        part: Which parameters.
        order: Parameter of each non-zero, counted from the first of the piece, sorted by where it
            goes, (non-zeros,).
        starts: First of those that go to each number, (dim,).
        weights: The non-zeros themselves, in that order.
    """

    part: slice
    order: Tensor
    starts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Sparse:
    """So many signs / sqrt(non-zeros) a parameter, each in another part of the projected vector.

    Attributes:
        size: Parameters.
        dim: Numbers after projection.
        pieces: The same of each piece of the parameters.
    """

    size: int
    dim: int
    pieces: tuple[Piece, ...]


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
    places = np.stack([stream.integers(a, b, size) for a, b in itertools.pairwise(edges)])
    signs = 1.0 - 2.0 * stream.integers(0, 2, (nonzeros, size), dtype=np.int8)
    signs /= math.sqrt(nonzeros)
    # parts of unequal size, where dim is no multiple, are no matter: each is unbiased by itself
    pieces = []
    for start in range(0, size, PIECE):
        part = slice(start, min(start + PIECE, size))
        goes, sign = places[:, part].ravel(), signs[:, part].ravel()
        order = np.argsort(goes, kind="stable")
        counts = np.bincount(goes, minlength=dim)
        piece = (order % (part.stop - start), np.cumsum(counts) - counts, sign[order])
        pieces.append(Piece(part, *(torch.from_numpy(array).to(device) for array in piece)))
    return Sparse(size, dim, tuple(pieces))


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
            out = vectors.new_zeros(len(vectors), projection.dim)
            for start in range(0, len(vectors), LANES):
                lanes = slice(start, start + LANES)
                for piece in projection.pieces:
                    out[lanes] += _sum_bags(piece, vectors[lanes, piece.part].T.contiguous()).T
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
                    out[rows].addmm_(_upright(take(layers, rows), part).T, signs)
            return out.mul_(projection.dim**-0.5)
        case Sparse():
            out = first.new_empty(n, projection.dim)
            for start in range(0, n, LANES):
                lanes = slice(start, start + LANES)
                few = take(layers, lanes)
                total = first.new_zeros(projection.dim, len(few[0].deltas))
                for piece in projection.pieces:
                    total += _sum_bags(piece, _upright(few, piece.part))
                out[lanes] = total.T
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


def _sum_bags(piece: Piece, upright: Tensor) -> Tensor:
    """Project some parameters' gradients, (parameters, samples), to (dim, samples)."""
    return functional.embedding_bag(
        piece.order,
        upright,
        piece.starts,
        mode="sum",
        per_sample_weights=piece.weights.to(upright.dtype),
    )


def _upright(factors: Sequence[Factor], part: slice) -> Tensor:
    """Form the gradients of some parameters, (parameters, samples)."""
    found, start = [], 0
    for f in factors:
        a, d = f.inputs.T, f.deltas.T
        width, size = len(a), len(a) * len(d)
        low, high = max(part.start, start) - start, min(part.stop, start + size) - start
        if low < high:  # rows of the weight that they touch, and then what is wanted of them
            first, last = low // width, -(-high // width)
            block = (d[first:last, None] * a).flatten(0, 1)
            found.append(block[low - first * width : high - first * width])
        start += size
        if f.bias:
            low, high = max(part.start, start) - start, min(part.stop, start + len(d)) - start
            if low < high:
                found.append(d[low:high])
            start += len(d)
    return torch.cat(found) if len(found) > 1 else found[0]
