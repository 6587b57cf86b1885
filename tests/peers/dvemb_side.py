"""dattri's side of test_dattri_dvemb.py; run with the peers' Python.

Usage: python dvemb_side.py FOLDER

Each NAME.pt in FOLDER is a training, step by step; dattri's DVEmb, without a projection, writes its
scores, summed over all epochs, to NAME.npy.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dattri.algorithm.dvemb import DVEmbAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def scores(steps: dict[str, Any]) -> Tensor:
    """Let dattri see every step, and score."""
    layers: list[nn.Module] = []
    for left, right in itertools.pairwise(steps["sizes"]):
        layers += [nn.Linear(left, right), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).double()
    names = [name for name, _ in model.named_parameters()]

    def loss(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        image, label = data
        outputs = torch.func.functional_call(model, params, image[None])
        return nn.functional.cross_entropy(outputs, label[None])

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = DVEmbAttributor(task=task)
    for epoch, batch, values in zip(steps["epoch"], steps["batch"], steps["state"], strict=True):
        model.load_state_dict(dict(zip(names, values, strict=True)))
        data = (steps["inputs"][batch], steps["labels"][batch])
        attributor.cache_gradients(epoch, data, batch, steps["rate"])
    attributor.cache()
    model.load_state_dict(dict(zip(names, steps["final"], strict=True)))
    test = TensorDataset(steps["test_inputs"], steps["test_labels"])
    return attributor.attribute(DataLoader(test, batch_size=64)).detach()


for file in Path(sys.argv[1]).glob("*.pt"):
    np.save(file.with_suffix(".npy"), scores(torch.load(file)).numpy())
