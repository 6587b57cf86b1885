"""dattri's side of `speed.py`: its own `retrain_lds`; run with the peers' Python.

Usage: python peer_dattri.py FOLDER THREADS, with `data.npz` in the folder.

The logistic regression and the MLP are trained by dattri's own functions; it ships no small
convolutional net, so one is trained here in the same way as they do.

Two data sets. `items` prepares each image when it is asked for, as the one dattri makes does
(torchvision's MNIST with ToTensor and Normalize, operation by operation, but for the detour over a
PIL image, which would cost more). `tensors` holds them ready, the best a user of dattri can do.
"""

from __future__ import annotations

import random
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dattri.benchmark.datasets.mnist import train_mnist_lr, train_mnist_mlp
from dattri.model_util.retrain import retrain_lds
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from speed_protocol import Message, serve

FOLDER = Path(sys.argv[1])


def small_cnn() -> nn.Module:
    """Return the convolutional net of the case `cnn`: leaveout.models.cnn with [8, 16]."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 10),
    )


def train_small_cnn(
    dataloader: DataLoader[Any], seed: int = 0, device: str = "cpu", epoch_num: int = 5
) -> nn.Module:
    """Train as dattri's train_mnist_mlp does, line by line."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = small_cnn()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    model.to(device)
    for _ in range(epoch_num):
        for inputs, labels in dataloader:
            optimizer.zero_grad()
            outputs = model(inputs.to(device))
            loss = criterion(outputs, labels.to(device))
            loss.backward()
            optimizer.step()
    return model


TRAIN = {"linear": train_mnist_lr, "mlp": train_mnist_mlp, "cnn": train_small_cnn}


class Items(Dataset[tuple[Tensor, int]]):
    """Images prepared one at a time."""

    def __init__(self, pixels: Tensor, labels: Tensor, mean: float, std: float) -> None:
        self.pixels, self.labels, self.mean, self.std = pixels, labels, mean, std

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # torchvision.datasets.MNIST
        picture, target = self.pixels[index].numpy(), int(self.labels[index])
        # torchvision.transforms.functional.to_tensor
        image = torch.from_numpy(np.array(picture, copy=True)).view(28, 28, 1)
        image = image.permute((2, 0, 1)).contiguous().to(torch.get_default_dtype()).div(255)
        # torchvision.transforms.functional.normalize
        image = image.clone()
        mean = torch.as_tensor((self.mean,), dtype=image.dtype)
        std = torch.as_tensor((self.std,), dtype=image.dtype)
        if (std == 0).any():
            raise ValueError("std is zero")
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)), target


with np.load(FOLDER / "data.npz") as _arrays:
    ARRAYS = {name: torch.from_numpy(array) for name, array in _arrays.items()}
DATASETS: dict[str, Dataset[Any]] = {
    "tensors": TensorDataset(ARRAYS["train_inputs"], ARRAYS["train_labels"]),
    "items": Items(ARRAYS["train_pixels"], ARRAYS["train_labels"], *ARRAYS["normalise"].tolist()),
}


def lds(
    worker: int, model: str, data: str, batch_size: int, epochs: int, models: int, seed: int
) -> Message:
    """Train ``models`` models on as many subsets."""
    loader = DataLoader(DATASETS[data], batch_size=batch_size, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        retrain_lds(
            TRAIN[model], loader, folder, num_subsets=models, seed=seed + 1000 * worker,
            epoch_num=epochs,
        )  # fmt: skip
    return {}


def losses(worker: int, model: str, batch_size: int, epochs: int, runs: int) -> Message:
    """Train models on one subset; return its indices and the models' mean test losses."""
    loader = DataLoader(DATASETS["tensors"], batch_size=batch_size, shuffle=True)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained: list[nn.Module] = []

        def train(*args: Any, **kwargs: Any) -> nn.Module:
            trained.append(TRAIN[model](*args, **kwargs))
            return trained[-1]

        retrain_lds(
            train, loader, name, num_subsets=1, num_runs_per_subset=runs, seed=1, epoch_num=epochs
        )
        kept = [int(line) for line in (folder / "0" / "indices.txt").read_text().split()]
        for module in trained:
            module.eval()
            with torch.no_grad():
                outputs = module(ARRAYS["test_inputs"])
            found.append(nn.functional.cross_entropy(outputs, ARRAYS["test_labels"]).item())
    return {"kept": kept, "losses": found}


def about(worker: int) -> Message:
    """Return versions, after checking that both data sets hold the same."""
    for index in (0, 1, 4999):
        mine, ready = (DATASETS[name][index][0] for name in ("items", "tensors"))
        torch.testing.assert_close(mine, ready)
    return {"dattri": version("dattri"), "torch": torch.__version__}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve({"lds": lds, "losses": losses, "about": about})
