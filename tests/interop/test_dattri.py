from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from leaveout.config import load_setting
from leaveout.errors import LeaveoutError
from leaveout.interop import dattri, files
from leaveout.interop.transfer import import_truth
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact

RESULTS = Path("results/mnist_lr")
Values = Callable[[str, Path], dict[str, float]]


@pytest.fixture
def truth(finished: Path) -> Callable[[str], Artefact]:
    return lambda metric: artefacts.read(finished / RESULTS / f"truth/{metric}.safetensors")


@pytest.fixture
def data(finished: Path) -> Artefact:
    return artefacts.read(finished / RESULTS / "data.safetensors")


@pytest.fixture
def back(finished: Path, tmp_path: Path) -> Callable[[str, Path], Path]:
    """Return a function that imports a folder of dattri's: the artefact."""

    def run(metric: str, folder: Path) -> Path:
        setting = load_setting(finished / "config/settings/mnist_lr.yaml")
        out = tmp_path / "back.safetensors"
        import_truth(
            "dattri", metric, setting, finished / RESULTS / "data.safetensors", folder, out
        )
        return out

    return run


@pytest.fixture
def score(finished: Path) -> np.ndarray:
    path = finished / RESULTS / "scores/grad_dot/default.safetensors"
    return artefacts.read(path).tensors["score"].astype(np.float64)


def mean(correlate: Callable[..., tuple[float, float]], x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([correlate(x[:, j], y[:, j])[0] for j in range(x.shape[1])]))


def test_lds_by_position_gets_our_numbers(
    finished: Path, truth: Callable[[str], Artefact], values: Values, score: np.ndarray
) -> None:
    expected = values("lds", finished / RESULTS / "truth/lds.safetensors")
    found = []
    for run in (None, 0, 1):
        target, indices = dattri.ground_truth(truth("lds"), run)
        assert (target.dtype, target.shape) == (torch.float32, (12, 7))
        assert (indices.dtype, indices.shape) == (torch.int64, (12, 30))
        predicted = np.stack([score[rows].sum(axis=0) for rows in indices.numpy()])
        found.append(mean(spearmanr, predicted, target.numpy()))
    assert expected["mean"] == pytest.approx(found[0], abs=1e-6)  # a CSV has six decimals
    assert expected["single"] == pytest.approx((found[1] + found[2]) / 2, abs=1e-6)
    assert abs(expected["mean"] - expected["single"]) > 1e-3  # it does matter which


def test_loo_by_position_gets_our_number(
    finished: Path, truth: Callable[[str], Artefact], values: Values, score: np.ndarray
) -> None:
    target, indices = dattri.ground_truth(truth("loo"))
    assert (target.dtype, indices.dtype) == (torch.float32, torch.int64)
    assert indices.tolist() == [3, 4, 8, 17, 21, 30, 44, 50]  # in order, whatever the artefact's
    expected = values("loo", finished / RESULTS / "truth/loo.safetensors")
    found = mean(pearsonr, score[indices.numpy()], target.numpy())
    # the losses without a sample differ by 1e-3 of themselves, and are kept to 1e-7: 1e-4 and less
    assert expected["single"] == pytest.approx(found, abs=1e-6)


def test_positions_are_not_ids(truth: Callable[[str], Artefact]) -> None:
    lds, loo = truth("lds"), truth("loo")
    wanted = dattri.ground_truth(lds)[1], dattri.ground_truth(loo)[1]
    for artefact in (lds, loo):
        artefact.tensors["train_id"] = artefact.tensors["train_id"] * 10 + 7
    loo.tensors["removed_id"] = loo.tensors["removed_id"] * 10 + 7
    assert torch.equal(dattri.ground_truth(lds)[1], wanted[0])
    assert torch.equal(dattri.ground_truth(loo)[1], wanted[1])


