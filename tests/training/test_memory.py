"""A device with too little memory, simulated: nothing here needs a GPU."""

from __future__ import annotations

import weakref

import pytest
import torch

from leaveout.errors import LeaveoutError
from leaveout.training import memory
from leaveout.training.memory import fitting, in_blocks, is_out_of_memory

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def holds(most: int, tried: list[slice] | None = None) -> object:
    def work(block: slice) -> list[int]:
        if tried is not None:
            tried.append(block)
        if block.stop - block.start > most:
            raise torch.OutOfMemoryError(*FULL.args)
        return list(range(block.start, block.stop))

    return work


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("size", [1, 4, 7, 8, 50])
def test_everything_is_done_once_and_in_order(most: int, size: int) -> None:
    found = list(in_blocks(holds(most), 23, size, "things"))  # type: ignore[arg-type]
    assert [i for _, part in found for i in part] == list(range(23))
    for block, part in found:
        assert part == list(range(block.start, block.stop))
        assert len(part) <= min(most, size)


def test_the_block_is_halved_and_stays_so(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[slice] = []
    list(in_blocks(holds(3, tried), 10, 8, "models trained at once"))  # type: ignore[arg-type]
    cuts = [(block.start, block.stop) for block in tried]
    assert cuts == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "note: models trained at once: 8 do not fit into the device's memory; going on with 4."
    )


def test_what_was_finished_before_is_not_done_again() -> None:
    free = [8]
    done = []

    def work(block: slice) -> int:
        if block.stop - block.start > free[0]:
            raise torch.OutOfMemoryError(*FULL.args)
        done.append((block.start, block.stop))
        return 0

    for block, _ in in_blocks(work, 24, 8, "things"):
        if block.start == 8:  # another job takes its share
            free[0] = 3
    assert done == [(0, 8), (8, 16), (16, 18), (18, 20), (20, 22), (22, 24)]


def test_one_that_does_not_fit_alone_is_an_error_with_a_remedy() -> None:
    with pytest.raises(LeaveoutError, match=r"models.*one alone.*2\.00 GiB.*device: cpu") as caught:
        list(in_blocks(holds(0), 4, 4, "models trained at once"))  # type: ignore[arg-type]
    assert "more" not in str(caught.value).split("(")[1].split(")")[0]  # the first line only
    assert caught.value.__context__ is None  # whose traceback would hold tensors


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (FULL, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError("CUDA error: out of memory"), False),
        (ValueError("CUDNN_STATUS_ALLOC_FAILED"), False),
    ],
)
def test_only_a_full_device_is_tried_again(error: Exception, meant: bool) -> None:
    assert is_out_of_memory(error) is meant
    tries = []

    def work(block: slice) -> int:
        tries.append(block)
        if len(tries) == 1:
            raise error
        return 0

    if meant:
        assert len(list(in_blocks(work, 4, 4, "things"))) == 2
    else:
        with pytest.raises(type(error)) as caught:
            list(in_blocks(work, 4, 4, "things"))
        assert caught.value is error
        assert len(tries) == 1


def test_nothing_of_the_failed_block_is_alive_when_it_is_tried_again() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def work(block: slice) -> int:
        assert all(reference() is None for reference in kept)
        held = torch.zeros(block.stop - block.start)
        kept.append(weakref.ref(held))
        if len(held) > 1:
            raise torch.OutOfMemoryError(*FULL.args)
        return 0

    assert len(list(in_blocks(work, 4, 4, "things"))) == 4
    assert len(kept) == 6


def test_a_result_is_not_held_while_the_next_is_made() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def work(block: slice) -> torch.Tensor:
        assert all(reference() is None for reference in kept)
        made = torch.zeros(1)
        kept.append(weakref.ref(made))
        return made

    blocks = in_blocks(work, 3, 1, "things")
    assert [next(blocks)[0].start for _ in range(3)] == [0, 1, 2]


class Device:
    """A device on which a unit of work takes ``each`` bytes, and workspaces ``once``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, each: int, once: int = 0):
        self.free, self.each, self.once = free, each, once
        self.used = self.peak = 0
        self.calls: list[int] = []
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda _: (self.free - self.used, self.free)
        )
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: self.used)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: self.used)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def reset(self, _: object) -> None:
        self.peak = self.used

    def work(self, count: int) -> None:
        self.calls.append(count)
        self.used = self.once
        self.peak = max(self.peak, self.used + count * self.each)
        if self.peak > self.free:
            raise torch.OutOfMemoryError(*FULL.args)


CUDA = torch.device("cuda")


def test_the_size_is_what_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, free=200_500, each=300, once=500)
    # 200000 left after the workspaces, half of them, 300 + 200 bytes a unit
    assert fitting(device.work, beside=200, total=10_000, device=CUDA) == 200
    assert device.calls == [1, 8]


def test_the_size_is_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = Device(monkeypatch, free=10**9, each=300)
    assert fitting(plenty.work, beside=0, total=5, device=CUDA) == 5
    assert plenty.calls == [1, 5]
    little = Device(monkeypatch, free=400, each=40)
    assert fitting(little.work, beside=10**6, total=100, device=CUDA) == 1


def test_a_try_that_does_not_fit_gives_a_small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Device(monkeypatch, free=700, each=100)
    assert fitting(small.work, beside=0, total=100, device=CUDA) == 4
    assert small.calls == [1, 8]
    smaller = Device(monkeypatch, free=70, each=100)
    assert fitting(smaller.work, beside=0, total=100, device=CUDA) == 4
    assert smaller.calls == [1]


def test_an_error_in_the_try_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, free=70, each=1)

    def work(_: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fitting(work, beside=0, total=3, device=CUDA)


def test_reserved_memory_that_torch_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 20)
    assert memory.free_memory(CUDA) == 130


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_real_gpu_fills_and_goes_on() -> None:
    free, _ = torch.cuda.mem_get_info()
    each = free // 5

    def work(block: slice) -> int:
        return len(torch.empty((block.stop - block.start, each), dtype=torch.uint8, device="cuda"))

    assert sum(found for _, found in in_blocks(work, 16, 16, "things")) == 16
    assert abs(memory.peak_memory(CUDA, lambda: work(slice(0, 1))) - each) < 4 << 20
