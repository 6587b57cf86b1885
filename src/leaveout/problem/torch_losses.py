"""Objectives from what a training loop has: torch's own loss modules, or a function."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leaveout.config import nearest
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.problem.families import BERNOULLI, GAUSSIAN, SOFTMAX
from leaveout.problem.objective import Likelihood, Losses, Objective
from leaveout.problem.objectives import OBJECTIVES, log_odds, logits
from leaveout.problem.trees import count, one_by_one, tensors, tree_map

Given = str | Objective | Callable[..., Tensor]
"""A name of ours, an objective, a torch loss module, or ``loss(outputs, targets)``."""

ELEMENTWISE = (nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss)
"""Losses of every number of the outputs; their mean is one over all numbers of the batch."""
OF_SAMPLES = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
"""Losses of a sample; their mean is one over samples."""
KNOWN = (
    nn.CrossEntropyLoss,
    nn.BCEWithLogitsLoss,
    nn.MSELoss,
    nn.KLDivLoss,
    nn.NLLLoss,
    *ELEMENTWISE,
    *OF_SAMPLES,
)
"""torch's own losses that are taken apart; a subclass of one may do something else."""


def objective_of(loss: Given) -> Objective:
    """Return a loss as an objective: what each sample's part of it is, and what is known of it.

    With ``reduction="mean"`` a batch's loss is what torch makes of the batch: it divides by the
    weights of the classes, or the number of tokens, that count. ``"sum"`` and ``"none"`` mean the
    sum over a sample's numbers, and the mean of these over samples. A function, or a module that
    is not torch's own, gives a number a sample, (samples,); or one number for a batch, their mean
    or sum, and is then called on each sample alone.

    Args:
        loss: A name such as ``cross_entropy``, an objective, a torch loss module with any of its
            options, or a function ``loss(outputs, targets)``.

    Raises:
        LeaveoutError: The name is unknown, or the loss takes more than outputs and targets.

    Example:
        >>> objective_of(nn.CrossEntropyLoss(label_smoothing=0.1)).name
        'CrossEntropyLoss'
    """
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, str):
        if loss not in OBJECTIVES:
            raise LeaveoutError(f"loss: {loss!r} is unknown{nearest(loss, list(OBJECTIVES), 0)}")
        return OBJECTIVES[loss]()
    kind = type(loss)
    if kind is nn.CrossEntropyLoss:
        return _cross_entropy(loss)
    if kind is nn.BCEWithLogitsLoss:
        return _binary(loss)
    if kind is nn.MSELoss:
        return _elements(loss, Likelihood(GAUSSIAN, logits, lambda h, _: torch.full_like(h, 2.0)))
    if kind is nn.KLDivLoss or kind in ELEMENTWISE:
        return _elements(loss, None)
    if kind is nn.NLLLoss:
        return _negative_log_likelihood(loss)
    if kind in OF_SAMPLES:
        each = _unreduced(loss)
        return Objective(kind.__name__, lambda o, t: _rows(each(logits(o), t), count(o)))
    if not callable(loss):
        raise LeaveoutError(f"loss: expected a name, an objective or a function, got {kind}")
    return Objective(getattr(loss, "__qualname__", kind.__name__), one_at_a_time(loss))


def _unreduced(loss: Any) -> Any:
    each = copy.deepcopy(loss)
    each.reduction = "none"
    return each


def _rows(values: Tensor, samples: int) -> Tensor:
    """Sum what belongs to each sample, (samples,)."""
    return values.reshape(samples, -1).sum(1)


