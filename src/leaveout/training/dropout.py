"""Dropout whose masks come from a trial's own stream, the same in every engine.

torch's own dropout draws from one global generator, in an order that depends on how models are
batched. Here the masks of a step are drawn before its forward pass, from the trial's stream, site
by site, for all positions of the row, holes included. A site is one call of a dropout function in
a forward pass: by a layer, in attention, or by the model's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from leaveout.errors import LeaveoutError
from leaveout.problem import randomness
from leaveout.problem.call import call
from leaveout.problem.trees import Tree, tree_map
from leaveout.training import philox


class Site(NamedTuple):
    """One call of a dropout function in a forward pass.

    Attributes:
        units: Shape of what one sample draws for.
        probability: Probability of dropping a unit.
        axis: Where the values' samples are, if there are several rows of each, as of attention's
            heads, or if they do not come first.
    """

    units: tuple[int, ...]
    probability: float
    axis: int | None = None

    def spread(self, kept: Tensor, shape: Sequence[int]) -> Tensor:
        """Return units kept in the shape of the values.

        Args:
            kept: (samples, *units), or (1, *units) for all samples.
            shape: Of what is dropped.

        Raises:
            LeaveoutError: They do not fit.
        """
        axis = self.axis or 0
        rows = 1 if self.axis is None else self.units[axis]
        if len(kept) == 1:
            kept = kept.expand(shape[axis] // rows, *self.units)
        if self.axis is not None:
            kept = kept.movedim(0, axis).flatten(axis, axis + 1)
        if tuple(kept.shape) != tuple(shape):
            raise LeaveoutError(
                f"model: a dropout sees values of shape {(*shape,)}, where masks of shape "
                f"{(*kept.shape,)} were drawn: it must drop alike in every step"
            )
        return kept


Kept = Callable[[Sequence[int], float], Tensor | None]
"""From the shape of a site's values and its probability, the units kept; None to drop nothing."""


@contextmanager
def _asked(kept: Kept) -> Iterator[None]:
    """Let torch's functions that drop units, by their names, ask for what they keep.

    One of torch's function modes would not see what an activation checkpoint does later.
    """
    torchs = functional.scaled_dot_product_attention

    def drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _drop(kept, input, input.shape, p if training else 0, inplace)

    def drop_plainly(input: Tensor, p: float, train: bool) -> Tensor:
        return _drop(kept, input, input.shape, p if train else 0, False)

    def drop_features(
        input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        shape = (*input.shape[:2], *[1] * (input.dim() - 2))
        return _drop(kept, input, shape, p if training else 0, inplace)

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        def attention(values: Tensor) -> Tensor:
            return torchs(
                query, key, values, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )

        if dropout_p == 0:
            return attention(value)
        # the weights are what attention makes of the identity
        places = torch.eye(value.shape[-2], dtype=value.dtype, device=value.device)
        weights = attention(places.expand(*value.shape[:-1], value.shape[-2]))
        if enable_gqa:
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        return _drop(kept, weights, weights.shape, dropout_p, False) @ value

    own: list[tuple[Any, str, Any]] = [
        (functional, "dropout", drop),
        (functional, "dropout1d", drop_features),
        (functional, "dropout2d", drop_features),
        (functional, "dropout3d", drop_features),
        (functional, "scaled_dot_product_attention", attend),
        (torch, "dropout", drop_plainly),
    ]
    before = [getattr(owner, name) for owner, name, _ in own]
    for owner, name, function in own:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name, _), function in zip(own, before, strict=True):
            setattr(owner, name, function)


def _drop(kept: Kept, values: Tensor, shape: Sequence[int], p: float, inplace: bool) -> Tensor:
    mask = kept(shape, p) if p else None
    if mask is None:
        return values
    scale = 1 - p if p < 1 else 1
    if inplace:
        return values.mul_(mask.to(values)).div_(scale)
    return values * mask.to(values) / scale


def _draws_by_itself(layer: nn.Module) -> bool:
    """Return whether a layer draws inside of kernels, where no mask can be given."""
    if isinstance(layer, nn.RNNBase):
        return layer.dropout > 0
    if isinstance(layer, nn.RReLU):
        return True
    return isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout) and layer.p > 0


def dropout_sites(module: nn.Module, sample: Tree) -> list[Site]:
    """Find where a model drops units while training, in the order of a forward pass.

    Args:
        module: The model; it is tried on a copy.
        sample: Inputs of a batch of one sample.

    Returns:
        The sites.

    Raises:
        LeaveoutError: It draws random numbers in a way that no trial can repeat.
    """
    for name, layer in module.named_modules():
        if _draws_by_itself(layer):
            raise LeaveoutError(
                f"model: {name or 'the module'} ({type(layer).__name__}) draws by itself, "
                "from a generator that no trial can repeat. Set its dropout to 0, or use nn.Dropout"
            )
    few = _calls(module, sample, 2)
    if not few:
        return []
    more = _calls(module, sample, 3)
    if len(few) != len(more):
        raise LeaveoutError("model: how often it drops units depends on the size of a batch")
    return [_site(*pair) for pair in zip(few, more, strict=True)]


