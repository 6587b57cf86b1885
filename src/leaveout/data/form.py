"""Trees of tensors as named arrays, and back: what a prepared file holds of any samples.

A *form* is JSON: ``{"array": name}``, ``{"mapping": {key: form}}``, ``{"tuple": [form, ...]}``,
``{"list": [...]}`` or ``{"value": ...}``. So loading needs no code of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaveout.errors import LeaveoutError
from leaveout.problem.trees import Tree
from leaveout.store.artefacts import Array

Form = dict[str, Any]

_KEPT = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32")
"""Types that are kept; others become the nearest of these."""


def flatten(tree: Tree, name: str, arrays: dict[str, Array]) -> Form:
    """Take a tree apart.

    Args:
        tree: Tensors or NumPy arrays, in nested mappings, tuples and lists. One without dimensions
            becomes a plain number.
        name: Of the whole, such as ``inputs``; what lies in it is called ``inputs.mask``.
        arrays: Where the arrays are added, by name. float64 becomes float32, which models have.

    Returns:
        Its form.

    Raises:
        LeaveoutError: Something in it is of another kind.
    """
    if isinstance(tree, Tensor | np.ndarray):
        if not tree.shape:  # it belongs to all samples alike
            return {"value": tree.item()}
        if name in arrays:
            raise LeaveoutError(f"data: two entries are called {name}; rename one")
        arrays[name] = _array(tree, name)
        return {"array": name}
    if isinstance(tree, Mapping):
        return {"mapping": {str(k): flatten(v, f"{name}.{k}", arrays) for k, v in tree.items()}}
    if isinstance(tree, tuple | list):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [flatten(v, f"{name}.{k}", arrays) for k, v in enumerate(tree)]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise LeaveoutError(
        f"data: {name} is {type(tree).__name__}; expected tensors or NumPy arrays, alone or in "
        "dictionaries, tuples and lists"
    )


def _array(values: Tensor | Array, name: str) -> Array:
    tensor = torch.as_tensor(values) if _is_numeric(values) else None
    if tensor is None or tensor.is_complex():
        raise LeaveoutError(f"data: {name} holds {values.dtype}; expected numbers or truth values")
    kept = str(tensor.dtype).removeprefix("torch.") in _KEPT
    if not kept:
        tensor = tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64)
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _is_numeric(values: Tensor | Array) -> bool:
    return isinstance(values, Tensor) or values.dtype.kind in "biuf"


def build(form: Form, part: str, arrays: Mapping[str, Array]) -> Tree:
    """Put a tree together.

    Args:
        form: Its form.
        part: ``train`` or ``test``, before the arrays' names.
        arrays: By name, such as ``train_inputs.mask``.
    """
    ((kind, inside),) = form.items()
    match kind:
        case "array":
            return torch.from_numpy(arrays[f"{part}_{inside}"])
        case "mapping":
            return {key: build(item, part, arrays) for key, item in inside.items()}
        case "tuple":
            return tuple(build(item, part, arrays) for item in inside)
        case "list":
            return [build(item, part, arrays) for item in inside]
        case _:
            return inside
