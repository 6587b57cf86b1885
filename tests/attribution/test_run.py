from __future__ import annotations

import itertools
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leaveout import artefacts
from leaveout.artefacts import CorruptArtefactError
from leaveout.attribution.run import run_method, trajectories
from leaveout.config import Method, Setting
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError
from leaveout.retraining.models import train_models

Make = Callable[..., Setting]


class Files:
    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self.data = folder / "data.safetensors"
        prepare(setting, self.data)
        self.models: dict[str, list[Path]] = {"full": [], "half": []}
        for kind, paths in self.models.items():
            for number in range(2):
                paths.append(folder / f"{kind}-{number}.safetensors")
                train_models(setting, kind, str(number), self.data, paths[-1], "cpu")  # type: ignore[arg-type]

    def run(self, method: Method, params: dict[str, Any], folder: Path) -> tuple[Path, Path]:
        out, cost = folder / "score.safetensors", folder / "cost.json"
        full, half = self.models["full"], self.models["half"]
        run_method(self.setting, method, params, self.data, full, half, out, cost, "cpu")
        return out, cost


@pytest.fixture(scope="module")
def files(make_setting: Make, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(make_setting(), tmp_path_factory.mktemp("files"))


def method(name: str, module: str | None = None) -> Method:
    return Method(name=name, module=module or f"leaveout.attribution.{name}", grid=({},))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Method]:
    """Return a function that makes a method of a plain function."""

    def make(attribute: Any) -> Method:
        module = types.ModuleType("fake_method")
        module.attribute = attribute  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_method", module)
        monkeypatch.setattr("leaveout.attribution.run.attribute_key", lambda *_: "key")
        return method("fake", "fake_method")

    return make


def test_a_score_file_and_its_cost(files: Files, tmp_path: Path) -> None:
    params = {"damping": 0.01}
    out, cost = files.run(method("if_explicit"), params, tmp_path)
    found = artefacts.read(out, "score")
    data = artefacts.read(files.data)
    assert found.tensors["score"].dtype == np.float32
    assert found.tensors["score"].shape == (30, 6)
    for name in ("train_id", "test_id"):
        np.testing.assert_array_equal(found.tensors[name], data.tensors[name])
    assert found.dims["score"] == ("train", "test")
    asked = {"setting": "tiny", "method": "if_explicit", "label": "damping=0.01"}
    assert {key: found.meta[key] for key in asked} == asked
    assert found.meta["params"] == params
    read = [files.data, *files.models["full"], *files.models["half"]]
    sources = {name: entry["sha256"] for name, entry in found.meta["inputs"].items()}
    assert sources == {str(p): artefacts.read(p).sha256 for p in read}
    record = json.loads(cost.read_text())
    assert record["params"] == "damping=0.01"
    assert record["wall_s"] > 0
    assert record["peak_rss_mb"] >= record["baseline_rss_mb"] > 10
    assert {p.name for p in tmp_path.iterdir()} == {"score.safetensors", "cost.json"}


