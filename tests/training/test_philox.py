"""Against NumPy's own generator, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leaveout.seeds import generator
from leaveout.training import philox


def streams(count: int) -> list[np.random.Generator]:
    return [generator(3, "a", k, "dropout") for k in range(count)]


def test_blocks_are_numpys_words(device: str) -> None:
    key = philox.keys(streams(4), torch.device(device))
    first = torch.tensor([0, 1, 7, 2**40], device=device)
    found = philox.blocks(key, first, 300).cpu().numpy().view(np.uint64)
    for row, stream, start in zip(found, streams(4), first.tolist(), strict=True):
        stream.bit_generator.advance(start)  # type: ignore[attr-defined]
        assert np.array_equal(row.ravel(), stream.bit_generator.random_raw(1200))


@pytest.mark.parametrize("counts", [[1, 1, 1], [16, 32, 64], [7, 1000, 3, 33, 2, 15], [1, 31, 17]])
def test_numbers_go_on_where_the_last_draw_ended(counts: list[int], device: str) -> None:
    numpys = streams(3)
    key = philox.keys(streams(3), torch.device(device))
    words = np.zeros(3, dtype=np.int64)
    for count in counts:
        expected = [np.frombuffer(s.bytes(2 * count), dtype="<u2") for s in numpys]
        found = philox.uint16(key, words, count).cpu().numpy()
        assert np.array_equal(found, expected)
        words += (count + 1) // 2


def test_streams_may_stand_at_different_places() -> None:
    key = philox.keys(streams(3), torch.device("cpu"))
    numpys = streams(3)
    skipped = [2, 3, 21]
    for stream, words in zip(numpys, skipped, strict=True):
        stream.bytes(4 * words)
    expected = [np.frombuffer(s.bytes(90), dtype="<u2") for s in numpys]
    assert np.array_equal(philox.uint16(key, np.array(skipped), 45).numpy(), expected)
