"""NumPy's Philox generator on a device, many streams at once, bit for bit.

Masks drawn on the CPU and copied would keep a GPU waiting. Philox is a function of a key and a
counter (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3), so any part of any stream
can be drawn anywhere; here in torch's 64-bit integers, whose arithmetic wraps as that of unsigned
ones does. Only the counter's lowest 64 bits are kept: 2**66 draws a stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaveout.training.transfer import to_device

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 0xFFFFFFFF


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _high(a: Tensor, b: int) -> Tensor:
    """Return the upper 64 bits of the 128-bit product of unsigned words."""
    b_low, b_high = b & _LOW, b >> 32
    a_low, a_high = a & _LOW, (a >> 32) & _LOW
    # each partial product is below 2**64, but its sign bit may be set: shifts need the mask
    middle = a_high * b_low + ((a_low * b_low >> 32) & _LOW)
    cross = a_low * b_high + (middle & _LOW)
    return a_high * b_high + ((middle >> 32) & _LOW) + ((cross >> 32) & _LOW)


def keys(streams: Sequence[np.random.Generator], device: torch.device) -> Tensor:
    """Return the keys of generators made by :func:`leaveout.seeds.generator`, (streams, 2)."""
    found = np.stack([s.bit_generator.state["state"]["key"] for s in streams])
    return to_device(found.view(np.int64), device)


def blocks(key: Tensor, first: Tensor, count: int) -> Tensor:
    """Draw blocks of four 64-bit words.

    Args:
        key: (streams, 2).
        first: Number of the first block wanted of each stream, (streams,); a new generator begins
            with block 0.
        count: How many blocks.

    Returns:
        Words, (streams, count, 4), int64 for unsigned.
    """
    # NumPy counts up before it draws
    x0 = first[:, None] + torch.arange(1, count + 1, device=key.device)
    x1 = x2 = x3 = torch.zeros((), dtype=torch.int64, device=key.device)
    k0, k1 = key[:, :1], key[:, 1:]
    m0, m1 = _MULTIPLIERS
    for _ in range(10):
        x0, x1, x2, x3 = (
            _high(x2, m1) ^ x1 ^ k0,
            x2 * _signed(m1),
            _high(x0, m0) ^ x3 ^ k1,
            x0 * _signed(m0),
        )
        k0, k1 = k0 + _signed(_WEYL[0]), k1 + _signed(_WEYL[1])
    return torch.stack([x.expand_as(x0) for x in (x0, x1, x2, x3)], dim=-1)


def uint16(key: Tensor, words: NDArray[np.int64], count: int) -> Tensor:
    """Draw 16-bit numbers as ``np.frombuffer(generator.bytes(2 * count), "<u2")`` does.

    Args:
        key: (streams, 2).
        words: 32-bit words drawn before from each stream, (streams,); ``bytes`` takes whole ones.
        count: How many numbers.

    Returns:
        (streams, count), int32.
    """
    first, skipped = words // 8, 2 * (words % 8)
    drawn = blocks(key, to_device(first, key.device), -(-count // 16) + 1)
    drawn = drawn.flatten(1).view(torch.int32)
    # the low half of each 64-bit word comes first, as it lies in memory
    halves = torch.stack([drawn & 0xFFFF, (drawn >> 16) & 0xFFFF], dim=-1).flatten(1)
    if (skipped == skipped[0]).all():
        return halves[:, skipped[0] : skipped[0] + count]
    starts = to_device(skipped, key.device)[:, None]
    return halves.gather(1, starts + torch.arange(count, device=key.device))
