"""Random projections of gradients to few numbers that keep inner products on average.

A projection is a linear map P of the flat parameter vector (``named_parameters()`` order) with
E<Px, Py> = <x, y>. Both kinds here have the same variance for given x and y,

    (|x|^2 |y|^2 + <x, y>^2 - 2 sum_c x_c^2 y_c^2) / dim,

so they differ in cost only: the dense one takes ``dim`` products a parameter, the sparse one takes
one product.

Papers: Johnson and Lindenstrauss 1984; signs: Achlioptas 2003; sparse: Charikar et al. 2002 (count
sketch).

Numbers are drawn by NumPy from identities, so they are the same on every device and do not depend
on how samples are cut into chunks.
"""

from __future__ import annotations

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
from leaveout.problem.call import numbers
from leaveout.problem.objective import Losses
from leaveout.problem.samples import Samples

State = Mapping[str, Tensor]

ROWS = 4096
"""Parameters whose signs are drawn at once; part of a dense projection's identity."""

PIECE = 8192
LANES = 32
"""Parameters and samples whose gradients are formed at once for a sparse projection: so few that
they stay in cache."""


@dataclass(frozen=True)
class Rademacher:
    """Signs / sqrt(dim), drawn again block by block whenever they are used.

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
    """The signs and places of some consecutive parameters.

    Attributes:
        part: Which parameters.
        order: The parameters, counted from the first of the piece and sorted by their place in the
            projected vector, (parameters,).
        starts: Where in ``order`` the parameters of each place begin, (dim,).
        weights: The signs, in that order.
    """

    part: slice
    order: Tensor
    starts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Sparse:
    """One sign a parameter, at a random place of the projected vector.

    Attributes:
        size: Parameters.
        dim: Numbers after projection.
        pieces: The signs and places of each piece of the parameters.
    """

    size: int
    dim: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Identity:
    """No projection, for exact results with few parameters.

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
        kind: ``rademacher``, ``sparse`` or ``identity``.
        size: Parameters.
        dim: Numbers after projection; ``identity`` has ``size``.
        root: Root seed.
        identity: What it is for.
        device: Where it will be used.

    Raises:
        LeaveoutError: The kind is unknown, or ``dim`` is not positive.
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
) -> Sparse:
    """Draw a sparse projection: for each parameter a place and a sign.

    The arguments are those of :func:`draw`.
    """
    stream = seeds.generator(root, *identity)
    places = stream.integers(0, dim, size)
    signs = 1.0 - 2.0 * stream.integers(0, 2, size, dtype=np.int8)
    pieces = []
    for start in range(0, size, PIECE):
        part = slice(start, min(start + PIECE, size))
        order = np.argsort(places[part], kind="stable")
        counts = np.bincount(places[part], minlength=dim)
        piece = (order, np.cumsum(counts) - counts, signs[part][order])
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
    samples: Samples,
    function: Losses | None = None,
) -> Tensor:
    """Project the gradient of what is asked of each sample, or of another function of its outputs.

    The projection is one of as many parameters as the module has; the other arguments are those of
    :func:`leaveout.gradients.per_sample.per_sample_gradients`.

    Returns:
        (samples, dim).
    """
    factors = gradient_factors(module, state, samples, function)
    if factors is not None:
        return project_factors(projection, factors)
    out = numbers(module, state).new_empty(len(samples), projection.dim)
    for part, gradients in gradient_chunks(module, state, samples, function):
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
        if low < high:  # form whole rows of the weight, then cut out the part
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
