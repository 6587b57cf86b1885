from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from job_keys import prepare_key
from leaveout.attribution import grad_dot
from leaveout.attribution.task import Task
from leaveout.config import Method, Setting
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.retraining.models import train_models
from leaveout.scoring.self_influence import block_size, run_self_influence, self_influence
from leaveout.store import artefacts
from leaveout.store.contents import save

Make = Callable[..., Setting]
Small = Callable[[int], None]


def module(**functions: Any) -> types.ModuleType:
    made = types.ModuleType("fake_method")
    for name, function in functions.items():
        setattr(made, name, function)
    return made


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch) -> Small:
    """Return a function that sets how many samples are scored at once."""

    def fix(size: int) -> None:
        monkeypatch.setattr("leaveout.scoring.self_influence.block_size", lambda *_: size)

    return fix


def test_it_is_the_squared_norm_of_the_gradient_for_grad_dot(
    task: Task, gradients: Any, blocks_of: Small
) -> None:
    g = gradients(task, task.full[0].final, task.train)
    for size in (24, 1, 7):
        blocks_of(size)
        found = self_influence(grad_dot, task, {}, [])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, (g * g).sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 24])
@pytest.mark.parametrize("size", [1, 7, 24])
def test_rows_and_columns_may_be_cut_anywhere(
    make_task: Any, blocks_of: Small, rows: int, size: int
) -> None:
    task, seen = make_task(), []
    matrix = torch.arange(24.0 * 24).reshape(24, 24)

    def attribute(task: Task, *, factor: float) -> Iterator[Tensor]:
        columns = task.test.ids
        seen.append(columns.tolist())
        for block in matrix.split(rows):
            yield factor * block[:, columns]

    blocks_of(size)
    found = self_influence(module(attribute=attribute), task, {"factor": 2.0}, [])
    np.testing.assert_array_equal(found, 2 * matrix.diagonal().numpy())
    assert [i for ids in seen for i in ids] == list(range(24))
    assert max(map(len, seen)) == size
    whole = module(attribute=lambda task, **_: matrix[:, task.test.ids])
    np.testing.assert_array_equal(self_influence(whole, task, {}, []), matrix.diagonal().numpy())


def test_no_row_is_asked_for_that_is_not_needed(make_task: Any, blocks_of: Small) -> None:
    task, asked = make_task(), []

    def attribute(task: Task) -> Iterator[Tensor]:
        for row in range(24):
            asked.append(row)
            yield torch.zeros(1, len(task.test.ids))

    blocks_of(8)
    self_influence(module(attribute=attribute), task, {}, [])
    assert asked == [*range(8), *range(16), *range(24)]


def test_blocks_are_bounded_by_gradients_and_by_scores() -> None:
    assert block_size(5000, 7850) == 5000
    assert 500 <= block_size(5000, 109_386) < 1000
    assert block_size(60_000, 7850) * 60_000 * 4 <= 256 << 20
    assert block_size(60_000, 10**9) == 1


def test_a_methods_own_is_preferred(make_task: Any) -> None:
    def own(task: Task, *, factor: float) -> Tensor:
        return factor * torch.arange(24, dtype=torch.float64)

    spent: list[float] = []
    made = module(self_influence=own, attribute=None)
    found = self_influence(made, make_task(), {"factor": 0.5}, spent)
    np.testing.assert_array_equal(found, 0.5 * np.arange(24))
    assert found.dtype == np.float32
    assert len(spent) == 1


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"self_influence": lambda _: torch.ones(7)}, r"self_influence returned \(7,\), .*\(24,\)"),
        ({"self_influence": lambda _: None}, r"self_influence returned NoneType, .*\(24,\)"),
        ({"attribute": lambda _: torch.ones(24, 7)}, r"attribute returned \(24, 7\), .*\(24, 24\)"),
        ({"attribute": lambda _: iter([torch.ones(9, 24)])}, "attribute returned 9 rows"),
    ],
)
def test_something_of_another_shape(
    make_task: Any, functions: dict[str, Any], message: str
) -> None:
    with pytest.raises(LeaveoutError, match=f"fake_method.{message}"):
        self_influence(module(**functions), make_task(), {}, [])


