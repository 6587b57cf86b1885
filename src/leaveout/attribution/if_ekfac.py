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
from functools import partial

from torch import Tensor

from leaveout.attribution.if_kfac import fisher_samples, scores, self_scores
from leaveout.attribution.task import Task
from leaveout.curvature.ekfac import ekfac


def attribute(task: Task, *, damping: float, fisher: str = "true") -> Iterator[Tensor]:
    """Yield the scores, (train, test), in blocks of rows.

    Args:
        task: The task.
        damping: Added to the corrected eigenvalues.
        fisher: ``true`` for the model's own labels, ``empirical`` for the samples'.
    """
    yield from scores(task, ekfac(fisher_samples(task, fisher)), damping)


def inverse(task: Task, *, damping: float, fisher: str = "true") -> Callable[[Tensor], Tensor]:
    """Estimate EK-FAC, and return the function from rows v to rows (F + damping I)^-1 v."""
    return partial(ekfac(fisher_samples(task, fisher)).solve, damping=damping)


def self_influence(task: Task, *, damping: float, fisher: str = "true") -> Tensor:
    """Return g_i' (F + damping I)^-1 g_i of every training sample, (train,)."""
    return self_scores(task, ekfac(fisher_samples(task, fisher)), damping)
