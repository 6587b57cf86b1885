from __future__ import annotations

import itertools
import json
import resource
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from job_keys import prepare_key
from leaveout.config import Method, Setting
from leaveout.data.prepare import prepare
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.retraining.models import train_models
from leaveout.scoring.run import cpu_name, held, run_method, trajectories
from leaveout.store import artefacts
from leaveout.store.artefacts import CorruptArtefactError
from leaveout.store.contents import save
from leaveout.training.engine import train

Make = Callable[..., Setting]


LIMIT = resource.getrlimit(resource.RLIMIT_DATA)


@dataclass(frozen=True)
class Files:
    setting: Setting
    data: Path
    models: dict[str, list[Path]]

    @classmethod
    def make(cls, setting: Setting, folder: Path) -> Files:
        made = cls(setting, folder / "data.safetensors", {"full": [], "half": []})
        save(made.data, prepare(setting), {"key": prepare_key(setting)})
        for kind, paths in made.models.items():
            for number in range(2):
                paths.append(folder / f"{kind}-{number}.safetensors")
                models = train_models(setting, kind, str(number), made.data, "cpu")  # type: ignore[arg-type]
                save(paths[-1], models)
        return made

    def run(self, method: Method, params: dict[str, Any], folder: Path) -> tuple[Path, Path]:
        out, cost = folder / "score.safetensors", folder / "cost.json"
        full, half = self.models["full"], self.models["half"]
        found = run_method(self.setting, method, params, self.data, full, half, "cpu")
        save(out, found["score"])
        save(cost, found["cost"])
        return out, cost


@pytest.fixture(scope="module")
def files(make_setting: Make, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files.make(make_setting(), tmp_path_factory.mktemp("files"))


def method(name: str, module: str | None = None) -> Method:
    return Method(name=name, module=module or f"leaveout.attribution.{name}", grid=({},))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Method]:
    """Return a function that makes a method of a plain function."""

    def make(attribute: Any) -> Method:
        module = types.ModuleType("fake_method")
        module.attribute = attribute  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_method", module)
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
    asked = {"method": "if_explicit", "label": "damping=0.01"}
    assert {key: found.meta[key] for key in asked} == asked
    assert found.meta["params"] == params
    record = json.loads(cost.read_text())
    assert (record["setting"], record["params"]) == ("tiny", "damping=0.01")
    assert record["wall_s"] > 0
    assert record["peak_rss_mb"] >= record["baseline_rss_mb"] > 10
    assert {p.name for p in tmp_path.iterdir()} == {"score.safetensors", "cost.json"}