# files


def run(
    setting: Setting, folder: Path, monkeypatch: pytest.MonkeyPatch, attribute: Any
) -> tuple[artefacts.Artefact, dict[str, Any], list[Path]]:
    data, full = folder / "data.safetensors", folder / "full.safetensors"
    save(data, prepare(setting), {"key": prepare_key(setting)})
    save(full, train_models(setting, "full", "0", data, "cpu"))
    monkeypatch.setitem(sys.modules, "fake_method", module(attribute=attribute))
    method = Method(name="fake", module="fake_method", grid=({},))
    out, cost = folder / "own.safetensors", folder / "own.cost.json"
    found = run_self_influence(setting, method, {}, data, [full], [], "cpu")
    save(out, found["score"])
    save(cost, found["cost"])
    read = artefacts.read(out, "self_influence")
    return read, json.loads(cost.read_text()), [data, full]


def test_a_file_and_its_cost(
    make_setting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, cost, sources = run(
        make_setting(), tmp_path, monkeypatch, lambda task: torch.full((30, 30), 2.0)
    )
    data = artefacts.read(sources[0])
    assert found.dims == {"self_influence": ("train",), "train_id": ("train",)}
    assert found.tensors["self_influence"].tolist() == [2.0] * 30
    np.testing.assert_array_equal(found.tensors["train_id"], data.tensors["train_id"])
    asked = {"method": "fake", "label": "default", "params": {}}
    assert {key: found.meta[key] for key in asked} == asked
    assert found.meta["trainings"]["models"]
    assert "not_computed" not in found.meta
    assert (cost["what"], cost["method"], cost["params"]) == ("self_influence", "fake", "default")
    assert cost["wall_s"] >= 0


def test_a_method_that_cannot_says_why(
    make_setting: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attribute(task: Task) -> Iterator[Tensor]:
        yield torch.zeros(4, len(task.test.ids))
        raise NotComputableError("undefined", "no labels")

    found, cost, _ = run(make_setting(), tmp_path, monkeypatch, attribute)
    assert found.meta["not_computed"] == {"reason": "undefined", "detail": "no labels"}
    assert set(found.tensors) == {"train_id"}
    assert cost["what"] == "self_influence"


def test_what_takes_too_long_says_so_after_the_first_block(
    task: Task, blocks_of: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = [0.0], []
    for name in ("monotonic", "process_time"):
        monkeypatch.setattr(f"time.{name}", lambda: clock[0])

    def attribute(task: Task) -> Tensor:
        asked.append(task.seconds)
        clock[0] += 1000
        return torch.zeros(len(task.train.ids), len(task.test.ids))

    slow, n = module(attribute=attribute), len(task.train.ids)
    blocks_of(-(-n // 4))
    self_influence(slow, dataclasses.replace(task, seconds=4100.0), {}, [])
    assert asked == [4100 / 4] * 4
    with pytest.raises(NotComputableError, match=r"4 blocks .* 1.1 hours, of 1 allowed") as raised:
        self_influence(slow, dataclasses.replace(task, seconds=3600.0), {}, [])
    assert (raised.value.reason, len(asked)) == ("time", 5)
    blocks_of(n)  # what is made at once is made, whatever the clock says: the limit is elsewhere
    self_influence(slow, dataclasses.replace(task, seconds=1.0), {}, [])


def test_a_method_that_foresees_its_time_is_quoted(task: Task, blocks_of: Small) -> None:
    def attribute(task: Task) -> Tensor:
        raise NotComputableError("time", f"it takes 3 hours, of {task.seconds / 3600:g} allowed")

    blocks_of(12)
    hour = dataclasses.replace(task, seconds=3600.0)
    with pytest.raises(NotComputableError) as raised:
        self_influence(module(attribute=attribute), hour, {}, [])
    expected = "for each of 2 blocks of samples, it takes 3 hours, of 0.5 allowed"
    assert raised.value.detail == expected
