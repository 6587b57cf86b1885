"""Eigenvalue-corrected Kronecker-factored curvature (EK-FAC).

George et al. 2018, arXiv:1806.03884; for influence functions Grosse et al. 2023, arXiv:2308.03296.

K-FAC's eigenvectors Q = Q_out kron Q_in are kept, and its eigenvalues, which are products, replaced
by the second moments of the gradients in that basis, E[(Q_out' G Q_in)^2]: of all matrices with
these eigenvectors it is the closest one to the Fisher. It costs a second pass over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from leaveout.curvature.kfac import (
    Curvature,
    FisherData,
    empirical_fisher,
    kfac,
    true_fisher,
)
from leaveout.curvature.taps import CHECKED, Layer, Outputs, checked, own_gradients, supported
from leaveout.errors import LeaveoutError
from leaveout.problem.call import slow_paths
from leaveout.problem.families import BERNOULLI, GAUSSIAN, SOFTMAX
from leaveout.problem.objective import Likelihood

GRADIENT_BYTES = 64 << 20
"""Gradients of layers with several positions formed at once, at most."""

Vectors = TypeVar("Vectors", Tensor, Mapping[str, Tensor])


def ekfac(samples: FisherData) -> Curvature:
    """Return the eigenvalue-corrected Fisher of the mean loss, in float64.

    Parameters of other layers are treated as by :func:`leaveout.curvature.kfac.kfac`.

    Args:
        samples: The model and its samples.

    Raises:
        LeaveoutError: As ``kfac``.
    """
    factored = kfac(samples)
    basis = {b.names: b for b in factored.blocks if b.into is not None}
    layers = [layer for layer in samples.layers if layer.names in basis]
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
    family: str | None = None,
    seed: int = 0,
) -> Vectors:
    """Return inverse-curvature-vector products of any module, by EK-FAC.

    The curvature is the Fisher of the mean loss over all samples of ``batches``; the result does
    not depend on how they are cut. Linear layers (2-D or sequence inputs) and convolutions are
    seen through hooks, so the model's forward stays as it is written, and the model is left as it
    was; docs/your-own.md explains how other parameters are treated, and how to keep the curvature
    for several vectors or dampings.

    Args:
        model: Any module in evaluation mode, called by ``logits`` or ``loss``.
        batches: The training samples: a loader, or a list of batches. It is iterated several
            times.
        vectors: Gradients or other vectors: flat, (vectors, parameters), in the order of
            ``model.named_parameters()``; or by name of parameter, (vectors, *its shape).
        logits: From a model and a batch, logits (samples, classes) or (samples, positions,
            classes): takes the true Fisher, whose labels are the model's own.
        loss: From a model and a batch, the loss of each sample, (samples,): takes the empirical
            Fisher, from the samples' own labels. Give either ``logits`` or ``loss``.
        damping: Added to all eigenvalues, unscaled; None takes a tenth of the mean eigenvalue,
            layer by layer.
        mask: From a batch, which positions of its sequences are no padding, (samples, positions).
        family: What the logits are of: ``softmax`` (classes come last), ``bernoulli`` (each is
            the logit of a label that holds or not), or ``gaussian`` (each is a number predicted,
            its loss half the squared error). By default a softmax; of one logit ``bernoulli``,
            which is what a softmax of (0, logit) gives.
        seed: Of the labels, where they have to be drawn.

    Returns:
        (curvature + damping I)^-1 vectors, in the form of ``vectors``.

    Raises:
        LeaveoutError: The arguments do not fit each other, or the model cannot be treated.
    """
    curvature = ekfac(
        user_samples(model, batches, logits=logits, loss=loss, mask=mask, family=family, seed=seed)
    )
    if isinstance(vectors, Tensor):
        return curvature.solve(vectors, damping)
    if set(vectors) != set(curvature.names):
        odd = sorted(set(vectors) ^ set(curvature.names))
        raise LeaveoutError(
            f"vectors are to have the names of model.named_parameters(); differing: {odd}"
        )
    flat = torch.cat([vectors[n].reshape(len(vectors[n]), -1) for n in curvature.names], dim=1)
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
    family: str | None = None,
    seed: int = 0,
) -> FisherData:
    """Describe a model and its samples to :func:`ekfac` or ``kfac``; see :func:`ihvp_ekfac`."""
    if (logits is None) == (loss is None):
        raise LeaveoutError(
            "give either logits, for the true Fisher, or loss, for the empirical Fisher"
        )
    if family is not None and (family not in FAMILIES or logits is None):
        raise LeaveoutError(f"family: {family!r} is not one of {', '.join(FAMILIES)}, of logits")
    if iter(batches) is batches:
        raise LeaveoutError("batches are iterated twice: give a list or a loader, not an iterator")
    if odd := [name or "the model" for name, m in model.named_modules() if m.training]:
        raise LeaveoutError(f"{odd[0]} is in training mode; call model.eval() first")
    if logits is not None:
        probe = _with_classes(logits)
        outputs = true_fisher(probe, partial(_likelihood, family), mask or _all, int, seed)
    else:
        assert loss is not None
        outputs = empirical_fisher(loss)
        probe = partial(_losses, outputs)
    with slow_paths():
        layers = _checked(model, supported(model), partial(probe, model), batches)
    return FisherData(model, batches, outputs, mask, tuple(layers))


FAMILIES = {"softmax": SOFTMAX, "bernoulli": BERNOULLI, "gaussian": GAUSSIAN}


def _losses(outputs: Outputs, model: nn.Module, batch: Any) -> Tensor:
    """Return the losses of a batch, checked to be one a sample."""
    return outputs(model, batch, 0)[0]


def _all(_: Any) -> None:
    """Return no mask."""


def _with_classes(logits: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    def checked_logits(model: nn.Module, batch: Any) -> Tensor:
        values = logits(model, batch)
        if values.dim() < 2:
            raise LeaveoutError(
                "expected logits (samples, classes) or (samples, positions, classes), got "
                f"{tuple(values.shape)}"
            )
        return values

    return checked_logits


def _likelihood(family: str | None, values: Tensor) -> Likelihood:
    """Return the curvature of outputs whose targets are a mask of positions, or nothing."""
    known = FAMILIES[family or ("softmax" if values.shape[-1] > 1 else "bernoulli")]

    def mass(h: Tensor, kept: Tensor | None) -> Tensor:
        units = (len(h), *known.units(h))
        if kept is None or h.dim() < 3:
            return h.new_ones(units)
        if kept.shape != h.shape[:-1]:
            raise LeaveoutError(
                f"mask: expected (samples, positions) = {tuple(h.shape[:-1])}, as the logits have, "
                f"got {tuple(kept.shape)}"
            )
        found = kept.to(h)
        return found if known.vector else found[..., None].expand(units)

    return Likelihood(known, lambda outputs: outputs, mass)


def _checked(
    model: nn.Module, layers: list[Layer], run: Callable[[Any], Tensor], batches: Iterable[Any]
) -> list[Layer]:
    """Compare layers with autograd on the first batch of several samples, whatever it holds.

    Batches are not cut: they may hold what all samples share, or be of a type of the user's.

    Raises:
        NotComputableError: A layer's gradients are not what it shows; names it.
    """
    batch, size = None, 0
    with torch.no_grad():
        for other in batches:
            count = len(run(other))
            if count > size:
                batch, size = other, count
            if size >= CHECKED:
                break
    if not layers or not size:
        return layers
    parameters = dict(model.named_parameters())
    own = {name: parameters[name] for layer in layers for name in layer.names}
    before = {name: p.requires_grad for name, p in own.items()}
    try:
        for p in own.values():
            p.requires_grad_(True)
        with torch.enable_grad():
            values = run(batch)
            if not values.requires_grad:  # no such layer is used
                return layers
            rights = [own_gradients(values[i : i + 1], own) for i in range(min(size, CHECKED))]
    finally:
        for name, p in own.items():
            p.requires_grad_(before[name])
    return checked(layers, run, batch, rights)