@pytest.mark.parametrize("metric", ["lds", "loo"])
def test_what_was_written_comes_back(
    finished: Path,
    truth: Callable[[str], Artefact],
    values: Values,
    back: Callable[[str, Path], Path],
    tmp_path: Path,
    metric: str,
) -> None:
    paths = dattri.write_ground_truth(truth(metric), tmp_path)
    assert [p.name for p in paths] == [f"indices_{metric}.pt", f"target_values_{metric}.pt"]
    found, original = artefacts.read(back(metric, tmp_path), metric), truth(metric)
    if metric == "lds":
        assert np.array_equal(found.tensors["mask"], original.tensors["mask"])
        target = original.tensors["target"].astype(np.float64).mean(axis=1, keepdims=True)
        assert np.array_equal(found.tensors["target"], target.astype(np.float32))
    else:
        order = np.argsort(original.tensors["removed_id"])
        assert np.array_equal(found.tensors["removed_id"], original.tensors["removed_id"][order])
        assert np.array_equal(found.tensors["target"], original.tensors["target"][order])
        assert "unknown" in found.meta["full_target"]
    assert found.meta["imported_from"] == "dattri"
    assert str(paths[0]) in found.meta["inputs"]
    expected = values(metric, finished / RESULTS / f"truth/{metric}.safetensors")["mean"]
    assert values(metric, found.path)["mean"] == pytest.approx(expected, abs=1e-6)


