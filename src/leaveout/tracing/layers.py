"""Which of a model's parameters count: the layers a user names, checked against the model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from leaveout.errors import LeaveoutError


def chosen_parameters(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Return the names of the parameters whose gradients count.

    Args:
        model: The model.
        layers: Names of modules or parameters; None takes all parameters that require a gradient.

    Raises:
        LeaveoutError: A layer is not there, or there is no parameter.
    """
    known = dict(model.named_parameters())
    if layers is None:
        found = [name for name, parameter in known.items() if parameter.requires_grad]
        if not found:
            raise LeaveoutError(
                "model: no parameter requires a gradient; name the layers that count in `layers`"
            )
        return found
    if isinstance(layers, str):
        raise LeaveoutError(f"layers: expected a list of names, got {layers!r}; give [{layers!r}]")
    found = []
    for layer in layers:
        own = [name for name in known if name == layer or name.startswith(f"{layer}.")]
        if not own:
            modules = [name for name, m in model.named_modules() if name and [*m.parameters()]]
            raise LeaveoutError(
                f"layers: the model has no layer {layer!r} with parameters; it has "
                f"{', '.join(modules)}"
            )
        found += [name for name in own if name not in found]
    return found


def linear_layer_name(model: nn.Module, layer: nn.Module | str) -> str:
    """Return the name of a linear layer of the model.

    Args:
        model: The model.
        layer: The layer, or its name.

    Raises:
        LeaveoutError: The model has no such linear layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (module is layer or name == layer):
            return str(name)
    what = layer if isinstance(layer, str) else type(layer).__name__
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    raise LeaveoutError(
        f"final_fc_layer: {what} is no linear layer of the model; it has {', '.join(names)}"
    )
