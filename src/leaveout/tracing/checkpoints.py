"""Checkpoints: where they are, how they get into the model, and how the model gets back."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leaveout.errors import LeaveoutError

Load = Callable[[nn.Module, Any], float]
"""Loads a checkpoint into the model and returns the learning rate it stands for."""


def list_checkpoints(checkpoints: str | Path | Iterable[Any]) -> list[Any]:
    """List checkpoints: the items given, or a folder's files, ordered by numbers in their names.

    Raises:
        LeaveoutError: There are none.
    """
    if isinstance(checkpoints, str | Path):
        folder = Path(checkpoints)
        if not folder.is_dir():
            raise LeaveoutError(
                f"checkpoints: {folder} is no folder; give a folder, or a list of what the load "
                "function takes"
            )
        found: list[Any] = sorted((p for p in folder.iterdir() if p.is_file()), key=_natural)
    else:
        found = list(checkpoints)
    if not found:
        raise LeaveoutError(f"checkpoints: there are none in {checkpoints}")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]


def load_checkpoint(model: nn.Module, checkpoint: Any) -> float:
    """Load a checkpoint and return its learning rate: the default load function.

    Args:
        model: Gets the parameters and buffers.
        checkpoint: A state dict, or a mapping that holds one as ``state_dict`` or
            ``model_state_dict``, or the path of a file with either, as ``torch.save`` writes it
            (read with ``weights_only=True``). The learning rate is 1 where it holds none.

    Raises:
        LeaveoutError: It is something else.
    """
    name = str(checkpoint) if isinstance(checkpoint, str | Path) else "checkpoint"
    if isinstance(checkpoint, str | Path):
        where = next((p.device for p in model.parameters()), torch.device("cpu"))
        checkpoint = torch.load(checkpoint, map_location=where, weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise LeaveoutError(
            f"{name}: expected a state dict, got {type(checkpoint).__name__}; give a "
            "checkpoints_load_func of your own"
        )
    state = dict(checkpoint)
    rate = state.pop("learning_rate", 1.0)
    for key in ("state_dict", "model_state_dict"):
        state = state.get(key, state)
    # as saved from DataParallel
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return float(rate)


def load_with(load: Load, model: nn.Module, checkpoint: Any) -> float:
    """Load a checkpoint, make the model ready for gradients by hand, and check the learning rate.

    Raises:
        LeaveoutError: The load function returned no finite number >= 0.
    """
    rate = load(model, checkpoint)
    model.eval()
    model.requires_grad_(False)
    if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
        where = checkpoint if isinstance(checkpoint, str | Path) else "a checkpoint"
        raise LeaveoutError(
            f"checkpoints_load_func returned {rate!r} for {where}; it must load the checkpoint "
            "into the model and return the learning rate, a finite number >= 0"
        )
    return float(rate)


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Give the model back as it was, whatever happens: values, modes, gradients, flags.

    torch's random generator, from which a ``DataLoader`` draws, is given back, too.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    kept = [
        (module, name, tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad)
        for module in modules
        for named in (
            module.named_parameters(recurse=False, remove_duplicate=False),
            module.named_buffers(recurse=False, remove_duplicate=False),
        )
        for name, tensor in named
    ]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            with torch.no_grad():
                for module, name, tensor, value, wanted, gradient in kept:
                    if getattr(module, name) is not tensor:  # the load function put in another
                        setattr(module, name, tensor)
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)
                    tensor.requires_grad_(wanted)
                    tensor.grad = gradient