def test_scores_written_twice_are_the_same_byte_for_byte(files: Files, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        out, _ = files.run(method("if_cg"), {"damping": 0.01, "iterations": 5}, folder)
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_what_a_method_gets(files: Files, tmp_path: Path, fake: Any) -> None:
    seen = {}

    def attribute(task: Any, *, factor: float) -> torch.Tensor:
        seen["task"] = task
        return factor * torch.ones(30, 6)

    out, _ = files.run(fake(attribute), {"factor": 2.5}, tmp_path)
    assert (artefacts.read(out).tensors["score"] == 2.5).all()
    task = seen["task"]
    assert [t.run for t in task.full] == [t.run for t in task.half] == [0, 1, 2]
    assert [len(t.states) for t in task.full] == [2, 2, 2]
    assert all(t.trained_on.all() for t in task.full)
    assert [int(t.trained_on.sum()) for t in task.half] == [15, 15, 15]
    assert not task.module.training
    assert not any(p.requires_grad for p in task.module.parameters())
    # the states fit the module
    torch.func.functional_call(task.module, task.full[2].final, (task.test.inputs,))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.ones(6, 30), r"\(6, 30\).*\(30, 6\)"),
        (torch.ones(30), r"\(30,\).*\(30, 6\)"),
        (np.ones((30, 6)), r"ndarray.*\(30, 6\)"),
        (None, r"NoneType.*\(30, 6\)"),
        (iter([torch.ones(29, 6)]), r"29 rows, .*\(30, 6\), or blocks"),
        (iter([torch.ones(29, 6)] * 9), r"58 rows or more, .*\(30, 6\), or blocks"),
        (iter([torch.ones(10, 6), torch.ones(20, 5)]), r"\(20, 5\), .*\(30, 6\), or blocks"),
        (iter([torch.ones(6)] * 30), r"\(6,\), .*\(30, 6\), or blocks"),
        (iter([np.ones((30, 6))]), r"\(30, 6\), expected a tensor"),
        (iter([]), "0 rows"),
    ],
    ids=[
        *("transposed", "vector", "numpy", "nothing", "too few", "too many", "narrow", "rows"),
        *("blocks of numpy", "no blocks"),
    ],
)
def test_something_else_than_a_matrix_of_train_and_test(
    files: Files, tmp_path: Path, fake: Any, result: Any, message: str
) -> None:
    with pytest.raises(LeaveoutError, match=rf"fake_method.attribute returned {message}"):
        files.run(fake(lambda _: result), {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_scores_in_blocks_give_the_file_of_the_whole(
    files: Files, tmp_path: Path, fake: Any
) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).standard_normal((30, 6)))
    written = []
    for size in (30, 1, 7):
        methods = [lambda _, size=size: iter(scores.split(size))]
        methods += [lambda _: scores] if size == 30 else []
        for attribute in methods:
            out, cost = files.run(fake(attribute), {}, tmp_path)
            written.append(out.read_bytes())
            assert json.loads(cost.read_text())["wall_s"] >= 0
    assert len(written) == 4
    assert len(set(written)) == 1
    np.testing.assert_array_equal(artefacts.read(out).tensors["score"], scores.float().numpy())


def test_time_spent_on_every_block_is_counted(
    files: Files, tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("leaveout.attribution.run.time.perf_counter", lambda: next(clock))
    _, cost = files.run(fake(lambda _: iter(torch.ones(30, 6).split(10))), {}, tmp_path)
    assert json.loads(cost.read_text())["wall_s"] == 5  # the call, three blocks, and no fourth


def test_nan_is_kept_for_the_metrics_to_count(files: Files, tmp_path: Path, fake: Any) -> None:
    scores = torch.zeros(30, 6, dtype=torch.float64)
    scores[3, 2] = torch.nan
    out, _ = files.run(fake(lambda _: scores), {}, tmp_path)
    found = artefacts.read(out).tensors["score"]
    assert np.argwhere(np.isnan(found)).tolist() == [[3, 2]]


def test_trajectories_come_in_order_of_run_whatever_the_order_of_files(files: Files) -> None:
    read = [artefacts.read(path) for path in reversed(files.models["full"])]
    found = trajectories(read, torch.device("cpu"))
    assert [t.run for t in found] == [0, 1, 2]
    last = read[0].tensors["state.linear.weight"][0]
    assert read[0].tensors["run_id"].tolist() == [2]
    np.testing.assert_array_equal(found[2].states[0]["linear.weight"], last[0])
    np.testing.assert_array_equal(found[2].final["linear.weight"], last[1])
    assert found[0].learning_rates == [0.1, 0.1]


def test_a_file_of_another_kind(files: Files, tmp_path: Path) -> None:
    arguments = (files.setting, method("grad_dot"), {}, files.data, [files.data], [])
    with pytest.raises(CorruptArtefactError, match="kind 'data', expected 'models'"):
        run_method(*arguments, tmp_path / "s.safetensors", tmp_path / "c.json", "cpu")
    assert list(tmp_path.iterdir()) == []
