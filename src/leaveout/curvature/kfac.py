"""Kronecker-factored curvature (K-FAC) of any module, by hooks.

Martens and Grosse 2015, arXiv:1503.05671; for convolutions Grosse and Martens 2016,
arXiv:1602.01407; for layers used at many positions Eschenhagen et al. 2023 ("expand"),
arXiv:2311.00636.

The Fisher of the mean loss over all samples, F = E[g g'], is approximated by one block a layer,
E[a a'] kron E[d d'] times the positions of a sample, a the layer's inputs (ones appended for the
bias) and d the gradients in its outputs, both means over all positions. It is kept as eigenvectors
and eigenvalues, to which damping is added unscaled; :mod:`leaveout.curvature.ekfac` corrects
the eigenvalues.

The labels of the true Fisher are the model's own: classes under a softmax, 0 or 1 under a logit, a
number of unit variance under a squared error. Where outputs are few, their expectation is taken
exactly: a class c counts with its probability p_c, and sum_c p_c (p - e_c)(p - e_c)' = diag(p) -
p p' is the Hessian of cross-entropy in the outputs, so this Fisher is the Gauss-Newton matrix. That
costs a backward pass a class, but no noise: on a model that fits well, a drawn label is almost
always the predicted one, and all of the curvature hangs on the few draws that are not. With more
than ``MOST_CLASSES`` outputs, or a distribution at every position, one set of labels is drawn.

Accuracy: products in the dtype of the data, sums over batches and eigenvectors in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leaveout import seeds
from leaveout.curvature.taps import Batch, Layer, Outputs, supported, sweep
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.problem.call import trained
from leaveout.problem.objective import Family, Likelihood

MOST_CLASSES = 32
"""Classes up to which the expectation over the model's labels is exact."""


@dataclass(frozen=True)
class FisherData:
    """A model, samples to take curvature over, and how.

    Attributes:
        model: The model, in evaluation mode.
        batches: The samples; iterated twice, so a list or a loader and no generator.
        outputs: Runs the model on a batch.
        mask: From a batch, which positions of its sequences count; None where all do.
        known: The layers that are supported, as checked; None for those of a supported type.
    """

    model: nn.Module
    batches: Iterable[Any]
    outputs: Outputs
    mask: Callable[[Any], Tensor] | None = None
    known: tuple[Layer, ...] | None = None

    @property
    def layers(self) -> list[Layer]:
        """The layers whose curvature is taken."""
        return supported(self.model) if self.known is None else [*self.known]

    def sweep(self, layers: list[Layer]) -> Iterator[Batch]:
        """Run the model over all batches."""
        return sweep(self.model, layers, self.batches, self.outputs, self.mask)


@dataclass(frozen=True)
class Block:
    """Curvature of one layer: Q_out diag(values) Q_in' on its gradients, (out, in).

    Attributes:
        names: Names of its parameters: the weight and, as last column, the bias.
        into: Q_in, eigenvectors of E[a a'] in columns, (in, in); None for a diagonal block.
        out: Q_out, eigenvectors of E[d d'], (out, out); None for a diagonal block.
        values: Eigenvalues, (out, in). Of a diagonal block the diagonal, (numbers, parameters).
    """

    names: tuple[str, ...]
    into: Tensor | None
    out: Tensor | None
    values: Tensor


