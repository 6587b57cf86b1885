"""Influence function with eigenvalue-corrected Kronecker-factored curvature (EK-FAC).

Paper: Grosse et al. 2023, Studying Large Language Model Generalization with Influence Functions,
arXiv:2308.03296; EK-FAC by George et al. 2018, arXiv:1806.03884.
Formula: score[i, j] = g_i' (F + damping I)^-1 g_j, F = blocks (Q_in kron Q_out) diag(values) (Q_in
kron Q_out)', a block a layer, at the final state of full run 0: Q_in and Q_out eigenvectors of E[a
a'] and E[d d'], a a layer's inputs (ones appended for the bias) and d the gradients in its outputs,
values the second moments of the gradients in that basis; all over all training samples. Labels are
the model's own (``fisher: true``), in expectation where there are few classes, or the samples'.
Cost: two passes over the training samples (as many backward passes as classes), eigenvectors of
matrices of the layers' widths, then products with gradients that stay factored for linear layers.
Approximated: the Hessian by the Fisher (for the true Fisher: the Gauss-Newton matrix); layers are
independent; within a layer eigenvectors are Kronecker products. Normalisations have their exact
diagonal, other parameters the mean eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from leaveout.attribution.kronecker import scores, self_scores, task_samples
from leaveout.attribution.task import Task
from leaveout.curvature.ekfac import ekfac


def attribute(task: Task, *, damping: float, fisher: str = "true") -> Iterator[Tensor]:
    """Yield g_i' (F + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the eigenvalues.
        fisher: Whose labels: ``true`` or ``empirical``.

    Yields:
        (train, test), in blocks of rows.
    """
    yield from scores(task, ekfac(task_samples(task, fisher)), damping)


def inverse_products(
    task: Task, vectors: Tensor, *, damping: float, fisher: str = "true"
) -> Tensor:
    """Return (F + damping I)^-1 v for vectors (vectors, parameters), flat."""
    return inverse(task, damping=damping, fisher=fisher)(vectors)


def inverse(task: Task, *, damping: float, fisher: str = "true") -> Callable[[Tensor], Tensor]:
    """Estimate the factors once, and return the function of :func:`inverse_products`."""
    found = ekfac(task_samples(task, fisher))
    return lambda vectors: found.solve(vectors, damping)


def self_influence(task: Task, *, damping: float, fisher: str = "true") -> Tensor:
    """Return g_i' (F + damping I)^-1 g_i, (train,)."""
    return self_scores(task, ekfac(task_samples(task, fisher)), damping)
