from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from leaveout.config import load_setting
from leaveout.errors import LeaveoutError
from leaveout.interop import files, kronfluence
from leaveout.interop.transfer import import_truth
from leaveout.store import artefacts

LDS = "results/mnist_lr/truth/lds.safetensors"
DATA = "results/mnist_lr/data.safetensors"
Values = Callable[[str, Path], dict[str, float]]


def test_its_way_to_evaluate_gets_our_number(
    finished: Path, values: Values, tmp_path: Path
) -> None:
    truth = artefacts.read(finished / LDS, "lds")
    kronfluence.write_ground_truth(truth, tmp_path)
    # as its scripts do: arrays of NumPy, the prediction turned round, scores (test, train)
    masks, losses = (torch.load(tmp_path / n, weights_only=False) for n in kronfluence.NAMES)
    assert (masks.dtype, losses.dtype) == (np.int8, np.float32)
    score = artefacts.read(finished / "results/mnist_lr/scores/grad_dot/default.safetensors")
    predicted = -masks.astype(np.float64) @ score.tensors["score"].astype(np.float64)
    found = [spearmanr(predicted[:, j], losses[:, j])[0] for j in range(losses.shape[1])]
    # a CSV has six decimals
    assert values("lds", finished / LDS)["mean"] == pytest.approx(np.mean(found), abs=1e-6)


def test_what_was_written_comes_back(finished: Path, values: Values, tmp_path: Path) -> None:
    truth = artefacts.read(finished / LDS, "lds")
    setting = load_setting(finished / "config/settings/mnist_lr.yaml")
    for run, name in ((None, "mean"), (1, "single")):
        kronfluence.write_ground_truth(truth, tmp_path, run)
        out = tmp_path / "back.safetensors"
        import_truth("kronfluence", "lds", setting, finished / DATA, tmp_path, out)
        back = artefacts.read(out, "lds").tensors
        assert np.array_equal(back["mask"], truth.tensors["mask"])
        target = truth.tensors["target"]
        wanted = target.astype(np.float64).mean(1) if run is None else target[:, run]
        assert np.array_equal(back["target"][:, 0], wanted.astype(np.float32))
        if name == "mean":
            expected = values("lds", finished / LDS)["mean"]
            assert values("lds", out)["mean"] == pytest.approx(expected, abs=1e-6)


def test_subsets_of_different_sizes_are_no_matter(finished: Path, tmp_path: Path) -> None:
    data = artefacts.read(finished / DATA)
    masks = np.tril(np.ones((5, 60), dtype=bool))
    losses = np.arange(35.0).reshape(5, 7)
    files.save(tmp_path / "masks.pt", torch.from_numpy(masks))  # tensors are as good
    files.save(tmp_path / "losses.pt", torch.from_numpy(losses))
    arrays, _ = kronfluence.read_ground_truth(tmp_path, data)
    assert arrays["mask"].sum(axis=1).tolist() == [1, 2, 3, 4, 5]
    assert np.array_equal(arrays["target"][:, 0], losses)


@pytest.mark.parametrize(
    ("masks", "losses", "message"),
    [
        (np.ones((4, 60)), np.ones((5, 7)), r"masks \(4, 60\) and losses \(5, 7\)"),
        (np.ones((5, 61)), np.ones((5, 7)), "with 60 training samples"),
        (np.ones(60), np.ones((5, 7)), r"expected \(subset, train\)"),
        (np.full((5, 60), 2), np.ones((5, 7)), "other values than 0"),
        (np.ones((5, 60)), np.ones((5, 8)), "values of 8 test samples.*has 7"),
    ],
)
def test_what_does_not_fit_is_named(
    finished: Path, tmp_path: Path, masks: np.ndarray, losses: np.ndarray, message: str
) -> None:
    files.save(tmp_path / "masks.pt", masks)
    files.save(tmp_path / "losses.pt", losses)
    with pytest.raises(LeaveoutError, match=message):
        kronfluence.read_ground_truth(tmp_path, artefacts.read(finished / DATA))


def test_leave_one_out_is_refused(finished: Path, tmp_path: Path) -> None:
    loo = artefacts.read(finished / "results/mnist_lr/truth/loo.safetensors")
    with pytest.raises(LeaveoutError, match="kronfluence has no files for what is of kind 'loo'"):
        kronfluence.write_ground_truth(loo, tmp_path)
    setting = load_setting(finished / "config/settings/mnist_lr.yaml")
    with pytest.raises(LeaveoutError, match="kronfluence has no files for loo, only for lds"):
        import_truth("kronfluence", "loo", setting, finished / DATA, tmp_path, tmp_path / "out")
