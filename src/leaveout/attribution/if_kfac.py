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
from functools import partial

from torch import Tensor

from leaveout.attribution.solved import solved_scores
from leaveout.attribution.task import Task
from leaveout.curvature import kronecker
from leaveout.curvature.kfac import Curvature, FisherData, kfac


def attribute(task: Task, *, damping: float, fisher: str = "true") -> Iterator[Tensor]:
    """Yield g_i' (F + damping I)^-1 g_j.

    Args:
        task: The task.
        damping: Added to the eigenvalues.
        fisher: Whose labels: ``true`` or ``empirical``.

    Yields:
        (train, test), in blocks of rows.
    """
    yield from scores(task, kfac(fisher_samples(task, fisher)), damping)


def inverse(task: Task, *, damping: float, fisher: str = "true") -> Callable[[Tensor], Tensor]:
    """Estimate F, and return the function from rows v to rows (F + damping I)^-1 v."""
    return partial(kfac(fisher_samples(task, fisher)).solve, damping=damping)


def self_influence(task: Task, *, damping: float, fisher: str = "true") -> Tensor:
    """Return g_i' (F + damping I)^-1 g_i, (train,)."""
    return self_scores(task, kfac(fisher_samples(task, fisher)), damping)


# what a task is to any Kronecker-factored curvature: EK-FAC's methods take these, too


def fisher_samples(task: Task, fisher: str) -> FisherData:
    """Describe full run 0 and the training samples; see :func:`kronecker.fisher_samples`."""
    train = task.train
    return kronecker.fisher_samples(
        task.module,
        task.full[0].final,
        train,
        fisher,
        lambda number: f"{task.setting} {train.ids[number]}",
        task.seed,
    )


def scores(task: Task, curvature: Curvature, damping: float) -> Iterator[Tensor]:
    """Yield g_i' (curvature + damping I)^-1 g_j at full run 0, (train, test), in blocks of rows."""
    model = (task.module, task.full[0].final)
    if kronecker.stays_factored(*model, curvature, task.test):
        blocks = task.train_blocks()
        yield from kronecker.kronecker_scores(*model, curvature, damping, blocks, task.test)
    else:
        yield from solved_scores(task, partial(curvature.solve, damping=damping), 6)


def self_scores(task: Task, curvature: Curvature, damping: float) -> Tensor:
    """Return g_i' (curvature + damping I)^-1 g_i at full run 0, (train,)."""
    model = (task.module, task.full[0].final)
    return kronecker.kronecker_self_scores(*model, curvature, damping, task.train_blocks())
