"""Families of methods, by which figures group and colour them; docs/methods.md describes them.

The name of a method decides its family, so that a new method needs no change here: unless its name
begins like those of a family, it is one of the ``OTHERS``.
"""

from __future__ import annotations

from collections.abc import Iterable

FAMILIES = {
    "baselines": ("random", "label_match", "feature_cosine", "knn_shapley"),
    "gradient similarity": ("grad_dot", "grad_cos", "tracin"),
    "influence functions": ("if", "datainf", "astra", "relatif"),
    "projected gradients": ("trak", "logra", "grass", "factgrass"),
    "the last layer": ("rps",),
    "training itself": ("source", "dvemb", "magic"),
}
"""The names in each family: exactly these, or these followed by an underscore and more."""
OTHERS = "others"
ORDER = (*FAMILIES, OTHERS)


def family(method: str) -> str:
    """Return the family of a method."""
    for name, beginnings in FAMILIES.items():
        if any(method == start or method.startswith(f"{start}_") for start in beginnings):
            return name
    return OTHERS


def by_family(methods: Iterable[str]) -> dict[str, list[str]]:
    """Return the methods of each family that has any: families in ``ORDER``, methods as given."""
    found: dict[str, list[str]] = {name: [] for name in ORDER}
    for method in methods:
        found[family(method)].append(method)
    return {name: members for name, members in found.items() if members}
