"""Hessian-vector products of the mean loss over all training samples, many vectors at once.

Exact (Pearlmutter 1994: the directional derivative of the gradient), never from one batch: the result does not depend on how samples
are batched beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from leaveout.training.losses import sample_losses

State = Mapping[str, Tensor]

CHUNK_BYTES = 256 << 20
"""Aim for the largest intermediate: vectors x samples x outputs."""


def mean_loss(
    module: nn.Module, state: State, inputs: Tensor, labels: Tensor
) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return the mean loss over some samples as a function of the parameters."""
    buffers = {k: v for k, v in state.items() if k not in dict(module.named_parameters())}

    def loss(params: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(module, {**params, **buffers}, (inputs,))
        return sample_losses(outputs, labels).mean()

    return loss


def split(module: nn.Module, vectors: Tensor) -> dict[str, Tensor]:
    """Cut flat vectors, (vectors, parameters), into tensors of the parameters' shapes."""
    named = list(module.named_parameters())
    parts = vectors.split([p.numel() for _, p in named], dim=1)
    return {
        name: part.reshape(len(vectors), *p.shape)
        for (name, p), part in zip(named, parts, strict=True)
    }


def hessian_products(
    module: nn.Module,
    state: State,
    inputs: Tensor,
    labels: Tensor,
    vectors: Tensor,
    vector_chunk: int = 50,
    sample_chunk: int = 5000,
) -> Tensor:
    """Return H v for many vectors, H the Hessian of the mean loss over the given samples.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers.
        inputs: (samples, ...).
        labels: (samples,).
        vectors: (vectors, parameters).
        vector_chunk: Vectors at once; bounds memory, not the result.
        sample_chunk: Samples at once; bounds memory, not the result.

    Returns:
        (vectors, parameters).
    """
    params = {name: state[name].detach() for name, _ in module.named_parameters()}
    out = torch.zeros_like(vectors)
    for start in range(0, len(inputs), sample_chunk):
        part = slice(start, start + sample_chunk)
        gradient = grad(mean_loss(module, state, inputs[part], labels[part]))

        def product(v: dict[str, Tensor], gradient: Callable = gradient) -> dict[str, Tensor]:
            return jvp(gradient, (params,), (v,))[1]  # type: ignore[no-any-return]

        share = len(inputs[part]) / len(inputs)
        for first in range(0, len(vectors), vector_chunk):
            rows = slice(first, first + vector_chunk)
            found = vmap(product)(split(module, vectors[rows]))
            out[rows] += share * torch.cat([found[name].flatten(1) for name in params], dim=1)
    return out
