"""dattri takes what we write, we take what it writes, and both get the same numbers."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import leaveout
from leaveout.config import load_setting
from leaveout.errors import LeaveoutError
from leaveout.interop import files
from leaveout.interop.transfer import export, import_truth
from leaveout.metrics.evaluate import evaluate
from leaveout.store import artefacts

pytestmark = [pytest.mark.peers, pytest.mark.slow]

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "peers.md"
RESULTS = Path("results/mnist_lr")
REMOVED = [3, 40, 11]

# a CSV has six decimals
SIX = 1e-6


def write_mnist(folder: Path, data: dict[str, Any]) -> None:
    """Write samples as the official files, for torchvision."""
    folder.mkdir(parents=True)
    for part, name in (("train", "train"), ("t10k", "test")):
        for kind, array in (("images-idx3", "inputs"), ("labels-idx1", "labels")):
            values = data[f"{name}_{array}"].astype(np.uint8)
            header = np.array([2048 + values.ndim, *values.shape], dtype=">i4")
            path = folder / f"{part}-{kind}-ubyte"
            path.write_bytes(header.tobytes() + values.tobytes())


def write_banks(folder: Path, details: dict[str, Any]) -> None:
    """Write banks of checkpoints, for a training function and a loader of the user's."""
    arguments = details["train_func"], DataLoader(details["train_dataset"], batch_size=8)
    leaveout.retrain_lds(
        *arguments, folder / "lds", num_subsets=3, num_runs_per_subset=2, seed=9, epoch_num=2
    )
    leaveout.retrain_loo(*arguments, folder / "loo", indices=REMOVED, seed=9, epoch_num=2)


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory, peers_python: Path) -> Path:
    """Write everything in dattri's layouts, let dattri read it, and return the folder."""
    folder = tmp_path_factory.mktemp("dattri")
    results = finished / RESULTS
    truths, models = (
        sorted((results / "truth").glob("*")),
        sorted((results / "models").rglob("*.s*")),
    )
    export("dattri", [*truths, *models], folder / "benchmark" / "mnist_lr")
    for run in (0, 1):
        export("dattri", [results / "truth/lds.safetensors"], folder / f"run{run}", run)
    write_mnist(folder / "dataset/MNIST/raw", artefacts.read(results / "data.safetensors").tensors)
    score = artefacts.read(results / "scores/grad_dot/default.safetensors").tensors["score"]
    # dattri sums in the score's own precision; in float32 sums that are nearly equal change ranks
    files.save(folder / "score.pt", torch.from_numpy(score).double())
    write_banks(folder, leaveout.load_benchmark("lr", "mnist", "lds", root=finished)[0])

    source = Path(leaveout.__file__).parents[1]
    done = subprocess.run(
        [peers_python, HERE / "dattri_side.py", finished, folder, DOCS],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "found.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def value(finished: Path) -> Callable[[str], dict[str, float]]:
    """Return a function that gives our own values of a metric: truth -> value."""

    def measure(metric: str) -> dict[str, float]:
        found = evaluate(
            metric=metric,
            truth=finished / RESULTS / f"truth/{metric}.safetensors",
            scores=[finished / RESULTS / "scores/grad_dot/default.safetensors"],
            costs=[],
            setting="mnist_lr",
            method="grad_dot",
            root_seed=4,
            bootstrap=10,
        )
        table = csv.DictReader(io.StringIO(found["csv"]))
        rows = [row for row in table if row["half"] == "all"]
        return {row["truth"]: float(row["value"]) for row in rows}

    return measure


@pytest.fixture
def imported(finished: Path, folder: Path, tmp_path: Path) -> Callable[[str, str], dict[str, Any]]:
    """Return a function that imports a folder of retrained models: the arrays."""

    def run(metric: str, name: str) -> dict[str, Any]:
        setting = load_setting(finished / "config/settings/mnist_lr.yaml")
        data, out = finished / RESULTS / "data.safetensors", tmp_path / "out.safetensors"
        import_truth("dattri", metric, setting, data, folder / name, out)
        return artefacts.read(out, metric).tensors

    return run


def test_its_lds_of_our_truth_is_our_value(
    found: dict[str, np.ndarray], value: Callable[[str], dict[str, float]]
) -> None:
    ours = value("lds")
    assert found["lds exported"].shape == (7,)
    assert np.array_equal(found["lds loaded"], found["lds exported"])
    assert ours["mean"] == pytest.approx(found["lds exported"].mean(), abs=SIX)
    single = (found["lds run 0"] + found["lds run 1"]).mean() / 2
    assert ours["single"] == pytest.approx(single, abs=SIX)
    assert abs(ours["mean"] - ours["single"]) > 1e-3


def test_its_loo_of_our_truth_is_our_value(
    found: dict[str, np.ndarray], value: Callable[[str], dict[str, float]]
) -> None:
    ours = value("loo")["single"]
    assert np.array_equal(found["loo loaded"], found["loo exported"])
    assert ours == pytest.approx(found["loo exported"].mean(), abs=SIX)
    assert np.ptp(found["loo exported"]) > 0.5  # no constant would do


def test_its_own_model_and_loss_read_our_checkpoints(
    found: dict[str, np.ndarray], finished: Path
) -> None:
    full = artefacts.read(finished / RESULTS / "truth/loo.safetensors").tensors["full_target"][0]
    # its float32 logits, a few units large; our models of two stacks
    assert found["their loss"] == pytest.approx(full, abs=1e-5)


def test_its_attributor_takes_its_dictionary_and_ours(
    found: dict[str, np.ndarray], finished: Path
) -> None:
    path = finished / RESULTS / "scores/grad_dot/default.safetensors"
    ours = artefacts.read(path).tensors["score"]
    # products over 7850 parameters in float32: 1e-5 of the largest
    tolerance = 1e-5 * float(np.abs(ours).max())
    assert found["ours exact"] == pytest.approx(ours, abs=tolerance)
    assert found["theirs exact"] == pytest.approx(ours, abs=tolerance)
    # the same projection, of gradients that agree
    for name in ("projected", "half"):
        scale = float(np.abs(found[f"ours {name}"]).max())
        assert found[f"ours {name}"] == pytest.approx(found[f"theirs {name}"], abs=1e-4 * scale)
    assert np.abs(found["ours half"] - found["ours projected"]).max() > 0.1 * scale  # other models


def test_the_documented_example_runs(found: dict[str, np.ndarray]) -> None:
    # the example scores as above, and dattri's lds takes score and ground truth as they are
    assert found["documented"].shape == (7,)
    assert np.isfinite(found["documented"]).all()
    assert np.array_equal(found["documented score"], found["ours projected"])


@pytest.fixture
def calculated(finished: Path, folder: Path) -> Callable[[str], list[np.ndarray]]:
    """Return a function that calculates the ground truth of a bank by ourselves."""
    details, _ = leaveout.load_benchmark("lr", "mnist", "lds", root=finished)
    calculate = {
        "lds": leaveout.calculate_lds_ground_truth,
        "loo": leaveout.calculate_loo_ground_truth,
    }
    loader = DataLoader(details["test_dataset"], batch_size=7)
    return lambda metric: [
        tensor.numpy()
        for tensor in calculate[metric](details["target_func"], folder / metric, loader)
    ]


def test_it_reads_a_bank_of_subsets_as_we_do(
    found: dict[str, np.ndarray],
    calculated: Callable[[str], list[np.ndarray]],
    imported: Callable[[str, str], dict[str, Any]],
) -> None:
    values, indices = calculated("lds")
    assert (values.shape, indices.shape) == ((3, 7), (3, 30))
    assert np.array_equal(found["bank indices"], indices)
    # the same function of the same files; a mean of two float32
    assert found["bank lds"] == pytest.approx(values, rel=1e-6)
    arrays = imported("lds", "lds")
    for row, kept in zip(arrays["mask"], indices, strict=True):
        assert np.flatnonzero(row).tolist() == sorted(kept)
    assert arrays["target"].shape == (3, 2, 7)
    assert np.ptp(arrays["target"], axis=1).min() > 0
    assert found["bank lds"] == pytest.approx(-arrays["target"].mean(axis=1), rel=1e-6)


def test_it_reads_a_leave_one_out_bank_as_we_do(
    found: dict[str, np.ndarray],
    calculated: Callable[[str], list[np.ndarray]],
    imported: Callable[[str, str], dict[str, Any]],
) -> None:
    values, indices = calculated("loo")
    arrays = imported("loo", "loo")
    for removed in (found["bank removed"], indices, arrays["removed_id"]):
        assert removed.tolist() == sorted(REMOVED)
    assert np.array_equal(found["bank loo"], values)
    assert np.array_equal(found["bank loo"], arrays["target"][:, 0])
    assert np.ptp(values, axis=0).min() > 0


def test_we_read_what_its_retraining_wrote(
    found: dict[str, np.ndarray], imported: Callable[[str, str], dict[str, Any]]
) -> None:
    arrays = imported("lds", "retrained/lds")
    assert arrays["target"].shape == (3, 2, 7)
    for row, kept in zip(arrays["mask"], found["retrained indices"], strict=True):
        assert np.flatnonzero(row).tolist() == sorted(kept)
    assert found["retrained lds"] == pytest.approx(-arrays["target"].mean(axis=1), rel=1e-6)


def test_its_pickled_leave_one_out_modules_are_refused(
    imported: Callable[[str, str], dict[str, Any]],
) -> None:
    with pytest.raises(LeaveoutError, match=r"index_2/model_weights\.pt: refused.*state_dict\(\)"):
        imported("loo", "retrained/loo")
