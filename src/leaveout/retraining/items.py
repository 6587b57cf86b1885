"""Which trainings a setting needs, and how they are cut into chunks. Nothing here loads torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

from leaveout.config import ConfigError, Layer, Setting


def items(setting: Setting, layer: Layer) -> list[tuple[int, int]]:
    """Return all trainings of a layer as (item, run), in the order they are cut into chunks.

    The item is a run for full and half models (run is then the same), a subset for LDS, and a
    sample's place in the training slice for LOO and PBRF, of which the replicated ones have a run
    1. All of one run come before the next run's.
    """
    match layer:
        case "full" | "half":
            return [(run, run) for run in range(getattr(setting, layer).runs)]
        case "lds":
            lds = setting.lds
            return [(subset, run) for run in range(lds.runs) for subset in range(lds.count)]
        case "loo" | "pbrf":
            ids, again = setting.removed(layer)
            return [(i, 0) for i in ids] + [(i, 1) for i in again]


def chunk_sizes(layer: Layer, counts: Sequence[int], size: int) -> dict[str, int]:
    """Return the number of trainings in each chunk of a layer, by its name, in order.

    A chunk of full or half models is named by a number, ``3``; any other by its run and a number,
    ``1-3``, so that names stay when items or runs are added. Chunks lie on a grid that begins anew
    with each run: whatever is added leaves whole chunks as they are.

    Args:
        layer: Which layer.
        counts: Trainings of each run.
        size: Trainings of a whole chunk.
    """
    return {
        str(number) if layer in ("full", "half") else f"{run}-{number}": part
        for run, count in enumerate(counts)
        for number, part in enumerate(cut(count, size))
    }


def cut(count: int, size: int) -> list[int]:
    """Cut so many trainings into chunks of one size; the last one holds the rest."""
    whole, rest = divmod(count, size)
    return [size] * whole + [rest] * (rest > 0)


@cache  # every chunk's key asks for all of them
def chunks(setting: Setting, layer: Layer) -> dict[str, list[tuple[int, int]]]:
    """Return the trainings of each chunk by its name; a chunk holds one run only, but of models."""
    rest = iter(items(setting, layer))
    sizes = chunk_sizes(layer, setting.counts(layer), getattr(setting, layer).chunk)
    return {name: list(itertools.islice(rest, size)) for name, size in sizes.items()}


def chunk(setting: Setting, layer: Layer, name: str) -> list[tuple[int, int]]:
    """Return the trainings of one chunk.

    Raises:
        ConfigError: There is no such chunk.
    """
    made = chunks(setting, layer)
    if name not in made:
        first, *_, last = [*made, *made]
        raise ConfigError(
            f"{setting.name}: {layer} has {len(made)} chunks, {first} to {last} "
            f"({layer}.chunk = {getattr(setting, layer).chunk}); there is no chunk {name}"
        )
    return made[name]


def base_chunk(setting: Setting, name: str) -> str:
    """Return which chunk of full models holds the run that a chunk of PBRF starts from.

    Raises:
        ConfigError: There is no such chunk of PBRF.
    """
    run = chunk(setting, "pbrf", name)[0][1]
    return next(full for full, part in chunks(setting, "full").items() if (run, run) in part)