def one_at_a_time(loss: Callable[..., Tensor], name: str = "loss") -> Losses:
    """Return a function that gives a number a sample, whatever it makes of a batch.

    A reduction over one sample alone is that sample's loss, be it a mean or a sum. So a function
    that does not return a number for each sample is called on each of them alone.

    Args:
        loss: ``loss(outputs, targets)``.
        name: Its name, for messages.
    """

    def one(outputs: Any, targets: Any) -> tuple[Tensor, ...]:
        return (_single(loss(outputs, targets), name),)

    def losses(outputs: Any, targets: Any) -> Tensor:
        if not tensors(outputs):
            raise LeaveoutError(
                f"{name}: the model's output for one sample has no dimension for samples; does it "
                "end in squeeze()? Write squeeze(-1)"
            )
        samples = count((outputs, targets))
        if samples == 1:
            return _single(loss(outputs, targets), name)[None]
        if getattr(loss, "reduction", None) == "none":
            found = loss(outputs, targets)
            if len(tensors(found)) != 1 or len(found) != samples:
                raise LeaveoutError(_wrong(name, found, samples))
            return _rows(found, samples)
        each = one_by_one(one, outputs, targets)[0]
        _check_batch(loss, outputs, targets, each.detach(), name)
        return each

    return losses


def _check_batch(
    loss: Callable[..., Tensor], outputs: Any, targets: Any, each: Tensor, name: str
) -> None:
    """See that the loss of a batch is made of its samples' own: their mean, their sum, or these.

    Raises:
        LeaveoutError: It is not: it weighs samples, leaves some out, or mixes them.
    """
    n = len(each)
    with torch.no_grad():
        whole = loss(*(tree_map(lambda value: value.detach(), of) for of in (outputs, targets)))
        if not isinstance(whole, Tensor) or whole.numel() not in (1, n):
            raise LeaveoutError(_wrong(name, whole, n))
        size = each.abs().mean()
        if whole.numel() == n:
            far = [(whole.reshape(n) - each).abs().max()]
        else:
            far = [(whole - each.mean()).abs().reshape(()), (whole - each.sum()).abs().div(n)]
        try:
            fits = not whole.isfinite().all() or any(bool(f <= 1e-3 * size) for f in far)
        except RuntimeError:  # within torch.func, where nothing can be asked
            return
    if not fits:
        raise LeaveoutError(
            f"{name}: of {n} samples together it is neither the mean nor the sum of what it is of "
            "each alone, so that a sample's part is not known: it weighs classes, leaves some out, "
            "or mixes samples. Give torch's own loss module, such as "
            "nn.CrossEntropyLoss(weight=...), or a function that returns one number a sample"
        )


