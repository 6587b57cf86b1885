from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from leaveout.config import Setting
from leaveout.errors import LeaveoutError
from leaveout.retraining.items import items
from leaveout.retraining.lds import retrain_lds
from leaveout.retraining.loo import retrain_loo
from leaveout.retraining.models import train_models
from leaveout.retraining.pbrf import retrain_pbrf
from leaveout.retraining.truth import merge_truth
from leaveout.store import artefacts
from leaveout.store.artefacts import CorruptArtefactError
from leaveout.store.contents import save

Make = Callable[..., Setting]


@pytest.fixture(scope="module")
def lds(make_setting: Make, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("lds")
    paths = [folder / f"{run}-{number}.safetensors" for run in range(2) for number in range(3)]
    for path in paths:
        save(path, retrain_lds(make_setting(), path.stem, data, "cpu"))
    return paths


@pytest.fixture(scope="module")
def loo(make_setting: Make, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loo")
    paths = [folder / f"{name}.safetensors" for name in ("0-0", "0-1", "0-2", "1-0")]
    for path in paths:
        save(path, retrain_loo(make_setting(), path.stem, data, "cpu"), {"device": "cpu"})
    return paths


@pytest.fixture(scope="module")
def pbrf(make_setting: Make, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pbrf")
    save(folder / "full", train_models(make_setting(), "full", "0", data, "cpu"))
    paths = [folder / f"{name}.safetensors" for name in ("0-0", "0-1", "0-2", "1-0")]
    for path in paths:
        save(path, retrain_pbrf(make_setting(), path.stem, data, folder / "full", "cpu"))
    return paths


def changed(path: Path, out: Path, **arrays: np.ndarray) -> Path:
    read = artefacts.read(path)
    artefacts.write(out, read.kind, {**read.tensors, **arrays}, read.dims, read.meta)
    return out


def test_lds_is_its_chunks_run_beside_run(make_setting: Make, lds: list[Path]) -> None:
    found = merge_truth(make_setting(), "lds", lds)
    parts = [artefacts.read(path) for path in lds]
    for run in range(2):
        own = parts[3 * run : 3 * run + 3]
        joined = {name: np.concatenate([p.tensors[name] for p in own]) for name in own[0].tensors}
        np.testing.assert_array_equal(found.tensors["target"][:, run], joined["target"])
        for name in ("mask", "subset_id"):
            np.testing.assert_array_equal(found.tensors[name], joined[name])
    assert found.tensors["target"].shape == (5, 2, 6)
    assert found.tensors["subset_id"].tolist() == [0, 1, 2, 3, 4]


def test_loo_has_one_run_of_all_and_a_second_of_some(make_setting: Make, loo: list[Path]) -> None:
    setting = make_setting()
    merged = merge_truth(setting, "loo", loo)
    found = merged.tensors
    assert merged.facts["device"] == "cpu"  # where the models were trained
    assert found["removed_id"].tolist() == [1, 4, 7, 20, 29]
    assert found["target"].shape == (5, 1, 6)
    assert found["full_target"].shape == (1, 6)
    again = [i for i, run in items(setting, "loo") if run == 1]
    assert found["replicate_removed_id"].tolist() == again
    assert found["replicate_target"].shape == (2, 1, 6)
    assert found["replicate_full_target"].shape == (1, 6)
    first = [artefacts.read(path).tensors for path in loo]
    np.testing.assert_array_equal(found["target"][:2, 0], first[0]["target"])
    np.testing.assert_array_equal(found["replicate_target"][:, 0], first[3]["target"])
    assert np.abs(found["full_target"] - found["replicate_full_target"]).max() > 1e-3


def test_loo_without_replicates(make_setting: Make, loo: list[Path]) -> None:
    found = merge_truth(make_setting(loo={"replicate": 0}), "loo", loo[:3]).tensors
    assert found["target"].shape == (5, 1, 6)
    assert found["replicate_target"].size == found["replicate_removed_id"].size == 0


def test_pbrf_has_one_model_for_all_points_and_a_second_for_some(
    make_setting: Make, pbrf: list[Path], tmp_path: Path
) -> None:
    setting = make_setting()
    missed = np.array([1, 0], np.uint8)
    some = changed(pbrf[1], tmp_path / "some.safetensors", converged=missed)
    found = merge_truth(setting, "pbrf", [pbrf[0], some, *pbrf[2:]]).tensors
    assert found["point_id"].tolist() == [1, 4, 7, 20, 29]
    assert found["replicate_point_id"].tolist() == [1, 7]
    assert found["converged"].tolist() == [1, 1, 1, 0, 1]
    assert found["replicate_converged"].tolist() == [1, 1]
    assert found["target"].shape == (5, 1, 6)
    assert found["replicate_target"].shape == (2, 1, 6)
    assert found["target"].dtype == found["full_target"].dtype == np.float32
    parts = [artefacts.read(path).tensors for path in pbrf]
    for name in ("gradient_norm", "initial_norm", "steps"):
        expected = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(found[name], expected[:5])
        np.testing.assert_array_equal(found[f"replicate_{name}"], expected[5:])
    np.testing.assert_array_equal(found["replicate_target"][:, 0], parts[3]["target"])
    np.testing.assert_array_equal(found["replicate_full_target"][0], parts[3]["full_target"])
    assert np.abs(found["full_target"] - found["replicate_full_target"]).max() > 1e-3


def test_pbrf_without_a_second_full_model(make_setting: Make, pbrf: list[Path]) -> None:
    found = merge_truth(make_setting(full={"runs": 1}), "pbrf", pbrf[:3]).tensors
    assert found["target"].shape == (5, 1, 6)
    assert found["replicate_target"].size == found["replicate_converged"].size == 0


def test_a_damaged_chunk_of_pbrf_is_named(
    make_setting: Make, pbrf: list[Path], tmp_path: Path
) -> None:
    half = tmp_path / "half.safetensors"
    half.write_bytes(pbrf[1].read_bytes()[:1000])
    with pytest.raises(CorruptArtefactError, match=r"half.safetensors: truncated or damaged"):
        merge_truth(make_setting(), "pbrf", [pbrf[0], half, *pbrf[2:]])


@pytest.mark.parametrize(
    "pick",
    [[0, 1, 2], [0, 1, 2, 3, 4, 4], [3, 4, 5, 0, 1, 2], [0, 1, 2, 3, 4, 5, 5], [1, 0, 2, 3, 4, 5]],
)
def test_chunks_missing_twice_or_out_of_order(
    make_setting: Make, lds: list[Path], pick: list[int]
) -> None:
    with pytest.raises(CorruptArtefactError, match=r"lds.*: the chunks in this folder"):
        merge_truth(make_setting(), "lds", [lds[i] for i in pick])


@pytest.mark.parametrize("kind", ["loo", "pbrf"])
@pytest.mark.parametrize("pick", [[0, 1, 2], [0, 1, 3], [0, 1, 2, 2]])
def test_chunks_of_two_runs_missing_or_twice(
    make_setting: Make,
    request: pytest.FixtureRequest,
    kind: Literal["loo", "pbrf"],
    pick: list[int],
) -> None:
    paths = request.getfixturevalue(kind)
    with pytest.raises(CorruptArtefactError, match=rf"{kind}.*: the chunks in this folder"):
        merge_truth(make_setting(), kind, [paths[i] for i in pick])


@pytest.mark.parametrize("name", ["train_id", "test_id"])
def test_chunks_of_other_samples(
    make_setting: Make, lds: list[Path], tmp_path: Path, name: str
) -> None:
    ids = artefacts.read(lds[1]).tensors[name] + 1
    other = changed(lds[1], tmp_path / "other.safetensors", **{name: ids})
    with pytest.raises(CorruptArtefactError, match=rf"other.safetensors: its {name} differ"):
        merge_truth(make_setting(), "lds", [lds[0], other, *lds[2:]])


def test_a_chunk_of_a_run_that_is_not_asked_for(make_setting: Make, lds: list[Path]) -> None:
    with pytest.raises(CorruptArtefactError, match=r"too many \[\(0, 1\), \(1, 1\)"):
        merge_truth(make_setting(lds={"runs": 1}), "lds", lds)


def test_runs_of_other_subsets(make_setting: Make, lds: list[Path], tmp_path: Path) -> None:
    mask = artefacts.read(lds[3]).tensors["mask"]
    other = changed(lds[3], tmp_path / "other.safetensors", mask=1 - mask)
    chunks = [*lds[:3], other, *lds[4:]]
    with pytest.raises(CorruptArtefactError, match=r"other.*subsets are others than those of run"):
        merge_truth(make_setting(), "lds", chunks)


def test_a_full_run_that_is_another(make_setting: Make, loo: list[Path], tmp_path: Path) -> None:
    target = artefacts.read(loo[1]).tensors["full_target"]
    arguments: tuple[Any, ...] = (make_setting(), "loo")
    near = changed(loo[1], tmp_path / "near.safetensors", full_target=target * (1 + 1e-5))
    merge_truth(*arguments, [loo[0], near, *loo[2:]])
    far = changed(loo[1], tmp_path / "far.safetensors", full_target=target * 1.1)
    with pytest.raises(CorruptArtefactError, match=r"far.safetensors: its full run differs"):
        merge_truth(*arguments, [loo[0], far, *loo[2:]])


def test_a_missing_chunk_is_named(make_setting: Make, lds: list[Path], tmp_path: Path) -> None:
    gone = tmp_path / "2.safetensors"
    with pytest.raises(LeaveoutError, match=r"2\.safetensors: no such file"):
        merge_truth(make_setting(), "lds", [*lds[:5], gone])
