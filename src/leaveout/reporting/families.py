"""Families of methods, by which figures group and colour them; docs/methods.md says what they are.

A family is told by the entry's name, so a method from elsewhere needs no change here: it is one of
the ``OTHERS`` unless its name begins as a family's do.
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
"""How the names of each family begin: as they stand, or followed by an underscore."""
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
