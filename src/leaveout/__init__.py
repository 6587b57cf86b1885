"""leaveout: a reproducible benchmark of training-data attribution."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaveout.interop.benchmark import load_benchmark as load_benchmark

__version__ = "0.1.0"

# What Python code may ask of the package itself, and where it is; loaded when it is asked for (PEP
# 562), because it needs torch and most of what imports leaveout does not.
_LAZY = {
    "load_benchmark": "leaveout.interop.benchmark",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
