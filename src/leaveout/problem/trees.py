"""Samples of any form: nested tuples, lists and mappings, whose tensors have a row a sample.

A tensor without dimensions, and what is no tensor, belongs to all samples alike.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

Tree = Any
"""A tensor, or a nested tuple, list, mapping or dataclass of them."""


def tree_map(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """Apply a function to every tensor, in order; other values are kept, and so are types."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is dict:
        return {key: tree_map(function, item) for key, item in tree.items()}
    if isinstance(tree, MutableMapping):  # an own type, whose attributes may be its items
        made = copy.copy(tree)
        for key in tree:
            made[key] = tree_map(function, tree[key])
        return made
    if isinstance(tree, Mapping):
        return {key: tree_map(function, item) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        items = [tree_map(function, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        fields = {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init}
        return dataclasses.replace(
            tree, **{name: tree_map(function, item) for name, item in fields.items()}
        )
    return tree


def tensors(tree: Tree) -> list[Tensor]:
    """List the tensors that have a row a sample."""
    return [value for value in _leaves(tree) if value.dim()]


def _leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield all tensors in the order of :func:`tree_map`, whose types need not be made anew."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for key in tree:
            yield from _leaves(tree[key])
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            if field.init:
                yield from _leaves(getattr(tree, field.name))


def count(tree: Tree) -> int:
    """Return how many samples there are: the rows of the first tensor."""
    return len(tensors(tree)[0])


def rows(tree: Tree, part: slice | Sequence[int] | Tensor) -> Tree:
    """Take some samples."""
    return tree_map(lambda value: value[part] if value.dim() else value, tree)


def join(trees: Sequence[Tree]) -> Tree:
    """Put samples of the same form one after the other."""
    if len(trees) == 1:
        return trees[0]
    columns = zip(*(tensors(tree) for tree in trees), strict=True)
    joined: Iterator[Tensor] = iter([torch.cat(column) for column in columns])
    return tree_map(lambda value: next(joined) if value.dim() else value, trees[0])


def floating(tree: Tree, dtype: torch.dtype) -> Tree:
    """Change the type of floating-point tensors; ids, masks and labels are kept."""
    return tree_map(lambda value: value.to(dtype) if value.is_floating_point() else value, tree)


def bytes_of(tree: Tree) -> int:
    """Return how much memory the tensors take."""
    return sum(value.numel() * value.element_size() for value in tensors(tree))


def one_by_one(function: Callable[..., tuple[Tensor, ...]], *trees: Tree) -> tuple[Tensor, ...]:
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
