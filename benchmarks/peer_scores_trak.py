"""TRAK by its authors' library; on a CPU it projects by plain torch."""

from __future__ import annotations

import logging
import tempfile

from torch import Tensor
from torch.utils.data import DataLoader
from trak import TRAKer

from peer_problem import Problem

BATCH = 500


def trak(problem: Problem, runs: int, dimension: int) -> Tensor:
    """Features of all training samples, then scores, for each model."""
    with tempfile.TemporaryDirectory() as folder:
        method = TRAKer(
            model=problem.net(),
            task="image_classification",
            train_set_size=len(problem.train),
            save_dir=folder,
            device="cpu",
            proj_dim=dimension,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        for run in range(runs):
            method.load_checkpoint(problem.half[run][-1], model_id=run)
            for batch in DataLoader(problem.train, batch_size=BATCH):
                method.featurize(batch, num_samples=len(batch[0]))
        method.finalize_features()
        for run in range(runs):
            method.start_scoring_checkpoint(
                "test", problem.half[run][-1], model_id=run, num_targets=len(problem.test)
            )
            for batch in DataLoader(problem.test, batch_size=BATCH):
                method.score(batch, num_samples=len(batch[0]))
        return Tensor(method.finalize_scores("test"))


METHODS = {"trak": trak}
