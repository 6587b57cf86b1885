"""kronfluence's side of test_kronfluence.py; run with the peers' Python.

Usage: python kronfluence_side.py FOLDER

In FOLDER lie `NAME.pt` (a whole module, inputs and labels of training and query samples). Scores
by its K-FAC and EK-FAC, with the samples' own labels, go to `NAME.npz`, in float64.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

DOUBLE = torch.float64


class Classification(Task):
    """Cross-entropy, summed over a batch as it wants it."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Return the sum of losses."""
        assert not sample
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """Return the sum of losses."""
        return self.compute_train_loss(batch, model)


def main(folder: Path) -> None:
    """Score every model in a folder."""
    for path in sorted(folder.glob("*.pt")):
        model, *tensors = torch.load(path, weights_only=False)
        train, query = TensorDataset(*tensors[:2]), TensorDataset(*tensors[2:])
        task = Classification()
        analyzer = Analyzer(
            path.stem, prepare_model(model, task), task, cpu=True, disable_tqdm=True,
            log_level=logging.ERROR, output_dir=str(folder / "kronfluence"),
        )  # fmt: skip
        found = {}
        for strategy in ("kfac", "ekfac"):
            analyzer.fit_all_factors(
                strategy, train, per_device_batch_size=16,
                factor_args=FactorArguments(
                    strategy, use_empirical_fisher=True, activation_covariance_dtype=DOUBLE,
                    gradient_covariance_dtype=DOUBLE, per_sample_gradient_dtype=DOUBLE,
                    lambda_dtype=DOUBLE,
                ),
            )  # fmt: skip
            for damping in (None, 1e-1, 1e-3):
                name = f"{strategy} {damping}"
                analyzer.compute_pairwise_scores(
                    name, strategy, query, train, per_device_query_batch_size=5,
                    per_device_train_batch_size=16,
                    score_args=ScoreArguments(
                        damping_factor=damping, per_sample_gradient_dtype=DOUBLE,
                        precondition_dtype=DOUBLE, score_dtype=DOUBLE,
                    ),
                )  # fmt: skip
                found[name] = analyzer.load_pairwise_scores(name)["all_modules"].numpy()
        np.savez(folder / f"{path.stem}.npz", **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
