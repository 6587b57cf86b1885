"""Samples of any form: nested tuples, lists and mappings, whose tensors have a row a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap


def tree_map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor, in order; other values are kept."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: tree_map(function, item) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        items = [tree_map(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def tensors(tree: Any) -> list[Tensor]:
    """List the tensors that have a row a sample."""
    found: list[Tensor] = []
    tree_map(lambda value: found.append(value) if value.dim() else None, tree)
    return found


def rows(tree: Any, part: slice) -> Any:
    """Take some samples."""
    return tree_map(lambda value: value[part] if value.dim() else value, tree)


def one_by_one(function: Callable[..., tuple[Tensor, ...]], *trees: Any) -> tuple[Tensor, ...]:
    """Call a function on each sample alone, at once where it can be vectorised.

    Args:
        function: Takes trees of batches of one sample, gives tensors.
        *trees: What it takes, of all samples.

    Returns:
        Its results, stacked: (samples, ...) each.
    """
    values = tensors(trees)

    def alone(*sample: Tensor) -> tuple[Tensor, ...]:
        left = iter(sample)
        return function(*tree_map(lambda v: next(left)[None] if v.dim() else v, trees))

    try:
        return tuple(vmap(alone)(*values))
    except RuntimeError:  # it looks at values, or uses an operation that vmap has no rule for
        results = [function(*rows(trees, slice(i, i + 1))) for i in range(len(values[0]))]
        return tuple(torch.stack(column) for column in zip(*results, strict=True))
