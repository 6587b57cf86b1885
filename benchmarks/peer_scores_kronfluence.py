"""kronfluence's EK-FAC: factors of the true Fisher matrix, and pairwise scores."""

from __future__ import annotations

import tempfile

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn

from peer_problem import Problem

FACTOR_BATCH, QUERY_BATCH, TRAIN_BATCH = 1000, 500, 500


class Classification(Task):
    """Cross-entropy, as in its examples."""

    def compute_train_loss(
        self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        """Return the sum of the losses, with labels drawn from the model where asked."""
        logits, labels = model(batch[0]), batch[1]
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.softmax(-1), num_samples=1).flatten()
        return nn.functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        """Return the sum of the losses."""
        return self.compute_train_loss(batch, model)


def ekfac(problem: Problem, damping: float) -> Tensor:
    """Fit the factors and score."""
    task = Classification()
    with tempfile.TemporaryDirectory() as folder:
        model = prepare_model(problem.net(), task)
        analyzer = Analyzer("speed", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        analyzer.fit_all_factors(
            "ekfac",
            problem.train,
            per_device_batch_size=FACTOR_BATCH,
            factor_args=FactorArguments(strategy="ekfac"),
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            problem.test,
            problem.train,
            per_device_query_batch_size=QUERY_BATCH,
            per_device_train_batch_size=TRAIN_BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )
        found: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return found.T


METHODS = {"ekfac": ekfac}