def _calls(module: nn.Module, sample: Tree, samples: int) -> list[Site]:
    """Return the shapes of whole batches at each site, dropping nothing."""
    seen: list[Site] = []
    with torch.no_grad(), refuse_draws(), _asked(lambda shape, p: seen.append(Site((*shape,), p))):
        call(
            copy.deepcopy(module).train(),
            tree_map(lambda value: value[:1].repeat_interleave(samples, 0), sample),
        )
    return seen


def _site(two: Site, three: Site) -> Site:
    """Return a site from the shapes that batches of two and of three samples have there."""
    grown = [
        axis
        for axis, (few, more) in enumerate(zip(two.units, three.units, strict=False))
        if few != more
    ]
    (axis,) = grown if len(grown) == 1 else (0,)
    rows = three.units[axis] - two.units[axis] if grown else 0
    if len(two.units) != len(three.units) or len(grown) != 1 or two.units[axis] != 2 * rows:
        raise LeaveoutError(
            f"model: of two samples, a dropout sees values of shape {two.units}, of three "
            f"{three.units}: which are a sample's own? Drop units of each sample"
        )
    if axis == 0 and rows == 1:
        return Site(two.units[1:], two.probability)
    return Site((*two.units[:axis], rows, *two.units[axis + 1 :]), two.probability, axis)


@contextmanager
def dropped(sites: Sequence[Site], masks: Sequence[Tensor]) -> Iterator[None]:
    """Give the masks of a step to a forward pass, in the order of its sites.

    The backward pass belongs inside, too: an activation checkpoint would go through a site again
    there, with another mask, which is refused.

    Args:
        sites: From :func:`dropout_sites`.
        masks: For each the units kept, (samples, *units), bool; (1, *units) for all samples.

    Raises:
        LeaveoutError: The model drops units elsewhere than in its trial.

    Example:
        >>> with dropped(dropout_sites(module, inputs), masks):
        ...     module.train()(inputs).sum().backward()
    """
    if not sites:
        yield
        return
    left = list(zip(sites, masks, strict=True))
    refused = LeaveoutError(
        "model: it drops units more or less often than in its first pass. Each pass must drop "
        "alike, and activation checkpoints cannot stand around dropout"
    )

    def kept(shape: Sequence[int], probability: float) -> Tensor:
        if not left or left[0][0].probability != probability:
            raise refused
        site, mask = left.pop(0)
        return site.spread(mask, shape)

    with _asked(kept):
        yield
    if left:
        raise refused


@contextmanager
def refuse_draws() -> Iterator[None]:
    """Refuse a model that draws from a global generator, so that no training can be repeated.

    Raises:
        LeaveoutError: It did.
    """
    before = randomness.states()
    yield
    if before != randomness.states():
        raise LeaveoutError(
            "model: it draws random numbers while training, from a global generator, so that no "
            "training can be repeated. Use nn.Dropout, or torch.nn.functional.dropout by that name"
        )


def draw_masks(
    stream: np.random.Generator, samples: int, sites: Sequence[Site]
) -> list[NDArray[np.bool_]]:
    """Draw the masks of one step, 16 random bits a unit.

    The probability is thus rounded to a multiple of 2**-16.

    Args:
        stream: The trial's dropout generator; steps, and sites within a step, draw from it in
            order.
        samples: Positions in the row, holes included, padding excluded.
        sites: Where units are dropped.

    Returns:
        For each site the units kept, (samples, *units).
    """
    masks = []
    for site in sites:
        size = samples * int(np.prod(site.units))
        drawn = stream.bytes(2 * size) if size else b""  # bytes(0) would still move the stream on
        bits = np.frombuffer(drawn, dtype="<u2")
        masks.append((bits >= round(site.probability * 65536)).reshape(samples, *site.units))
    return masks


class MaskStreams:
    """The masks of many trials, step by step, as :func:`draw_masks` draws them for each.

    On a CPU they are drawn by NumPy; on a GPU there, from the same streams, because drawing and
    copying would take longer than the training they are for.
    """

    def __init__(
        self,
        streams: Sequence[np.random.Generator],
        sites: Sequence[Site],
        device: torch.device,
        on_device: bool | None = None,
    ) -> None:
        """Begin new streams.

        Args:
            streams: New dropout generators of the trials.
            sites: Where units are dropped.
            device: Where the masks will be used.
            on_device: Whether to draw them there; by default on anything but a CPU.
        """
        self.streams = list(streams)
        self.sites = sites
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
            For each site the units kept, (streams, rows, *units), bool, on the device.
        """
        if self.keys is not None:
            return [self._draw_there(lengths, rows, site) for site in self.sites]
        drawn = [
            draw_masks(stream, int(length), self.sites)
            for stream, length in zip(self.streams, lengths, strict=True)
        ]
        masks = []
        for number, site in enumerate(self.sites):
            kept = np.zeros((len(drawn), rows, *site.units), dtype=bool)
            for row, own in zip(kept, drawn, strict=True):
                row[: len(own[number])] = own[number]
            masks.append(torch.from_numpy(kept).to(self.device))
        return masks

    def _draw_there(self, lengths: NDArray[np.int64], rows: int, site: Site) -> Tensor:
        assert self.keys is not None
        units = int(np.prod(site.units))
        bits = philox.uint16(self.keys, self.words, rows * units)
        self.words = self.words + (lengths * units + 1) // 2  # whole words of two numbers each
        return (bits >= round(site.probability * 65536)).view(-1, rows, *site.units)