def _single(value: Tensor, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise LeaveoutError(_wrong(name, value, 1))
    return value.reshape(())


def _wrong(name: str, found: Any, samples: int) -> str:
    what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    return (
        f"{name}: gave {what} for {samples} samples; it must return one number a sample, or their "
        "mean or sum"
    )


def _cross_entropy(loss: Any) -> Objective:
    """Return torch's cross-entropy: classes in dimension 1, targets classes or probabilities."""
    each = _unreduced(loss)
    weight, smoothing, ignored = loss.weight, loss.label_smoothing, loss.ignore_index

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        if h.dim() < 2 or h.shape[1] < 2:
            raise LeaveoutError(
                f"CrossEntropyLoss: outputs {tuple(h.shape)} have no classes to choose from in "
                "dimension 1; take BCEWithLogitsLoss for one logit"
            )
        each.weight = None if weight is None else weight.to(h)
        return _rows(each(h, targets), len(h))

    def mass(h: Tensor, targets: Tensor) -> Tensor:
        own = h.new_ones(h.shape[-1]) if weight is None else weight.to(h)
        if targets.is_floating_point():
            smooth = targets.movedim(1, -1) * (1 - smoothing) + smoothing / h.shape[-1]
            total: Tensor = (smooth.to(h) * own).sum(-1)
            return total
        seen = (targets != ignored).to(h)
        chosen = own[targets.where(targets != ignored, torch.zeros_like(targets))]
        counted: Tensor = seen * ((1 - smoothing) * chosen + smoothing * own.mean())
        return counted

    def counts(targets: Tensor) -> Tensor:
        if targets.is_floating_point():  # torch divides by the number of positions
            return _rows(targets.new_ones(targets.shape[0], *targets.shape[2:]), len(targets))
        seen = targets != ignored
        if weight is None:
            return _rows(seen.double(), len(targets))
        own = weight.double().to(targets.device)
        place = targets.where(seen, torch.zeros_like(targets))
        return _rows(own[place] * seen, len(targets))

    def margin(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        found = functional.cross_entropy(h, targets, reduction="none", ignore_index=ignored)
        if targets.is_floating_point():
            return log_odds(found.reshape(len(h), -1).mean(1))
        if h.dim() == 2:
            place = targets[:, None]
            others = torch.logsumexp(h.scatter(1, place, float("-inf")), 1)
            return h.gather(1, place)[:, 0] - others
        seen = (targets != ignored).reshape(len(h), -1).sum(1)
        return log_odds(_rows(found, len(h)) / seen.clamp(min=1))

    return Objective(
        "CrossEntropyLoss",
        losses,
        counts=counts if loss.reduction == "mean" else None,
        margin=margin,
        classes=_classes,
        likelihood=Likelihood(SOFTMAX, lambda o: logits(o).movedim(1, -1), mass),
    )


def _classes(targets: Tensor) -> Tensor:
    if targets.is_floating_point() or targets.dim() != 1:
        raise NotComputableError(
            "undefined", "samples have no class each: their targets are not one integer each"
        )
    return targets


def _binary(loss: Any) -> Objective:
    each = _unreduced(loss)
    weight, positive = loss.weight, loss.pos_weight

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        each.weight = None if weight is None else weight.to(h)
        each.pos_weight = None if positive is None else positive.to(h)
        return _rows(each(h, targets.to(h)), len(h))

    def mass(h: Tensor, targets: Tensor) -> Tensor:
        t = targets.to(h)
        found = torch.ones_like(h) if positive is None else 1 + (positive.to(h) - 1) * t
        return found if weight is None else found * weight.to(h)

    def margin(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        found = functional.binary_cross_entropy_with_logits(h, targets.to(h), reduction="none")
        return log_odds(found.reshape(len(h), -1).mean(1))

    return Objective(
        "BCEWithLogitsLoss",
        losses,
        counts=_numbers if loss.reduction == "mean" else None,
        margin=margin,
        classes=_binary_classes,
        likelihood=Likelihood(BERNOULLI, logits, mass),
    )


def _binary_classes(targets: Tensor) -> Tensor:
    if targets.numel() != len(targets):
        raise NotComputableError(
            "undefined", "samples have no class each: they have several labels"
        )
    return targets.reshape(-1).round().long()


def _numbers(targets: Tensor) -> Tensor:
    """Return how many numbers each sample's targets have, (samples,)."""
    return targets.new_full((len(targets),), targets[0].numel(), dtype=torch.float64)


def _elements(loss: Any, likelihood: Likelihood | None) -> Objective:
    """Return a loss of every number of the outputs."""
    each = _unreduced(loss)
    name = type(loss).__name__

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        if h.shape != targets.shape:
            raise LeaveoutError(
                f"{name}: outputs {tuple(h.shape)} and targets {tuple(targets.shape)} differ in "
                "shape, and would be broadcast"
            )
        return _rows(each(h, targets.to(h)), len(h))

    return Objective(
        name,
        losses,
        counts=_numbers if loss.reduction == "mean" else None,
        likelihood=likelihood,
    )


def _negative_log_likelihood(loss: Any) -> Objective:
    each = _unreduced(loss)
    weight, ignored = loss.weight, loss.ignore_index

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        each.weight = None if weight is None else weight.to(h)
        return _rows(each(h, targets), len(h))

    def counts(targets: Tensor) -> Tensor:
        seen = targets != ignored
        own = seen.double()
        if weight is not None:
            place = targets.where(seen, torch.zeros_like(targets))
            own = own * weight.double().to(targets.device)[place]
        return _rows(own, len(targets))

    return Objective(
        "NLLLoss", losses, counts=counts if loss.reduction == "mean" else None, classes=_classes
    )
