"""leaveout: a reproducible benchmark of training-data attribution."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaveout.interop.benchmark import load_benchmark

__version__ = "0.1.0"

__all__ = [
    "load_benchmark",
]

_HOMES = {
    "load_benchmark": "leaveout.interop.benchmark",
}
"""Where the public names live: loaded when asked for, since most of them load torch."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too."""
    return sorted({*globals(), *__all__})
