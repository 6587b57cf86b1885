"""How a model is called: one tensor, several in order, or several by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.problem.trees import Tree

State = Mapping[str, Tensor]
"""Parameters and buffers by name."""


def arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how inputs are handed to a model: in order and by name.

    A mapping goes by name, a tuple or list in order, anything else as the one argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def call(module: nn.Module, inputs: Tree) -> Any:
    """Return the outputs of a model."""
    args, named = arguments(inputs)
    return module(*args, **named)


def call_with(module: nn.Module, state: State, inputs: Tree) -> Any:
    """Return the outputs of a model whose parameters and buffers are replaced."""
    args, named = arguments(inputs)
    return functional_call(module, _placed(module, state), args, named, tie_weights=False)


def work_with(module: nn.Module, state: State, work: Callable[[], Any]) -> Any:
    """Return what some work gives while a model's parameters and buffers are replaced.

    A backward pass in it sees them as well, as activation checkpoints need, which run a forward
    pass again.
    """
    placed = {f"module.{name}": value for name, value in _placed(module, state).items()}
    return functional_call(_Inside(module, work), placed, (), tie_weights=False)


class _Inside(nn.Module):
    def __init__(self, module: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.module, self.work = module, work

    def forward(self) -> Any:
        return self.work()


def _placed(module: nn.Module, state: State) -> dict[str, Tensor]:
    """Return a state with one name for each place in which a tensor of the model stands.

    What is tied stands in several places. A submodule with several names is one place: torch, given
    all of them, puts back the new value in the place of the old, and the model is changed for good.
    """
    names: dict[tuple[int, str], str] = {}
    tied: dict[int, list[str]] = {}
    owner_of: dict[str, int] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for key, value in (*owner._parameters.items(), *owner._buffers.items()):
            if value is None:
                continue
            name, place = f"{prefix}.{key}" if prefix else key, (id(owner), key)
            owner_of[name] = id(value)
            if place not in names:
                names[place] = name
                tied.setdefault(id(value), []).append(name)
    return {
        name: value
        for given, value in state.items()
        for name in tied.get(owner_of.get(given, 0), [given])
    }


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training moves, by name, in order: gradients are in these.

    They are those that require a gradient; all of them where none does, as in a model that is used
    for evaluation alone. Tied parameters are one.
    """
    known = dict(module.named_parameters())
    moved = {name: value for name, value in known.items() if value.requires_grad}
    return moved or known


def refuse_mixing(module: nn.Module) -> None:
    """Refuse a model in which a sample's gradient depends on the others of its batch.

    Raises:
        NotComputableError: It does; names the layer.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
            why = "is a batch norm without running statistics; keep track_running_stats"
        elif getattr(layer, "scale_grad_by_freq", False):
            why = "scales gradients by how often a token is in a batch (scale_grad_by_freq)"
        else:
            continue
        raise NotComputableError(
            "undefined",
            f"{name or 'the model'} mixes the samples of a batch, so that none has a gradient of "
            f"its own: it {why}",
        )


def without_padding(module: nn.Module, vectors: State) -> dict[str, Tensor]:
    """Return changes of parameters without those of an embedding's padding row.

    That row is never trained: its gradient is 0 by definition, though outputs depend on it. So
    curvature has nothing there, neither in its rows nor in its columns.

    Args:
        module: The architecture.
        vectors: (vectors, *shape) of each parameter.
    """
    out = dict(vectors)
    for name, row in _padding(module).items():
        if name in out:
            out[name] = out[name].clone()
            out[name][:, row] = 0
    return out


def _padding(module: nn.Module) -> dict[str, int]:
    """Return the padding rows of embeddings whose weights have no other use, by their names."""
    names: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return {
        names[id(layer.weight)][0]: layer.padding_idx
        for layer in module.modules()
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
        and layer.padding_idx is not None
        and len(names[id(layer.weight)]) == 1
    }


def parts_of(module: nn.Module, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a state as trained parameters, and what is fixed beside them, both detached."""
    names = trained(module)
    fixed = {name: value.detach() for name, value in state.items() if name not in names}
    return {name: state[name].detach() for name in names}, fixed


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by name, as they are; what is tied, once.

    That is its ``state_dict``, which has what is tied under every one of its names.
    """
    known = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return {name: value for name, value in module.state_dict().items() if name in known}


def load_state(module: nn.Module, state: State) -> None:
    """Load a state from :func:`state_of`, or a whole ``state_dict``, into a module.

    Raises:
        LeaveoutError: It is another module's.
    """
    wanted, given = {*state_of(module)}, {*state}
    odd = (wanted - given) | (given - {*module.state_dict()})
    if not odd:
        try:
            module.load_state_dict({name: state[name] for name in wanted}, strict=False)
        except RuntimeError as error:  # of a shape
            raise LeaveoutError(f"not a state of this model: {error}") from error
        return
    raise LeaveoutError(
        f"not a state of this model: {', '.join(sorted(odd)[:5])} "
        f"{'are' if len(odd) > 1 else 'is'} missing or too much"
    )


@contextmanager
def slow_paths() -> Iterator[None]:
    """Keep attention to plain products, which can be differentiated twice and mapped.

    Without gradients torch takes another way through its transformer layers, with nested tensors;
    and its fused kernels have neither second derivatives nor a form for many models at once.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def numbers(module: nn.Module, state: State | None = None) -> Tensor:
    """Return an empty tensor of the dtype, and on the device, that results of a model have.

    They come from its parameters, never from its inputs: those may be token ids.
    """
    known = dict(module.named_parameters())
    values = [known[name] if state is None else state[name] for name in known]
    if any(value.is_complex() for value in values):
        raise NotComputableError("undefined", "the model has complex parameters")
    found = next((value for value in values if value.is_floating_point()), None)
    if found is None:
        raise LeaveoutError("the model has no parameters, so there is nothing to differentiate in")
    return found.detach().new_empty(0)
