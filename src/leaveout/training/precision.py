"""Which numbers a training step calculates with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from leaveout.config import Recipe


def forward_precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass: autocast where the recipe says bfloat16.

    The backward pass uses what the forward pass did. Weights, loss and optimiser stay in float32.
    """
    if recipe.precision == "float32":
        return nullcontext()
    # no cache: every weight is used once a step, and torch.func's would outlive their step
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def full_float32() -> None:
    """Turn TensorFloat-32 off: it would change the models, not only their speed."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
