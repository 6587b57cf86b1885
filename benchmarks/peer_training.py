"""dattri's side of `speed_retraining.py`: its own `retrain_lds`; run with the peers' Python.

Usage: python peer_training.py FOLDER THREADS, with `data.npz` and `MNIST/raw/` in the folder.

The logistic regression and the MLP are trained by dattri's own functions; it ships no small
convolutional net, so one is trained here in the same way as they do.

Two data sets: `shipped` is the one dattri makes (torchvision's MNIST, each image prepared when it
is asked for); `tensors` holds them ready, the best a user of dattri can do.
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
from dattri.benchmark.datasets.mnist import create_mnist_dataset, train_mnist_lr, train_mnist_mlp
from dattri.model_util.retrain import retrain_lds
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from any_torchvision import import_torchvision
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


def shipped() -> Dataset[Any] | None:
    """Return the data set that dattri makes, or None without torchvision."""
    try:
        import_torchvision()
        train, _ = create_mnist_dataset(str(FOLDER))
    except ModuleNotFoundError:
        return None
    return train


with np.load(FOLDER / "data.npz") as _arrays:
    ARRAYS = {name: torch.from_numpy(array) for name, array in _arrays.items()}
DATASETS: dict[str, Dataset[Any] | None] = {
    "shipped": shipped(),
    "tensors": TensorDataset(ARRAYS["train_inputs"], ARRAYS["train_labels"]),
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
    """Return versions and the data sets there are, after checking that they hold the same."""
    found = [name for name, dataset in DATASETS.items() if dataset is not None]
    for index in (0, len(ARRAYS["train_labels"]) - 1):
        for name in found:
            image, label = DATASETS[name][index]
            torch.testing.assert_close(image, ARRAYS["train_inputs"][index])
            assert label == ARRAYS["train_labels"][index]
    return {"dattri": version("dattri"), "torch": torch.__version__, "data": found}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve({"lds": lds, "losses": losses, "about": about})
