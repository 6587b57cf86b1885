"""RelatIF: an influence function relative to how far the training sample moves the model.

Paper: Barshan, Brunet and Dziugaite 2020, RelatIF: Identifying Explanatory Training Examples via
Relative Influence, arXiv:2003.11630.
Formula: score[i, j] = g_i' x_j / c_i, with x_j = (H + damping I)^-1 g_j by any method named as
``base``, and c_i = |x_i| (``norm`` = ``theta``: the parameters move by as much) or c_i =
sqrt(g_i' x_i) (``norm`` = ``l``: so do the losses of all training samples).
Cost: that of ``base``, but all training samples are right-hand sides, too.
Approximated: as ``base``. A sample with gradient 0 moves nothing and scores 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from leaveout.attribution import if_arnoldi, if_cg, if_ekfac, if_explicit, if_kfac, if_lissa
from leaveout.attribution.solved import solved_scores, tests_at_once
from leaveout.attribution.task import Task
from leaveout.config import nearest
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import gradient_chunks
from leaveout.problem.samples import Samples

BASES = {
    "if_arnoldi": if_arnoldi,
    "if_cg": if_cg,
    "if_ekfac": if_ekfac,
    "if_explicit": if_explicit,
    "if_kfac": if_kfac,
    "if_lissa": if_lissa,
}
"""Influence functions by name.

Each has ``inverse(task, **hyper_parameters)``, which returns the function from rows v to rows
(H + damping I)^-1 v.
"""
NORMS = ("theta", "l")
VECTORS = 7
"""Vectors that a base holds for each that it solves for."""


def attribute(
    task: Task,
    *,
    base: str,
    norm: str,
    damping: float,
    iterations: int = 0,
    curvature: str = "",
) -> Iterator[Tensor]:
    """Yield g_i' x_j / c_i.

    Args:
        task: The task.
        base: The influence function, such as ``if_cg``.
        norm: ``theta`` or ``l``.
        damping: The base's.
        iterations: The base's; 0 where it has none, or for its own choice.
        curvature: The base's; empty for its own choice.

    Yields:
        (train, test), in blocks of rows.

    Raises:
        NotComputableError: As ``base``, or some c_i is not a positive number.
        LeaveoutError: The base or norm is unknown, or the base takes other hyper-parameters.
    """
    for key, word, valid in (("base", base, list(BASES)), ("norm", norm, list(NORMS))):
        if word not in valid:
            raise LeaveoutError(f"relatif.{key}: {word!r} is unknown{nearest(word, valid, 0)}")
    given: dict[str, Any] = {"damping": damping}
    given |= {"iterations": iterations} if iterations else {}
    given |= {"curvature": curvature} if curvature else {}
    solve = _solver(task, base, given)
    at_once = tests_at_once(task, VECTORS)
    known: dict[tuple[int, int], Tensor] = {}  # they are the same for all blocks of test samples

    def products(block: Samples, solved: Tensor) -> Tensor:
        out = solved.new_empty(len(block), len(solved))
        for part, g in gradient_chunks(task.module, task.full[0].final, block):
            unit, which = _unit(g), (int(block.ids[part][0]), len(g))
            if which not in known:
                parts = unit.split(at_once)
                known[which] = torch.cat([_scales(rows, solve(rows), norm) for rows in parts])
            out[part] = (unit @ solved.T).div_(known[which][:, None])
        return out

    yield from solved_scores(task, solve, VECTORS, products)


def _solver(task: Task, base: str, given: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Return the base's function from vectors to their products with the inverse.

    Raises:
        LeaveoutError: The base takes other hyper-parameters.
    """
    module = BASES[base]
    takes = inspect.signature(module.inverse).parameters
    needs = {
        name
        for name, parameter in takes.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    }
    for wrong, what in ((set(given) - set(takes), "takes no"), (needs - set(given), "needs")):
        if wrong:
            raise LeaveoutError(f"relatif: {base} {what} {', '.join(sorted(wrong))}")
    solve: Callable[[Tensor], Tensor] = module.inverse(task, **given)
    return solve


def _unit(gradients: Tensor) -> Tensor:
    """Return rows of length 1, or 0: a score does not depend on the length of g_i.

    That of a sample that is fitted well is so short that its square would underflow.
    """
    tiny = torch.finfo(gradients.dtype).tiny
    near = gradients / gradients.abs().amax(1, keepdim=True).clamp_min(tiny)
    return near.div_(near.norm(dim=1, keepdim=True).clamp_min(tiny))


def _scales(units: Tensor, solved: Tensor, norm: str) -> Tensor:
    """Return c_i, 1 for a gradient of 0."""
    squares = (solved * (solved if norm == "theta" else units)).sum(1)
    squares = torch.where((units == 0).all(1), 1, squares)
    wrong = int((~(squares > 0)).sum())  # NaN counts
    if wrong:
        what = {"theta": "|x_i|", "l": "g_i' x_i"}[norm]
        raise NotComputableError(
            "undefined",
            f"relatif: {what} is not positive for {wrong} of {len(squares)} training samples: the "
            "curvature plus damping is not positive definite; raise the damping or take "
            "curvature = gauss_newton",
        )
    return squares.sqrt()