@dataclass(frozen=True)
class Curvature:
    """Block-diagonal curvature in eigenvectors and eigenvalues.

    Attributes:
        blocks: One a layer, in order.
        names: Names and shapes of all parameters, as ``named_parameters()`` has them.
        other: Parameters of no block, to which the mean eigenvalue of the others is given.
    """

    blocks: tuple[Block, ...]
    names: Mapping[str, torch.Size]
    other: tuple[str, ...]

    @property
    def mean(self) -> float:
        """The mean eigenvalue, over all numbers of all blocks of matrices; 0 without any."""
        values = [b.values for b in self.blocks if b.into is not None]
        return float(sum(v.sum() for v in values)) / max(1, sum(v.numel() for v in values))

    def to(self, dtype: torch.dtype) -> Curvature:
        """Return it in another dtype."""
        blocks = [
            Block(
                b.names,
                None if b.into is None else b.into.to(dtype),
                None if b.out is None else b.out.to(dtype),
                b.values.to(dtype),
            )
            for b in self.blocks
        ]
        return Curvature(tuple(blocks), self.names, self.other)

    def solve(self, vectors: Tensor, damping: float | None) -> Tensor:
        """Return (curvature + damping I)^-1 v for many vectors.

        Args:
            vectors: (vectors, parameters), flat in the order of ``named_parameters()``.
            damping: Added to the eigenvalues, unscaled; None takes a tenth of the mean
                eigenvalue, layer by layer.

        Returns:
            (vectors, parameters), in the vectors' dtype.

        Raises:
            LeaveoutError: Some eigenvalue plus damping is not positive, to rounding.
        """
        return self.apply(vectors, lambda values: inverse(values, damping))

    def multiply(self, vectors: Tensor) -> Tensor:
        """Return curvature times v for many vectors, (vectors, parameters)."""
        return self.apply(vectors, lambda values: values)

    def apply(self, vectors: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale(curvature) v for many vectors, scale a function of the eigenvalues.

        Args:
            vectors: (vectors, parameters), flat in the order of ``named_parameters()``.
            scale: From a tensor of eigenvalues, in float64, numbers of the same shape.

        Returns:
            (vectors, parameters), in the vectors' dtype.

        Raises:
            LeaveoutError: The vectors have another length than the parameters.
        """
        total = sum(shape.numel() for shape in self.names.values())
        if vectors.dim() != 2 or vectors.shape[1] != total:
            raise LeaveoutError(
                f"expected vectors (vectors, {total}), flat in the order of named_parameters(); "
                f"got {tuple(vectors.shape)}"
            )
        result = torch.empty_like(vectors)
        given, found = (self._views(flat) for flat in (vectors, result))
        for block in self.blocks:
            if block.into is None or block.out is None:
                for name, factors in zip(block.names, scale(block.values), strict=True):
                    found[name].copy_(given[name] * factors.to(vectors))
                continue
            parts = [given[name].reshape(len(vectors), len(block.out), -1) for name in block.names]
            into, out = block.into.to(vectors), block.out.to(vectors)
            inside = out.T @ torch.cat(parts, dim=2) @ into
            inside *= scale(block.values).to(vectors)
            inside = out @ inside @ into.T
            width = parts[0].shape[2]
            for name, part in zip(block.names, inside.split(width, dim=2), strict=True):
                found[name].copy_(part.reshape(len(vectors), -1))
        factor = scale(torch.tensor([self.mean], dtype=torch.float64)) if self.other else None
        for name in self.other:
            assert factor is not None
            found[name].copy_(given[name] * float(factor))
        return result

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.names.values()], dim=1)
        return dict(zip(self.names, parts, strict=True))


def true_fisher(
    run: Callable[[nn.Module, Any], Tensor],
    likelihood: Callable[[Tensor], Likelihood],
    targets: Callable[[Any], Any],
    identity: Callable[[int], str | int],
    seed: int,
) -> Outputs:
    """Return outputs and gradients of the Fisher under the model's own labels.

    Args:
        run: From a model and a batch, the outputs h that the likelihood is about.
        likelihood: From these, the curvature of the loss in them.
        targets: From a batch, its targets: they say what counts, and how much.
        identity: From a sample's number to its identity, which decides the labels drawn for it.
        seed: Root seed of the labels drawn.
    """

    def outputs(model: nn.Module, batch: Any, start: int) -> tuple[Tensor, Iterable[Tensor]]:
        values = run(model, batch)
        known, wanted, fixed = likelihood(values), targets(batch), values.detach()
        family, units = known.family, known.family.units(values)
        if _few(family, values):
            return values, known.roots(fixed, wanted)
        draws = np.stack(
            [
                seeds.generator(seed, "own labels", identity(start + row)).random(units)
                for row in range(len(values))
            ]
        )
        points = torch.from_numpy(draws).to(values.device)
        return values, [known.root(fixed, wanted, points)]

    return outputs


def _few(family: Family, values: Tensor) -> bool:
    """Return whether the expectation over labels takes so few passes that it is exact."""
    one_unit = len(family.units(values)) == 0 or not family.vector
    return one_unit and values[0].numel() <= MOST_CLASSES


def empirical_fisher(losses: Callable[[nn.Module, Any], Tensor]) -> Outputs:
    """Return outputs and gradients of the second moment of the samples' own gradients.

    Args:
        losses: From a model and a batch, the loss of each sample, (samples,).
    """

    def outputs(model: nn.Module, batch: Any, start: int) -> tuple[Tensor, Iterable[Tensor]]:
        values = losses(model, batch)
        if values.dim() != 1:
            raise LeaveoutError(
                f"expected the loss of each sample, (samples,), got {tuple(values.shape)}; a mean "
                "or a sum over the batch does not tell samples apart: take reduction='none'"
            )
        return values, [torch.ones_like(values)]

    return outputs


def inverse(values: Tensor, damping: float | None) -> Tensor:
    """Return 1 / (values + damping); without damping, a tenth of their mean.

    Raises:
        LeaveoutError: A sum is not positive, to rounding.
    """
    damped = values + (0.1 * values.mean() if damping is None else damping)
    # an eigenvalue of zero is known to rounding only
    if not bool((damped > torch.finfo(values.dtype).eps * values.max()).all()):
        raise LeaveoutError(
            f"the curvature plus damping = {damping} is singular in some directions; raise the "
            "damping"
        )
    return 1 / damped


def kfac(samples: FisherData) -> Curvature:
    """Return the Kronecker-factored Fisher of the mean loss, in float64.

    Normalisations (batch, layer, group) have the exact diagonal of their Fisher; all other
    parameters (embeddings, shared weights, grouped convolutions) the identity times the mean
    eigenvalue of the layers that factor.

    Args:
        samples: The model and its samples.

    Raises:
        LeaveoutError: There are no samples, no layer that factors, or the model is in training
            mode.
    """
    model = samples.model
    if odd := [name or "the model" for name, m in model.named_modules() if m.training]:
        raise LeaveoutError(
            f"{odd[0]} is in training mode, where dropout and batch norm make gradients depend on "
            "chance and on the batch; call model.eval() first"
        )
    layers = samples.layers
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    diagonals: dict[str, Tensor] = {}
    positions: dict[str, int] = {}
    matrix = {layer.name for layer in layers if layer.matrix}
    total = 0
    with torch.no_grad():
        for batch in samples.sweep(layers):
            total += batch.samples
            for name, a in batch.inputs.items():
                if name in matrix:
                    flat = a.flatten(0, 1)
                    _add(sums, name, 0, flat.T @ flat)
                    positions[name] = positions.get(name, 0) + batch.positions[name]
            for deltas in batch.deltas:
                for name, d in deltas.items():
                    if name in matrix:
                        flat = d.flatten(0, 1)
                        _add(sums, name, 1, flat.T @ flat)
                    else:
                        squares = torch.stack([(d * batch.inputs[name]).sum(1), d.sum(1)]).square()
                        found = squares.sum(1).double()
                        diagonals[name] = diagonals.get(name, torch.zeros_like(found)) + found
    if not total:
        raise LeaveoutError("no curvature to take: no samples")
    if not sums:
        raise NotComputableError(
            "undefined",
            "no curvature to take: no nn.Linear and no nn.Conv2d (groups=1) is used; see "
            "docs/your-own.md",
        )
    blocks = []
    for layer in layers:
        if layer.name in sums:
            (a, d), count = sums[layer.name], positions[layer.name]
            into_values, into = torch.linalg.eigh(a / count)
            out_values, out = torch.linalg.eigh(d / total)  # d / count, times count / total
            values = out_values.clamp(min=0)[:, None] * into_values.clamp(min=0)
            blocks.append(Block(layer.names, into, out, values))
        elif layer.name in diagonals:
            values = diagonals[layer.name][: len(layer.names)] / total
            blocks.append(Block(layer.names, None, None, values))
    names = {name: p.shape for name, p in trained(model).items()}
    covered = {name for block in blocks for name in block.names}
    return Curvature(tuple(blocks), names, tuple(n for n in names if n not in covered))


def _add(sums: dict[str, Any], name: str, which: int, product: Tensor) -> None:
    pair = sums.setdefault(name, [0.0, 0.0])
    pair[which] = pair[which] + product.double()
