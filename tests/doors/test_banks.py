"""Scores against models that a user's own loop trained: the metric written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import leaveout
from leaveout.banks.layout import BankError
from leaveout.doors.scores import Scores
from leaveout.errors import LeaveoutError

N, M, WIDTH = 30, 5, 3
DRAWN = torch.Generator().manual_seed(0)
X, U = torch.randn(N, WIDTH, generator=DRAWN), torch.randn(M, WIDTH, generator=DRAWN)
Y, V = X.sum(1, keepdim=True).sin(), U.sum(1, keepdim=True).sin()
TRAIN = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
TEST = DataLoader(TensorDataset(U, V), batch_size=2)
MODEL = nn.Linear(WIDTH, 1)


def train(dataloader: DataLoader[Any], epochs: int = 20) -> nn.Module:
    model = nn.Linear(WIDTH, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(epochs):
        for x, y in dataloader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return model


def losses(model: nn.Module, dataloader: DataLoader[Any]) -> Tensor:
    model = model.float()
    with torch.no_grad():
        return torch.cat([(model(x) - y).square()[:, 0] for x, y in dataloader])


def scores(ids: np.ndarray | None = None) -> Scores:
    values = torch.randn(N, M, generator=torch.Generator().manual_seed(1))
    return Scores(values, np.arange(N) if ids is None else ids, np.arange(M), "mine", {})


def test_lds_with_its_ceiling(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    leaveout.retrain_lds(train, TRAIN, bank, num_subsets=12, num_runs_per_subset=2, seed=3)
    truth = leaveout.truth_of_bank(losses, bank, TEST, model=MODEL)
    given = scores()
    found = given.against(truth)
    values, kept = leaveout.calculate_lds_ground_truth(losses, bank, TEST, model=MODEL)
    predicted = torch.stack([given.values[ids].sum(0) for ids in kept])
    each = [spearmanr(predicted[:, j], values[:, j])[0] for j in range(M)]
    assert found.value == pytest.approx(np.mean(each), abs=1e-6)
    assert found.low < found.value < found.high
    assert 0 < found.ceiling <= 1  # of two runs


def test_loo(tmp_path: Path) -> None:
    leaveout.retrain_loo(train, TRAIN, tmp_path, indices=range(0, N, 3), seed=3)
    truth = leaveout.truth_of_bank(losses, tmp_path, TEST, model=MODEL)
    given = scores()
    values, ids = leaveout.calculate_loo_ground_truth(losses, tmp_path, TEST, model=MODEL)
    each = [pearsonr(given.values[ids, j], values[:, j])[0] for j in range(M)]
    assert given.against(truth).value == pytest.approx(np.mean(each), abs=1e-6)


def test_pbrf_leaves_out_what_did_not_converge(tmp_path: Path) -> None:
    leaveout.retrain_pbrf(MODEL, TRAIN, tmp_path, range(0, N, 2), loss=nn.MSELoss())
    record = tmp_path / "index_4" / "convergence.json"
    record.write_text(record.read_text("utf-8").replace("true", "false"), "utf-8")
    truth = leaveout.truth_of_bank(losses, tmp_path, TEST, model=MODEL)
    given = scores()
    with pytest.warns(UserWarning, match="4"):
        values, ids = leaveout.calculate_pbrf_ground_truth(losses, tmp_path, TEST, model=MODEL)
    assert 4 not in ids
    each = [pearsonr(given.values[ids, j], values[:, j])[0] for j in range(M)]
    assert given.against(truth).value == pytest.approx(np.mean(each), abs=1e-4)


def test_ids_are_the_banks(tmp_path: Path) -> None:
    """Of a subset of a data set they are positions in the whole; other ids are refused."""
    some = list(range(N - 1, -1, -2))
    loader = DataLoader(Subset(TensorDataset(X, Y), some), batch_size=5)
    leaveout.retrain_lds(train, loader, tmp_path, num_subsets=6, seed=3)
    truth = leaveout.truth_of_bank(losses, tmp_path, TEST, model=MODEL)
    whole = scores().values
    given = Scores(whole[some], np.array(some), np.arange(M), "mine", {})
    values, kept = leaveout.calculate_lds_ground_truth(losses, tmp_path, TEST, model=MODEL)
    predicted = torch.stack([whole[ids].sum(0) for ids in kept])
    each = [spearmanr(predicted[:, j], values[:, j])[0] for j in range(M)]
    assert given.against(truth).value == pytest.approx(np.mean(each), abs=1e-6)
    with pytest.raises(LeaveoutError, match="id"):
        scores().against(truth)


def test_a_bank_that_is_not_whole_is_an_error(tmp_path: Path) -> None:
    leaveout.retrain_lds(train, TRAIN, tmp_path, num_subsets=2, total_num_subsets=4, seed=3)
    with pytest.raises(BankError, match="not whole"):
        leaveout.truth_of_bank(losses, tmp_path, TEST, model=MODEL)
