"""Outputs of many models on the same samples, with the products of their Jacobians.

Pushing forward (J v) and pulling back (J' c) are all that gradients and Gauss-Newton products of
any loss of the outputs are made of. Stacks of linear layers are written by hand, as in
:mod:`leaveout.training.stack`; any other module goes through ``torch.func``, or, where
that can't, through plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from leaveout.curvature.plain import or_plain, plain_jacobian
from leaveout.problem.call import call_with, slow_paths, trained, without_padding
from leaveout.problem.samples import Samples
from leaveout.problem.trees import Tree, bytes_of, tree_map
from leaveout.training.stack import Layer

State = Mapping[str, Tensor]

BLOCK_BYTES = 1 << 20
"""Inputs, times models, that ``torch.func`` takes at once; activations are many times larger."""

BLOCK = 256
"""Samples that go through the model at once where nothing is kept of it."""


@dataclass(frozen=True)
class Linearised:
    """Models at some parameters.

    Attributes:
        outputs: (models, numbers, samples), of a sample all its outputs in a row.
        push: From a change of every parameter, (vectors, *its shape), J v as ``outputs``.
        pull: From one number an output, shaped as ``outputs``, J' c, shaped as parameters.
    """

    outputs: Tensor
    push: Callable[[State], Tensor]
    pull: Callable[[Tensor], dict[str, Tensor]]


def linearise_stack(layers: Sequence[Layer], state: State, inputs: Tensor) -> Linearised:
    """Linearise stacks of linear layers, without dropout.

    Args:
        layers: From :func:`leaveout.training.stack.parse`.
        state: Stacked parameters, (models, ...). One model serves any number of vectors; otherwise
            there is one vector a model.
        inputs: (features, samples).
    """
    below: list[Tensor] = [inputs]
    values = inputs
    for number, layer in enumerate(layers):
        weight = state[f"{layer.name}.weight"]
        if number == 0:
            values = (weight.flatten(0, 1) @ inputs).view(len(weight), layer.width, -1)
        else:
            values = torch.matmul(weight, values)
        values += state[f"{layer.name}.bias"][:, :, None]
        if layer.hidden:
            values.relu_()
            below.append(values)

    def push(vectors: State) -> Tensor:
        moved = None
        for number, layer in enumerate(layers):
            v = vectors[f"{layer.name}.weight"]
            if moved is None:
                values = (v.flatten(0, 1) @ inputs).view(len(v), layer.width, -1)
            else:
                values = torch.matmul(v, below[number])
                values += torch.matmul(state[f"{layer.name}.weight"], moved)
            values += vectors[f"{layer.name}.bias"][:, :, None]
            if layer.hidden:
                values *= below[number + 1] > 0
            moved = values
        return values

    def pull(change: Tensor) -> dict[str, Tensor]:
        found = {}
        for number in range(len(layers) - 1, -1, -1):
            name = layers[number].name
            found[f"{name}.bias"] = change.sum(2)
            if number == 0:
                weight = (change.flatten(0, 1) @ inputs.T).view(len(change), -1, len(inputs))
            else:
                weight = torch.matmul(change, below[number].transpose(1, 2))
                change = torch.matmul(state[f"{name}.weight"].transpose(1, 2), change)
                change *= below[number] > 0
            found[f"{name}.weight"] = weight
        return found

    return Linearised(values, push, pull)


def linearise_module(module: nn.Module, state: State, samples: Samples) -> Linearised:
    """Linearise any module, by ``torch.func`` if it can; every product runs the module again.

    Args:
        module: The architecture, in evaluation mode.
        state: Stacked parameters, (models, ...), and what is fixed as it is, shared. One model
            serves any number of vectors; otherwise there is one vector a model.
        samples: Whose objective says which of the outputs count.

    Raises:
        NotComputableError: The objective states no curvature.
    """
    likelihood = samples.objective.need("likelihood", "this needs its curvature in the outputs")
    names = [*trained(module)]
    params = {name: state[name] for name in names}
    fixed = {name: value for name, value in state.items() if name not in params}
    models = len(params[names[0]])
    size = max(1, BLOCK_BYTES // (models * max(1, bytes_of(samples[:1].inputs))))
    blocks = [part.inputs for part in samples.split(size)]

    def rows_of(raw: Any) -> Tensor:
        h: Tensor = likelihood.outputs(raw)
        return h.reshape(len(h), -1).T

    def run(p: dict[str, Tensor], x: Tree) -> Tensor:
        return rows_of(call_with(module, {**p, **fixed}, x))

    plain = plain_jacobian(module, params, fixed, blocks, rows_of)
    # one model is not repeated for each vector: torch runs it once for all of them
    dims = 0 if models > 1 else None
    there = params if models > 1 else {name: value[0] for name, value in params.items()}

    def push(vectors: State) -> Tensor:
        v = without_padding(module, {name: vectors[name] for name in names})
        with slow_paths():
            parts = [
                vmap(lambda p, t, x=x: jvp(lambda q: run(q, x), (p,), (t,))[1], (dims, 0))(there, v)
                for x in blocks
            ]
        return torch.cat(parts, dim=2)

    def pull(change: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for x, c in zip(blocks, change.split(size, dim=2), strict=True):
            pulled = vmap(lambda p, t, x=x: vjp(lambda q: run(q, x), p)[1](t)[0], (dims, 0))
            with slow_paths():
                found = pulled(there, c)
            total = {name: found[name] + total.get(name, 0) for name in names}
        return total

    def outputs(_: None) -> Tensor:
        with torch.no_grad(), slow_paths():
            return torch.cat([vmap(lambda p, x=x: run(p, x))(params) for x in blocks], dim=2)

    return Linearised(
        or_plain(outputs, lambda _: plain.outputs())(None),
        or_plain(push, plain.push),
        or_plain(pull, plain.pull),
    )


def output_shape(module: nn.Module, state: State, samples: Samples) -> tuple[int, ...]:
    """Return the shape of one sample's outputs h, as the objective's curvature sees them.

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers of one model.
        samples: The samples.

    Raises:
        NotComputableError: The objective states no curvature.
    """
    likelihood = samples.objective.need("likelihood", "this needs its curvature in the outputs")
    with torch.no_grad(), slow_paths():
        found = likelihood.outputs(call_with(module, state, samples[:1].inputs))
    return tuple(found.shape[1:])


def output_slopes(module: nn.Module, state: State, samples: Samples) -> Tensor:
    """Return the gradient of each sample's loss in its outputs h, (numbers, samples).

    Args:
        module: The architecture, in evaluation mode.
        state: Parameters and buffers of one model.
        samples: The samples.

    Raises:
        NotComputableError: The objective states no curvature.
    """
    likelihood = samples.objective.need("likelihood", "this needs its curvature in the outputs")
    found = []
    for part in samples.split(BLOCK):
        with torch.no_grad(), slow_paths():
            raw = call_with(module, state, part.inputs)
        leaves: list[Tensor] = []

        def leaf(value: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
            if not value.is_floating_point():
                return value
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]

        with torch.enable_grad():
            total = part.losses(tree_map(leaf, raw)).sum()
            slopes = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        left = iter(slopes)

        def slope(value: Tensor, left: Iterator[Tensor] = left) -> Tensor:
            return next(left) if value.is_floating_point() else value

        tree = tree_map(slope, raw)
        h = likelihood.outputs(tree)
        found.append(h.reshape(len(h), -1).T)
    return torch.cat(found, dim=1)
