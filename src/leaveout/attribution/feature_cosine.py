"""Feature cosine: how alike a training and a test sample look to a trained model.

Paper: as a baseline of data attribution in Hanawa et al. 2021, Evaluation of Similarity-based
Explanations, arXiv:2006.04528 ("cos, last hidden layer").
Formula: score[i, j] = <f_i, f_j> / (|f_i| |f_j|), f what the last linear layer sees at the final
state of full run 0; for a linear model, the inputs.
Cost: one forward pass a sample, and one product of (train, features) with (features, test).
Approximated: only similarity counts, and labels are ignored. A zero feature has cosine 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import normalize

from leaveout.attribution.task import Task
from leaveout.gradients.features import penultimate_features


def attribute(task: Task) -> Iterator[Tensor]:
    """Yield the cosine of f_i and f_j, (train, test), in blocks of rows."""
    state = task.full[0].final
    test = normalize(penultimate_features(task.module, state, task.test))
    for block in task.train_blocks():
        yield normalize(penultimate_features(task.module, state, block)) @ test.T


def self_influence(task: Task) -> Tensor:
    """Return the cosine of each training sample's feature with itself: 1, or 0 for zero."""
    features = penultimate_features(task.module, task.full[0].final, task.train)
    return features.any(dim=1).to(features.dtype)
