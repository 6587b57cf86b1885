from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

N = 24


@pytest.fixture(scope="session")
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and test samples whose inputs end in the sample's own position."""
    x, y = load_digits(return_X_y=True)
    inputs = torch.cat([torch.tensor(x / 16), torch.zeros(len(x), 1)], dim=1).float()
    labels = torch.tensor(y)
    train, test = slice(0, N), slice(N, N + 7)
    return TensorDataset(inputs[train], labels[train]), TensorDataset(inputs[test], labels[test])


@pytest.fixture
def loader(digits: tuple[TensorDataset, TensorDataset]) -> DataLoader[Any]:
    return DataLoader(digits[0], batch_size=5, shuffle=True)


@pytest.fixture
def test_loader(digits: tuple[TensorDataset, TensorDataset]) -> DataLoader[Any]:
    return DataLoader(digits[1], batch_size=4)


def build() -> nn.Module:
    return nn.Linear(65, 10)


def train(dataloader: DataLoader[Any], epochs: int = 2, lr: float = 0.5) -> nn.Module:
    """A loop as the field documents it, drawing from torch's global generator."""
    model = nn.Sequential(nn.Dropout(0.1), build())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        for inputs, labels in dataloader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model


def losses(checkpoint: Path | nn.Module, dataloader: DataLoader[Any]) -> Tensor:
    """The loss of every test sample under a checkpoint, or under a model."""
    model = checkpoint
    if not isinstance(model, nn.Module):
        model = nn.Sequential(nn.Dropout(0.1), build())
        model.load_state_dict(torch.load(checkpoint))
    model.eval()
    with torch.no_grad():
        parts = [nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in dataloader]
    return torch.cat(parts)


@pytest.fixture
def train_func() -> Callable[..., nn.Module]:
    return train


@pytest.fixture
def target_func() -> Callable[..., Tensor]:
    return losses


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return what reads all files of a bank but its lock."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
        return {str(p.relative_to(folder)): p.read_bytes() for p in files}

    return read
