"""Eigenvalue-corrected Kronecker-factored curvature (EK-FAC).

George et al. 2018, arXiv:1806.03884; for influence functions Grosse et al. 2023, arXiv:2308.03296.

K-FAC's eigenvectors Q = Q_out kron Q_in are kept, and its eigenvalues, which are products, replaced
by the second moments of the gradients in that basis, E[(Q_out' G Q_in)^2]: of all matrices with
these eigenvectors it is the closest one to the Fisher. It costs a second pass over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from leaveout.curvature.kfac import (
    Curvature,
    Samples,
    empirical_fisher,
    kfac,
    true_fisher,
)
from leaveout.curvature.taps import supported
from leaveout.errors import LeaveoutError

GRADIENT_BYTES = 64 << 20
"""Gradients of layers with several positions formed at once, at most."""

Vectors = TypeVar("Vectors", Tensor, Mapping[str, Tensor])


def ekfac(samples: Samples) -> Curvature:
    """Return the eigenvalue-corrected Fisher of the mean loss, in float64.

    Parameters of other layers are treated as by :func:`leaveout.curvature.kfac.kfac`.

    Args:
        samples: The model and its samples.

    Raises:
        LeaveoutError: As ``kfac``.
    """
    factored = kfac(samples)
    basis = {b.names: b for b in factored.blocks if b.into is not None}
    layers = [layer for layer in supported(samples.model) if layer.names in basis]
    values = {layer.name: torch.zeros_like(basis[layer.names].values) for layer in layers}
    total = 0
    with torch.no_grad():
        for batch in samples.sweep(layers):
            total += batch.samples
            sides = {
                layer.name: (
                    batch.inputs[layer.name] @ _like(basis[layer.names].into, batch),
                    _like(basis[layer.names].out, batch),
                )
                for layer in layers
                if layer.name in batch.inputs
            }
            # of gradients d a' at one position the squares factor: one product for all gradients
            single: dict[str, Tensor] = {}
            for deltas in batch.deltas:
                for name, d in deltas.items():
                    a, out = sides[name]
                    turned = d @ out
                    if a.shape[1] == 1:
                        found = turned[:, 0].square()
                        single[name] = single[name].add_(found) if name in single else found
                    else:
                        values[name] += _squares(turned, a)
            for name, squares in single.items():
                values[name] += (squares.T @ sides[name][0][:, 0].square()).double()
    corrected = {layer.names: values[layer.name] / total for layer in layers}
    blocks = [
        replace(b, values=corrected[b.names]) if b.names in corrected else b
        for b in factored.blocks
    ]
    return replace(factored, blocks=tuple(blocks))


def _like(matrix: Tensor | None, batch: Any) -> Tensor:
    assert matrix is not None
    return matrix.to(next(iter(batch.inputs.values())))


def _squares(d: Tensor, a: Tensor) -> Tensor:
    """Return the sum over samples of (sum over positions of d_t a_t')^2, (out, in), float64."""
    size = max(1, GRADIENT_BYTES // (d.shape[2] * a.shape[2] * a.element_size()))
    total = d.new_zeros(d.shape[2], a.shape[2], dtype=torch.float64)
    for left, right in zip(d.split(size), a.split(size), strict=True):
        total += (left.transpose(1, 2) @ right).square_().sum(0)
    return total


def ihvp_ekfac(
    model: nn.Module,
    batches: Iterable[Any],
    vectors: Vectors,
    *,
    logits: Callable[[nn.Module, Any], Tensor] | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    damping: float | None = None,
    mask: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Vectors:
    """Return inverse-curvature-vector products of any module, by EK-FAC.

    The curvature is the Fisher of the mean loss over all samples of ``batches``; the result does
    not depend on how they are cut. Linear layers (2-D or sequence inputs) and convolutions are
    seen through hooks, so the model's forward stays as it is written, and the model is left as it
    was; docs/ekfac.md explains how other parameters are treated, and how to keep the curvature for
    several vectors or dampings.

    Args:
        model: Any module in evaluation mode, called by ``logits`` or ``loss``.
        batches: The training samples: a loader, or a list of batches. It is iterated twice.
        vectors: Gradients or other vectors: flat, (vectors, parameters), in the order of
            ``model.named_parameters()``; or by name of parameter, (vectors, *its shape).
        logits: From a model and a batch, logits (samples, classes) or (samples, positions,
            classes): takes the true Fisher of softmax, whose labels are the model's own.
        loss: From a model and a batch, the loss of each sample, (samples,): takes the empirical
            Fisher, from the samples' own labels. Give either ``logits`` or ``loss``.
        damping: Added to all eigenvalues, unscaled; None takes a tenth of the mean eigenvalue,
            layer by layer.
        mask: From a batch, which positions of its sequences are no padding, (samples, positions).
        seed: Of the labels, where they have to be drawn.

    Returns:
        (curvature + damping I)^-1 vectors, in the form of ``vectors``.

    Raises:
        LeaveoutError: The arguments do not fit each other, or the model cannot be treated.
    """
    curvature = ekfac(user_samples(model, batches, logits=logits, loss=loss, mask=mask, seed=seed))
    if isinstance(vectors, Tensor):
        return curvature.solve(vectors, damping)
    if set(vectors) != set(curvature.names):
        odd = sorted(set(vectors) ^ set(curvature.names))
        raise LeaveoutError(
            f"vectors are to have the names of model.named_parameters(); differing: {odd}"
        )
    flat = torch.cat([vectors[name].flatten(1) for name in curvature.names], dim=1)
    parts = curvature.solve(flat, damping).split(
        [shape.numel() for shape in curvature.names.values()], dim=1
    )
    return {
        name: part.reshape(-1, *shape)
        for (name, shape), part in zip(curvature.names.items(), parts, strict=True)
    }


def user_samples(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    logits: Callable[[nn.Module, Any], Tensor] | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    mask: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> Samples:
    """Describe a model and its samples to :func:`ekfac` or ``kfac``; see :func:`ihvp_ekfac`."""
    if (logits is None) == (loss is None):
        raise LeaveoutError(
            "give either logits, for the true Fisher, or loss, for the empirical Fisher"
        )
    if iter(batches) is batches:
        raise LeaveoutError("batches are iterated twice: give a list or a loader, not an iterator")
    if logits is not None:
        outputs = true_fisher(logits, lambda number: number, seed, mask)
    else:
        assert loss is not None
        outputs = empirical_fisher(loss)
    return Samples(model, batches, outputs, mask)