def test_the_processor_is_named(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: 9000\nprocessor\t: 1\n")
    assert cpu_name(info) == "Some CPU: 9000"
    info.write_text("processor\t: 0\n")  # as on some ARM boards
    assert cpu_name(info) == cpu_name(tmp_path / "none") != ""


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
    assert [t.trial.identity for t in task.full] == [("tiny", "full", run) for run in range(3)]
    assert [t.trial.identity for t in task.half] == [("tiny", "half", run) for run in range(3)]
    assert [t.epochs for t in task.full] == 3 * [[*files.setting.checkpoint_epochs()]]
    for trajectory in task.half:  # the trial is the very one it was trained by
        (trained,) = train(task.build, [trajectory.trial], task.train, task.recipe)
        for name, value in trained.snapshots[-1].items():
            torch.testing.assert_close(value[0], trajectory.final[name])
    assert [len(t.states) for t in task.full] == [2, 2, 2]
    assert all(t.trained_on.all() for t in task.full)
    assert [int(t.trained_on.sum()) for t in task.half] == [15, 15, 15]
    assert not task.module.training
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
    monkeypatch.setattr("leaveout.scoring.run.time.perf_counter", lambda: next(clock))
    _, cost = files.run(fake(lambda _: iter(torch.ones(30, 6).split(10))), {}, tmp_path)
    assert json.loads(cost.read_text())["wall_s"] == 5  # the call, three blocks, and no fourth


def _too_large(task: Any) -> torch.Tensor:
    task.need(9e9, "a matrix of 33,541^2 numbers")
    raise AssertionError


def _greedy(_: Any) -> torch.Tensor:
    return torch.ones(1 << 36)


def _slow(_: Any) -> torch.Tensor:
    while True:
        pass


def _undefined_half_way(task: Any) -> Iterator[torch.Tensor]:
    yield torch.ones(10, len(task.test.ids))
    raise NotComputableError("undefined", "the model has no dropout")


@pytest.mark.parametrize(
    ("attribute", "reason", "detail"),
    [
        (_too_large, "memory", "a matrix of 33,541^2 numbers would take 9 GB, of 8 allowed"),
        (_greedy, "memory", "more than 8 GB allowed"),
        (_slow, "time", "not done after 0.0001 hours"),
        (_undefined_half_way, "undefined", "the model has no dropout"),
    ],
)
def test_scores_that_can_not_be_computed_leave_the_reason(
    files: Files, tmp_path: Path, fake: Any, attribute: Any, reason: str, detail: str
) -> None:
    hours = 1e-4 if attribute is _slow else 1
    limits = files.setting.attribution.model_copy(update={"hours": hours})
    setting = files.setting.model_copy(update={"attribution": limits})
    out, cost = Files.run(replace(files, setting=setting), fake(attribute), {}, tmp_path)
    found = artefacts.read(out, "score")
    assert found.tensors.keys() == {"train_id", "test_id"}
    assert found.meta["not_computed"]["reason"] == reason
    assert found.meta["not_computed"]["detail"].startswith(detail)
    assert json.loads(cost.read_text())["method"] == "fake"
    assert {p.name for p in tmp_path.iterdir()} == {"score.safetensors", "cost.json"}
    assert resource.getrlimit(resource.RLIMIT_DATA) == LIMIT


def test_other_errors_are_errors(files: Files, tmp_path: Path, fake: Any) -> None:
    def broken(_: Any) -> torch.Tensor:
        raise RuntimeError("shapes can't be multiplied")

    with pytest.raises(RuntimeError, match="can't be multiplied"):
        files.run(fake(broken), {}, tmp_path)
    assert resource.getrlimit(resource.RLIMIT_DATA) == LIMIT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "detail"),
    [
        (1e30, "6 of 6 models are not finite (training diverged)"),
        (1e25, "6 of 6 models have outputs that are not finite (training diverged)"),
    ],
)
def test_what_has_diverged_is_a_row_and_no_crash(
    make_setting: Make, tmp_path: Path, fake: Any, rate: float, detail: str
) -> None:
    recipe = {"learning_rate": rate, "epochs": 20 if rate == 1e30 else 1, "batch_size": 30}
    model = {"name": "mlp", "hidden": [6]}
    setting = make_setting(model=model, recipe=recipe, full={"checkpoints": 1})
    files = Files.make(setting, tmp_path)

    def breaks_down(_: Any) -> torch.Tensor:
        return torch.linalg.cholesky(torch.full((2, 2), torch.nan))

    for attribute in (fake(breaks_down), method("if_explicit")):
        params = {"damping": 0.01} if attribute.name == "if_explicit" else {}
        out, cost = files.run(attribute, params, tmp_path)
        expected = {"reason": "undefined", "detail": detail}
        found = artefacts.read(out)
        if attribute.name == "fake" or rate == 1e30:
            assert found.meta["not_computed"] == expected
        else:  # its factorisation may also pass what is not a number on
            assert found.meta.get("not_computed", expected) == expected
        assert json.loads(cost.read_text())["method"] == attribute.name
    made = fake(lambda _: torch.ones(30, 6))
    sys.modules["fake_method"].NEEDS = ()  # type: ignore[attr-defined]
    out, _ = files.run(made, {}, tmp_path)  # it looks at no model
    assert (artefacts.read(out).tensors["score"] == 1).all()


def test_inputs_that_are_not_finite_are_a_row(make_task: Any) -> None:
    task = make_task()
    inputs = task.train.inputs.clone()
    inputs[3, 0, 1, 2] = torch.inf
    broken = replace(task, train=replace(task.train, inputs=inputs))
    with pytest.raises(NotComputableError, match="undefined: the training samples are not all f"):
        list(held(types.ModuleType("fake"), broken, iter([])))


def test_nan_is_kept_for_the_metrics_to_count(files: Files, tmp_path: Path, fake: Any) -> None:
    scores = torch.zeros(30, 6, dtype=torch.float64)
    scores[3, 2] = torch.nan
    out, _ = files.run(fake(lambda _: scores), {}, tmp_path)
    found = artefacts.read(out).tensors["score"]
    assert np.argwhere(np.isnan(found)).tolist() == [[3, 2]]


def test_trajectories_come_in_order_of_run_whatever_the_order_of_files(files: Files) -> None:
    read = [artefacts.read(path) for path in reversed(files.models["full"])]
    found = trajectories(files.setting, "full", read, torch.device("cpu"))
    assert [t.trial.identity[-1] for t in found] == [0, 1, 2]
    last = read[0].tensors["state.linear.weight"][0]
    assert read[0].tensors["run_id"].tolist() == [2]
    np.testing.assert_array_equal(found[2].states[0]["linear.weight"], last[0])
    np.testing.assert_array_equal(found[2].final["linear.weight"], last[1])
    assert found[0].learning_rates == [0.1, 0.1]


def test_a_file_of_another_kind(files: Files) -> None:
    arguments = (files.setting, method("grad_dot"), {}, files.data, [files.data], [])
    with pytest.raises(CorruptArtefactError, match="kind 'data', expected 'models'"):
        run_method(*arguments, "cpu")
