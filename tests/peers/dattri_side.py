"""dattri's side of test_dattri.py; run with the peers' Python.

Usage: python dattri_side.py ROOT FOLDER DOCS

ROOT is a folder of leaveout's with config and results, where the example in Python of DOCS is run
as it stands. In FOLDER lie `benchmark/mnist_lr`, a benchmark in dattri's layout, MNIST's files in
`dataset/MNIST/raw`, and banks in `lds` and `loo`. What dattri makes of them goes to `found.npz`;
what its retraining writes, to `retrained`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dattri.algorithm.tracin import TracInAttributor
from dattri.benchmark.load import load_benchmark
from dattri.benchmark.utils import SubsetSampler
from dattri.metric import (
    calculate_lds_ground_truth,
    calculate_loo_ground_truth,
    lds,
    loo_corr,
)
from dattri.model_util.retrain import retrain_lds, retrain_loo
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.utils.data import DataLoader

import leaveout

ROOT, FOLDER, DOCS = (Path(argument).resolve() for argument in sys.argv[1:])


def grad_dot(details: dict[str, Any], n_train: int, n_test: int, checkpoints: Any) -> list[Tensor]:
    """Score by dattri's Grad-Dot (TracIn, each checkpoint with weight 1), as its scripts do.

    Returns:
        Its scores, whose gradients it always projects at random; and without that, of the first
        checkpoint: the products of the gradients that its task gives.
    """

    def loss(params: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        image, label = data
        outputs = torch.func.functional_call(details["model"], params, image[None])
        return nn.functional.cross_entropy(outputs, torch.as_tensor(label)[None])

    task = AttributionTask(loss_func=loss, model=details["model"], checkpoints=checkpoints)
    count = len(checkpoints) if isinstance(checkpoints, list) else 1
    attributor = TracInAttributor(task=task, weight_list=torch.ones(count), normalized_grad=False)
    loaders = [
        DataLoader(details[f"{part}_dataset"], batch_size=64, sampler=SubsetSampler(range(n)))
        for part, n in (("train", n_train), ("test", n_test))
    ]
    with torch.no_grad():
        score = attributor.attribute(*loaders)
        parameters, _ = task.get_param(ckpt_idx=0)
        gradient = task.get_grad_loss_func(in_dims=(None, 0))
        train, test = (gradient(parameters, next(iter(loader))) for loader in loaders)
    return [score, train @ test.T]


def main() -> None:
    """Do everything with dattri that the tests look at."""
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from any_torchvision import import_torchvision

    import_torchvision()
    found: dict[str, Any] = {}
    ours, _ = leaveout.load_benchmark("lr", "mnist", "lds", root=ROOT)
    n_train, n_test = (len(ours[f"{part}_dataset"]) for part in ("train", "test"))
    loader = DataLoader(ours["test_dataset"], batch_size=n_test)
    score = torch.load("score.pt")

    for metric, measure in (("lds", lds), ("loo", loo_corr)):
        theirs, exported = load_benchmark("lr", "mnist", metric, download_path=str(FOLDER))
        _, loaded = leaveout.load_benchmark("lr", "mnist", metric, root=ROOT)
        for name, pair in (("exported", exported), ("loaded", loaded)):
            rows = score if metric == "lds" else score[pair[1]]
            found[f"{metric} {name}"] = measure(rows, pair)[0]
    for run in (0, 1):
        pair = [torch.load(f"run{run}/lds/{name}_lds.pt") for name in ("target_values", "indices")]
        found[f"lds run {run}"] = lds(score, pair)[0]

    found["their loss"] = theirs["loss_func"](
        theirs["models_full"][0],
        DataLoader(theirs["test_dataset"], batch_size=n_test),
    )
    for name, details in (("theirs", theirs), ("ours", ours)):
        one = grad_dot(details, n_train, n_test, details["models_full"][0])
        all_half = grad_dot(details, n_train, n_test, details["models_half"])
        found |= {f"{name} projected": one[0], f"{name} exact": one[1], f"{name} half": all_half[0]}

    (example,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    os.chdir(ROOT)
    exec(example, names := {})
    os.chdir(FOLDER)
    found["documented score"] = names["score"]
    found["documented"] = lds(names["score"].double(), names["ground_truth"])[0]

    train = DataLoader(ours["train_dataset"], batch_size=8)
    retrain_lds(
        ours["train_func"], train, "retrained/lds",
        num_subsets=3, num_runs_per_subset=2, seed=9, epoch_num=1,
    )  # fmt: skip
    retrain_loo(ours["train_func"], train, "retrained/loo", indices=[2], seed=9, epoch_num=1)
    target = ours["target_func"]
    found["retrained lds"], found["retrained indices"] = calculate_lds_ground_truth(
        target, "retrained/lds", loader
    )
    found["bank loo"], found["bank removed"] = calculate_loo_ground_truth(target, "loo", loader)
    os.chdir("lds")  # it takes the folders in metadata.yml from the current one
    found["bank lds"], found["bank indices"] = calculate_lds_ground_truth(target, ".", loader)
    os.chdir("..")
    np.savez("found.npz", **{name: tensor.numpy() for name, tensor in found.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(FOLDER)
    main()
