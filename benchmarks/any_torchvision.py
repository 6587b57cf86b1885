"""torchvision beside any build of torch, for the scripts that the peers' Python runs."""

from __future__ import annotations

import importlib
import sys

import torch

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def import_torchvision() -> None:
    """Import torchvision, whose operators, built for CUDA, do not load beside a CPU build of torch.

    The data sets need none of them, but the import wants two to be declared.

    Raises:
        ModuleNotFoundError: There is no torchvision.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")
