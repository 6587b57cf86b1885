"""dattri takes what we write, we take what it writes, and both get the same numbers."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Subset

import leaveout
from leaveout import artefacts
from leaveout.config import load_setting
from leaveout.errors import LeaveoutError
from leaveout.interop import files
from leaveout.interop.transfer import export, import_truth
from leaveout.metrics.evaluate import evaluate

pytestmark = [pytest.mark.peers, pytest.mark.slow]

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "peers.md"
RESULTS = Path("results/mnist_lr")
SUBSETS = [[5, 0, 41, 7, 8, 30], [1, 2, 3, 50, 59, 6], [9, 20, 14, 13, 15, 11]]
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
    """Write banks of checkpoints in the documented layout, with relative paths in metadata.yml."""

    def state(kept: list[int], seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            Subset(details["train_dataset"], kept), batch_size=4, generator=generator
        )
        return details["train_func"](loader, seed=seed, epoch_num=2).state_dict()

    for i, kept in enumerate(SUBSETS):
        for run in (0, 1):
            files.save(folder / f"lds/{i}/model_weights_{run}.pt", state(kept, 10 * i + run))
        (folder / f"lds/{i}/indices.txt").write_text("\n".join(map(str, kept)))
    metadata = {
        "mode": "lds",
        "num_subsets": len(SUBSETS),
        "num_runs_per_subset": 2,
        "subset_dir_map": {i: f"./{i}" for i in range(len(SUBSETS))},
    }
    (folder / "lds/metadata.yml").write_text(yaml.safe_dump(metadata))
    for i in REMOVED:
        kept = [j for j in range(60) if j != i]
        files.save(folder / f"loo/index_{i}/model_weights.pt", state(kept, 5))


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
def value(finished: Path, tmp_path: Path) -> Callable[[str], dict[str, float]]:
    """Return a function that gives our own values of a metric: truth -> value."""

    def measure(metric: str) -> dict[str, float]:
        evaluate(
            metric,
            finished / RESULTS / f"truth/{metric}.safetensors",
            [finished / RESULTS / "scores/grad_dot/default.safetensors"],
            tmp_path / "out.csv",
            setting="mnist_lr",
            method="grad_dot",
            root_seed=4,
            bootstrap=10,
        )
        with (tmp_path / "out.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["half"] == "all"]
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


def test_it_reads_a_bank_of_subsets_as_we_do(
    found: dict[str, np.ndarray], imported: Callable[[str, str], dict[str, Any]]
) -> None:
    arrays = imported("lds", "lds")
    assert found["bank indices"].tolist() == SUBSETS
    for row, kept in zip(arrays["mask"], SUBSETS, strict=True):
        assert np.flatnonzero(row).tolist() == sorted(kept)
    assert arrays["target"].shape == (3, 2, 7)
    assert np.ptp(arrays["target"], axis=1).min() > 0
    # the same function of the same files; a sum of two float32
    assert found["bank lds"] == pytest.approx(-arrays["target"].mean(axis=1), rel=1e-6)


def test_it_reads_a_leave_one_out_bank_as_we_do(
    found: dict[str, np.ndarray], imported: Callable[[str, str], dict[str, Any]]
) -> None:
    arrays = imported("loo", "loo")
    assert found["bank removed"].tolist() == sorted(REMOVED)
    assert arrays["removed_id"].tolist() == sorted(REMOVED)
    assert np.array_equal(found["bank loo"], arrays["target"][:, 0])
    assert np.ptp(arrays["target"], axis=0).min() > 0


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
