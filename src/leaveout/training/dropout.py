"""Dropout whose masks come from a trial's own stream, the same in every engine.

torch's own dropout draws from one global generator, in an order that depends on how models are
batched. Here the masks of a step are drawn before its forward pass, from the trial's stream, layer
by layer, for all positions of the row, holes included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leaveout.errors import LeaveoutError
from leaveout.problem.call import call
from leaveout.problem.trees import Tree
from leaveout.training import philox

DropoutLayer = tuple[tuple[int, ...], float]
"""Shape of one sample at a dropout layer, and its probability."""


class StreamDropout(nn.Module):
    """Dropout with a mask that is set from outside before every training step.

    Attributes:
        probability: Probability of dropping a unit.
        mask: Units kept in this step, (samples, *units).
        unit_shape: Shape of one sample here, set by ``use_streams``.
    """

    mask: Tensor | None
    unit_shape: tuple[int, ...]

    def __init__(self, probability: float) -> None:
        """Take over the probability of an ``nn.Dropout``."""
        super().__init__()
        self.probability = probability
        self.mask = None

    def forward(self, values: Tensor) -> Tensor:
        """Drop units while training, and scale the others by 1 / (1 - p)."""
        if not self.training:
            return values
        if self.mask is None:
            raise RuntimeError("the training loop must set the dropout mask before each step")
        return values * self.mask.to(values) / (1 - self.probability)


def replace_modules(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace, in place, each submodule for which ``replace`` returns another."""
    for name, child in module.named_children():
        new = replace(child)
        if new is None:
            replace_modules(child, replace)
        else:
            setattr(module, name, new)


def _drops_by_itself(layer: nn.Module) -> bool:
    """Return whether a layer draws masks of its own while training."""
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.dropout > 0
    if isinstance(layer, nn.RReLU):
        return True
    others = nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
    return isinstance(layer, others) and layer.p > 0


def use_streams(module: nn.Module, sample: Tree) -> list[StreamDropout]:
    """Replace the dropout layers of a module, in place, and learn the shapes they see.

    Args:
        module: The model.
        sample: Inputs of a batch of one sample.

    Returns:
        The new layers in the order of the forward pass. Each carries ``unit_shape``, the shape of
        one sample there.

    Raises:
        LeaveoutError: Another layer drops units by itself, from torch's own generator.
    """
    for name, layer in module.named_modules():
        if _drops_by_itself(layer):
            raise LeaveoutError(
                f"model: {name or 'the module'} ({type(layer).__name__}) drops units by itself, "
                "from a generator that no trial can repeat. Set its dropout to 0, or use nn.Dropout"
            )
    replace_modules(
        module, lambda child: StreamDropout(child.p) if isinstance(child, nn.Dropout) else None
    )
    seen: list[StreamDropout] = []

    def note(layer: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, StreamDropout)
        layer.unit_shape = tuple(args[0].shape[1:])
        seen.append(layer)

    layers = [layer for layer in module.modules() if isinstance(layer, StreamDropout)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    was_training = module.training
    module.eval()
    with torch.no_grad():
        call(module, sample)
    module.train(was_training)
    for hook in hooks:
        hook.remove()
    if len(seen) != len(layers):
        raise ValueError("a dropout layer is used more than once, or never, in a forward pass")
    return seen


def draw_masks(
    stream: np.random.Generator, samples: int, layers: list[DropoutLayer]
) -> list[NDArray[np.bool_]]:
    """Draw the masks of one step, 16 random bits a unit.

    The probability is thus rounded to a multiple of 2**-16.

    Args:
        stream: The trial's dropout generator; steps, and layers within a step, draw from it in
            order.
        samples: Positions in the row, holes included, padding excluded.
        layers: The dropout layers.

    Returns:
        For each layer the units kept, (samples, *units).
    """
    masks = []
    for shape, probability in layers:
        size = samples * int(np.prod(shape))
        drawn = stream.bytes(2 * size) if size else b""  # bytes(0) would still move the stream on
        bits = np.frombuffer(drawn, dtype="<u2")
        masks.append((bits >= round(probability * 65536)).reshape(samples, *shape))
    return masks


class MaskStreams:
    """The masks of many trials, step by step, as :func:`draw_masks` draws them for each.

    On a CPU they are drawn by NumPy; on a GPU there, from the same streams, because drawing and
    copying would take longer than the training they are for.
    """

    def __init__(
        self,
        streams: Sequence[np.random.Generator],
        layers: list[DropoutLayer],
        device: torch.device,
        on_device: bool | None = None,
    ) -> None:
        """Begin new streams.

        Args:
            streams: New dropout generators of the trials.
            layers: The dropout layers.
            device: Where the masks will be used.
            on_device: Whether to draw them there; by default on anything but a CPU.
        """
        self.streams = list(streams)
        self.layers = layers
        self.device = device
        self.keys: Tensor | None = None
        if device.type != "cpu" if on_device is None else on_device:
            self.keys = philox.keys(self.streams, device)
            self.words = np.zeros(len(self.streams), dtype=np.int64)

    def draw(self, lengths: NDArray[np.int64], rows: int) -> list[Tensor]:
        """Draw the masks of one step.

        Args:
            lengths: Samples in each trial's row, holes included, (streams,).
            rows: Samples to return, at least as many; what lies beyond a row's end means nothing.

        Returns:
            For each layer the units kept, (streams, rows, *units), bool, on the device.
        """
        if self.keys is not None:
            return [self._draw_there(lengths, rows, layer) for layer in self.layers]
        drawn = [
            draw_masks(stream, int(length), self.layers)
            for stream, length in zip(self.streams, lengths, strict=True)
        ]
        masks = []
        for number, (shape, _) in enumerate(self.layers):
            kept = np.zeros((len(drawn), rows, *shape), dtype=bool)
            for row, own in zip(kept, drawn, strict=True):
                row[: len(own[number])] = own[number]
            masks.append(torch.from_numpy(kept).to(self.device))
        return masks

    def _draw_there(self, lengths: NDArray[np.int64], rows: int, layer: DropoutLayer) -> Tensor:
        shape, probability = layer
        assert self.keys is not None
        units = int(np.prod(shape))
        bits = philox.uint16(self.keys, self.words, rows * units)
        self.words = self.words + (lengths * units + 1) // 2  # whole words of two numbers each
        return (bits >= round(probability * 65536)).view(-1, rows, *shape)
