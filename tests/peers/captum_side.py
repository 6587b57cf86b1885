"""captum's side of test_captum.py; run with the peers' Python.

Usage: python captum_side.py FOLDER

Both libraries score the same checkpoints, samples and loss; scores go to `found.npz`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from captum.influence import TracInCP, TracInCPFast
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leaveout

MODELS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    ),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6, 4),
    ),
}


def load(model: nn.Module, path: str) -> float:
    """Load a checkpoint; the learning rate is in it."""
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["state"])
    return saved["rate"]


def main(folder: Path) -> None:
    """Score with both."""
    found = {}
    inputs, labels = torch.randn(40, 1, 8, 8), torch.randint(4, (40,))
    train, test = TensorDataset(inputs[:29], labels[:29]), (inputs[29:], labels[29:])
    for name, make in MODELS.items():
        paths = []
        for number, rate in enumerate((0.5, 0.2, 0.1)):
            model = make()
            paths.append(str(folder / f"{name}-{number}.pt"))
            torch.save({"state": model.state_dict(), "rate": rate}, paths[-1])
        last = model[-1]
        for reduction in ("none", "sum", "mean"):
            loss = nn.CrossEntropyLoss(reduction=reduction)
            common = (train, paths, load)
            pairs = {
                "all": (
                    TracInCP(model, *common, None, loss, 7, None, sample_wise_grads_per_batch=True)
                    if reduction != "none"
                    else TracInCP(model, *common, None, loss, 7),
                    leaveout.TracInCP(model, *common, loss_fn=loss, batch_size=6),
                ),
            }
            if reduction != "none":
                pairs["fast"] = (
                    TracInCPFast(model, last, *common, loss, 7),
                    leaveout.TracInCPFast(
                        model, last, *common, loss_fn=loss, batch_size=6, bias=False
                    ),
                )
            for variant, sides in pairs.items():
                for side, tracer in zip(("theirs", "ours"), sides, strict=True):
                    key = f"{name} {reduction} {variant}"
                    found[f"{key}|influence|{side}"] = tracer.influence(test)
                    found[f"{key}|aggregate|{side}"] = (
                        tracer.influence(test, aggregate=True)
                        if variant == "all"
                        else tracer.influence(test).sum(0, keepdim=True)
                    )
                    found[f"{key}|self|{side}"] = tracer.self_influence()
                    loader = DataLoader(TensorDataset(*test), batch_size=4)
                    found[f"{key}|self of others|{side}"] = tracer.self_influence(loader)
                    for proponents in (True, False):
                        most = tracer.influence(test, k=5, proponents=proponents)
                        what = "proponents" if proponents else "opponents"
                        found[f"{key}|{what}|{side}"] = most.indices
                        found[f"{key}|scores of {what}|{side}"] = most.influence_scores
        # captum freezes the other layers for good, so it comes last
        loss = nn.CrossEntropyLoss(reduction="sum")
        layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][:2]
        key = f"{name} sum layers"
        ours = leaveout.TracInCP(model, *common, layers=layers, loss_fn=loss)
        found[f"{key}|influence|ours"] = ours.influence(test)
        theirs = TracInCP(model, *common, layers, loss, 7, sample_wise_grads_per_batch=True)
        found[f"{key}|influence|theirs"] = theirs.influence(test)
    np.savez(folder / "found.npz", **{n: value.detach().numpy() for n, value in found.items()})


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # captum's, of itself
    torch.set_num_threads(1)
    torch.manual_seed(0)
    main(Path(sys.argv[1]))
