"""Influence function with Kronecker-factored curvature (K-FAC).

Paper: Martens and Grosse 2015, arXiv:1503.05671; for convolutions Grosse and Martens 2016,
arXiv:1602.01407; in influence functions Grosse et al. 2023, arXiv:2308.03296.
Formula: score[i, j] = g_i' (F + damping I)^-1 g_j, F = blocks E[a a'] kron E[d d'] times the
positions of a sample, a block a layer, at the final state of full run 0: a a layer's inputs (ones
appended for the bias), d the gradients in its outputs; all over all training samples. Labels are
the model's own (``fisher: true``), in expectation where there are few classes, or the samples'.
Damping is added to the eigenvalues, not split between the factors.
Cost: one pass over the training samples (as many backward passes as classes), eigenvectors of
matrices of the layers' widths, then products with gradients that stay factored for linear layers.
Approximated: as EK-FAC (if_ekfac), and inputs and output gradients of a layer are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from leaveout.attribution.kronecker import scores, self_scores, task_samples
from leaveout.attribution.task import Task
from leaveout.curvature.kfac import kfac


def attribute(task: Task, *, damping: float, fisher: str = "true") -> Iterator[Tensor]:
    """Yield g_i' (F + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the eigenvalues.
        fisher: Whose labels: ``true`` or ``empirical``.

    Yields:
        (train, test), in blocks of rows.
    """
    yield from scores(task, kfac(task_samples(task, fisher)), damping)


def inverse_products(
    task: Task, vectors: Tensor, *, damping: float, fisher: str = "true"
) -> Tensor:
    """Return (F + damping I)^-1 v for vectors (vectors, parameters), flat."""
    return inverse(task, damping=damping, fisher=fisher)(vectors)


def inverse(task: Task, *, damping: float, fisher: str = "true") -> Callable[[Tensor], Tensor]:
    """Estimate the factors once, and return the function of :func:`inverse_products`."""
    found = kfac(task_samples(task, fisher))
    return lambda vectors: found.solve(vectors, damping)


def self_influence(task: Task, *, damping: float, fisher: str = "true") -> Tensor:
    """Return g_i' (F + damping I)^-1 g_i, (train,)."""
    return self_scores(task, kfac(task_samples(task, fisher)), damping)
