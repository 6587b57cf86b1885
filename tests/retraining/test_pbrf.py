from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, hessian
from torch.nn import functional

from leaveout.config import Setting
from leaveout.models.build import initialise
from leaveout.retraining.items import base_chunk, chunks
from leaveout.retraining.models import train_models
from leaveout.retraining.pbrf import retrain_pbrf
from leaveout.store import artefacts
from leaveout.store.artefacts import CorruptArtefactError
from leaveout.store.contents import save

Make = Callable[..., Setting]
CNN = {"name": "cnn", "channels": [2], "batch_norm": True}


@pytest.fixture(scope="module")
def trained(
    make_setting: Make, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Setting], dict[str, Path]]:
    """Return a function that gives the files of a setting's full models, by chunk."""
    made: dict[str, dict[str, Path]] = {}

    def full(setting: Setting) -> dict[str, Path]:
        key = setting.model.model_dump_json()
        if key not in made:
            folder = tmp_path_factory.mktemp("full")
            made[key] = {n: folder / f"{n}.safetensors" for n in chunks(setting, "full")}
            for name, path in made[key].items():
                save(path, train_models(setting, "full", name, data, "cpu"))
        return made[key]

    return full


def solve(setting: Setting, data: Path, models: dict[str, Path]) -> list[Any]:
    return [
        retrain_pbrf(setting, name, data, models[base_chunk(setting, name)], "cpu").tensors
        for name in chunks(setting, "pbrf")
    ]


def minimum(
    setting: Setting, data: Path, models: dict[str, Path], run: int, point: int
) -> tuple[np.ndarray, np.ndarray]:
    """By dense Newton steps in float64: test losses at the full model and at the minimum."""
    arrays = artefacts.read(data, "data").tensors
    x, test_x = (
        torch.from_numpy(arrays[f"{part}_inputs"][:, None]).double() / 16
        for part in ("train", "test")
    )
    y, test_y = (torch.from_numpy(arrays[f"{part}_labels"]) for part in ("train", "test"))
    (file,) = (f for f in map(artefacts.read, models.values()) if run in f.tensors["run_id"])
    row = file.tensors["run_id"].tolist().index(run)
    module = initialise(setting.model, tuple(x.shape[1:]), 10, 0)
    names = [f"state.{name}" for name in module.state_dict()]
    module.load_state_dict(
        {name[6:]: torch.from_numpy(file.tensors[name])[row, -1] for name in names}
    )
    module.double().eval()
    params = {k: v.detach() for k, v in module.named_parameters()}
    sizes = [p.numel() for p in params.values()]
    start = torch.cat([p.flatten() for p in params.values()])

    def outputs(flat: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        parts = zip(params.items(), flat.split(sizes), strict=True)
        return functional_call(module, {k: v.view_as(p) for (k, p), v in parts}, (inputs,))

    before = outputs(start, x).log_softmax(1)

    def objective(flat: torch.Tensor) -> torch.Tensor:
        now = outputs(flat, x).log_softmax(1)
        divergence = (before.exp() * (before - now)).sum() / len(x)
        own = functional.nll_loss(now[point : point + 1], y[point : point + 1])
        return divergence - own / len(x) + setting.pbrf.damping / 2 * (flat - start).square().sum()

    theta = start
    for _ in range(8):
        theta = theta - torch.linalg.solve(hessian(objective)(theta), grad(objective)(theta))
    assert grad(objective)(theta).norm() < 1e-12
    full, moved = (
        functional.cross_entropy(outputs(t, test_x), test_y, reduction="none").numpy()
        for t in (start, theta)
    )
    return full, moved


@pytest.mark.parametrize("model", [{"name": "linear"}, CNN], ids=["linear", "cnn"])
def test_targets_are_the_losses_at_the_minimum(
    make_setting: Make, data: Path, trained: Any, model: dict[str, Any]
) -> None:
    # where a net has a ReLU, the damping keeps the minimum off its kinks
    asked = {"ids": (4, 20), "replicate": 1, "tolerance": 1e-5}
    damping = 0.1 if model["name"] == "linear" else 3.0
    setting = make_setting(model=model, pbrf={**asked, "damping": damping})
    models = trained(setting)
    parts = solve(setting, data, models)
    assert [part["run_id"].tolist() for part in parts] == [[0], [1]]
    assert [part["point_id"].tolist() for part in parts] == [[4, 20], [4]]
    for run, part in enumerate(parts):
        assert part["converged"].all()
        assert (part["gradient_norm"] <= 1e-5 * part["initial_norm"]).all()
        for row, point in enumerate(part["point_id"]):
            full, moved = minimum(setting, data, models, run, point)
            # the solver's tolerance, as a part of the largest effect
            atol = 1e-3 * np.abs(moved - full).max()
            np.testing.assert_allclose(part["full_target"], full, atol=1e-6)
            rise = part["target"][row] - part["full_target"]
            np.testing.assert_allclose(rise, moved - full, atol=atol)
            assert np.abs(moved - full).max() > 1e-3


def test_chunks_change_no_target(make_setting: Make, data: Path, trained: Any) -> None:
    targets = []
    for size in (1, 5):
        setting = make_setting(pbrf={"chunk": size, "replicate": 0, "tolerance": 1e-8})
        parts = solve(setting, data, trained(setting))
        targets.append(np.concatenate([part["target"] for part in parts]))
    np.testing.assert_allclose(targets[1], targets[0], atol=1e-6)


def test_ids_are_looked_up_and_not_taken_for_positions(
    make_setting: Make, data: Path, shuffled: Path, trained: Any
) -> None:
    setting = make_setting(pbrf={"chunk": 5, "replicate": 0, "tolerance": 1e-8})
    one, other = (solve(setting, path, trained(setting))[0] for path in (data, shuffled))
    np.testing.assert_allclose(other["target"], one["target"], atol=1e-6)
    assert np.abs(np.diff(one["target"], axis=0)).max(axis=1).min() > 1e-4


def test_points_that_do_not_converge_are_named(
    make_setting: Make,
    data: Path,
    trained: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setting = make_setting(pbrf={"solver": "sgd", "steps": 2, "chunk": 5, "replicate": 0})
    (found,) = solve(setting, data, trained(setting))
    assert found["converged"].tolist() == [0] * 5
    assert found["steps"].tolist() == [2] * 5
    assert (found["gradient_norm"] > setting.pbrf.tolerance * found["initial_norm"]).all()
    said = capsys.readouterr().err
    assert "5 of 5 points of full run 0 did not converge (at most 2 steps)" in said
    assert ": 1, 4, 7, 20, 29. More pbrf.steps" in said


def test_a_file_of_other_runs_is_named(make_setting: Make, data: Path, trained: Any) -> None:
    setting = make_setting(pbrf={"chunk": 5})
    models = trained(setting)
    assert base_chunk(setting, "1-0") == "0"
    with pytest.raises(CorruptArtefactError, match=r"it holds the runs \[2\], and not run 1"):
        retrain_pbrf(setting, "1-0", data, models["1"], "cpu")