def test_nan_is_handed_over_and_counted(
    truth: Callable[[str], Artefact], back: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    lds = truth("lds")
    lds.tensors["target"][3, 0, 2] = np.nan
    target, _ = dattri.ground_truth(lds)
    assert torch.isnan(target).nonzero().tolist() == [[3, 2]]
    dattri.write_ground_truth(lds, tmp_path)
    found = artefacts.read(back("lds", tmp_path), "lds").tensors["target"]
    assert np.argwhere(np.isnan(found)).tolist() == [[3, 0, 2]]


def test_models_are_state_dicts(finished: Path, tmp_path: Path) -> None:
    chunks = [artefacts.read(finished / RESULTS / f"models/full/{i}.safetensors") for i in (1, 0)]
    paths = dattri.write_models(chunks, tmp_path / "models_full")
    assert paths == [tmp_path / f"models_full/{i}/model_weights_0.pt" for i in range(3)]
    state = torch.load(paths[2], weights_only=True)
    assert sorted(state) == ["linear.bias", "linear.weight"]
    weight = chunks[0].tensors["state.linear.weight"]
    assert weight.shape[:2] == (1, 2)  # the third run, and its last checkpoint
    assert np.array_equal(state["linear.weight"].numpy(), weight[0, 1])
    assert paths[2].stat().st_size < 2 * weight[0, 1].nbytes  # not the whole stack


def test_a_run_that_is_not_there_is_named(truth: Callable[[str], Artefact]) -> None:
    with pytest.raises(LeaveoutError, match="runs 0 to 1; there is no run 2"):
        dattri.ground_truth(truth("lds"), 2)
    with pytest.raises(LeaveoutError, match="runs 0 to 0; there is no run -1"):
        dattri.ground_truth(truth("loo"), -1)


def test_subsets_of_different_sizes_are_refused(truth: Callable[[str], Artefact]) -> None:
    lds = truth("lds")
    lds.tensors["mask"][4, :] = 0
    lds.tensors["mask"][4, :11] = 1
    with pytest.raises(LeaveoutError, match=r"have 11 to 30 samples.*kronfluence's masks"):
        dattri.ground_truth(lds)


@pytest.mark.parametrize(
    ("metric", "indices", "values", "message"),
    [
        ("lds", np.zeros((4, 3)), np.ones((5, 7)), "no indices of the same models"),
        ("lds", np.zeros(5), np.ones((5, 7)), r"shape \(5,\) is not that of lds"),
        ("loo", np.zeros((5, 2)), np.ones((5, 7)), "is not that of loo"),
        ("loo", np.full(5, 1.5), np.ones((5, 7)), "no indices"),
        ("lds", np.array([[0, 60]]), np.ones((1, 7)), "position 60 lies outside the 60 training"),
        ("loo", np.array([3, -1]), np.ones((2, 7)), "position -1 lies outside"),
        ("lds", np.array([[0, 1], [4, 4]]), np.ones((2, 7)), "subset 1 names a training sample"),
        ("loo", np.array([3, 3]), np.ones((2, 7)), "names a training sample twice"),
        ("lds", np.array([[0, 1]]), np.ones((1, 6)), "values of 6 test samples.*has 7"),
    ],
)
def test_what_does_not_fit_is_named(
    data: Artefact,
    tmp_path: Path,
    metric: str,
    indices: np.ndarray,
    values: np.ndarray,
    message: str,
) -> None:
    files.save(tmp_path / f"indices_{metric}.pt", torch.from_numpy(indices))
    files.save(tmp_path / f"target_values_{metric}.pt", torch.from_numpy(values))
    with pytest.raises(LeaveoutError, match=message):
        dattri.read_ground_truth(metric, tmp_path, data)


def losses(path: Path) -> np.ndarray:
    """Stand in for a model: seven values that tell which file it was."""
    return np.full(7, files.load_state(path)["which"].item(), dtype=np.float32)


def write_subsets(folder: Path, subsets: int = 3, runs: int = 2) -> None:
    for i in range(subsets):
        for r in range(runs):
            state = {"which": torch.tensor(10.0 * i + r)}
            files.save(folder / str(i) / f"model_weights_{r}.pt", state)
        (folder / str(i) / "indices.txt").write_text(f"{i}\n{i + 20}\n{i + 5}")


def test_retrained_subsets_are_found_with_all_their_runs(data: Artefact, tmp_path: Path) -> None:
    write_subsets(tmp_path / "first", subsets=12)
    # metadata that point to where the folder once was
    (tmp_path / "first/metadata.yml").write_text(
        "num_subsets: 12\nsubset_dir_map: {0: /gone/0, 1: elsewhere/1}\n"
    )
    shutil.move(tmp_path / "first", tmp_path / "moved")
    arrays, _ = dattri.read_retrained("lds", tmp_path / "moved", data, losses)
    assert arrays["target"].shape == (12, 2, 7)
    # the eleventh folder, not the second by the alphabet
    assert arrays["target"][10].tolist() == [[100.0] * 7, [101.0] * 7]
    assert np.flatnonzero(arrays["mask"][10]).tolist() == [10, 15, 30]


def test_retrained_subsets_that_are_not_whole_are_named(data: Artefact, tmp_path: Path) -> None:
    write_subsets(tmp_path)
    (tmp_path / "metadata.yml").write_text("num_subsets: 5")
    with pytest.raises(LeaveoutError, match=r"says 5 subsets; \[3, 4\] are not there"):
        dattri.read_retrained("lds", tmp_path, data, losses)
    (tmp_path / "metadata.yml").unlink()
    (tmp_path / "2/model_weights_1.pt").unlink()
    with pytest.raises(LeaveoutError, match=r"2: 1 models, but 2 in .*0;"):
        dattri.read_retrained("lds", tmp_path, data, losses)
    (tmp_path / "1/indices.txt").write_text("1\ntwo")
    with pytest.raises(LeaveoutError, match="expected one index a line"):
        dattri.read_retrained("lds", tmp_path, data, losses)
    (tmp_path / "1/indices.txt").unlink()
    with pytest.raises(LeaveoutError, match=r"1/indices\.txt: no such file"):
        dattri.read_retrained("lds", tmp_path, data, losses)
    with pytest.raises(LeaveoutError, match="nothing there is named like"):
        dattri.read_retrained("loo", tmp_path, data, losses)


def test_retrained_leave_one_out_models_are_found(data: Artefact, tmp_path: Path) -> None:
    for i in (3, 11, 2):
        state = {"which": torch.tensor(float(i))}
        files.save(tmp_path / f"index_{i}" / "model_weights.pt", state)
    # as dattri writes it: reading it would take a loader that runs code
    (tmp_path / "metadata.yml").write_text("map_index_dir: {3: !!python/object/apply:x.y [1]}")
    arrays, _ = dattri.read_retrained("loo", tmp_path, data, losses)
    assert arrays["removed_id"].tolist() == [2, 3, 11]
    assert arrays["target"][:, 0, 0].tolist() == [2, 3, 11]
