"""Device memory: how much work to do at once, and how to go on when it was too much.

A device may be shared with other jobs, whose needs are unknown, so no estimate is safe. Work is cut
into blocks by an estimate, and a block that does not fit is halved and tried again.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from leaveout.errors import LeaveoutError

T = TypeVar("T")

SHARE = 0.5
"""Part of the free memory to plan for; the rest is for other jobs and for the estimate's error."""

PROBE = 8
"""Units of work tried to learn what one takes."""

# libraries that fail to get memory of their own raise a plain RuntimeError
_SIGNS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device (not the host) has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def in_blocks(
    work: Callable[[slice], T], total: int, size: int, what: str
) -> Iterator[tuple[slice, T]]:
    """Do work block by block, halving the block whenever the device has too little memory.

    What is finished is kept; the block that failed is done again in smaller ones. The work must not
    depend on how it is cut, and must not have changed anything when it fails.

    Args:
        work: Does the items of a slice.
        total: Number of items.
        size: Items at once, to begin with.
        what: The items, for messages, e.g. ``models trained at once``.

    Yields:
        (which items, the work's result), in order.

    Raises:
        LeaveoutError: One item alone does not fit.
    """
    start = 0
    while start < total:
        block = slice(start, min(start + size, total))
        length = block.stop - block.start
        failure = None
        try:
            result = work(block)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).partition("\n")[0]
        if failure is None:
            yield block, result
            del result  # or it would live on beside the next one
            start = block.stop
            continue
        # here, and not in the handler: the traceback held the tensors of the failed block
        free_caches()
        if length == 1:
            raise LeaveoutError(
                f"{what}: the device has too little memory for one alone ({failure}). Let fewer "
                "jobs share the device, take one with more memory, or set `device: cpu` in "
                "config/config.yaml."
            )
        size = length // 2
        print(
            f"note: {what}: {length} do not fit into the device's memory; going on with {size}. "
            "The results do not depend on it.",
            file=sys.stderr,
        )


def free_caches() -> None:
    """Give memory that torch holds but does not use back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Return the bytes this process could still allocate on a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    # what torch has reserved and does not use is ours as well
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_memory(device: torch.device, work: Callable[[], object]) -> int:
    """Return by how many bytes the allocated memory of a CUDA device rises during some work."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def fitting(work: Callable[[int], object], beside: int, total: int, device: torch.device) -> int:
    """Return how many units of work to do at once on a CUDA device, from a small try.

    Args:
        work: Does a given number of units, with the same use of memory as the real work.
        beside: Bytes a unit takes in the real work, but not in the try.
        total: Number of units.
        device: The device.

    Returns:
        At least 1, at most ``total``.
    """
    count = min(PROBE, total)
    try:
        work(1)  # libraries take their workspaces now, once
        taken = peak_memory(device, lambda: work(count)) / count
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        taken = None
    free_caches()
    if taken is None:
        return max(1, count // 2)
    return int(max(1, min(total, SHARE * free_memory(device) // (taken + beside))))
