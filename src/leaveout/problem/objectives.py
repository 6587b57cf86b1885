"""The objectives that ship: classes, tokens, numbers, and labels of which several may hold.

Each is a function that returns an :class:`leaveout.problem.objective.Objective`; its arguments are
the keys of a setting's ``objective`` section beside ``name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leaveout.errors import LeaveoutError
from leaveout.problem.families import BERNOULLI, GAUSSIAN, SOFTMAX
from leaveout.problem.objective import Likelihood, Losses, Objective


def logits(outputs: Any) -> Tensor:
    """Return the tensor of logits, or predictions, among what a model returns.

    Raises:
        LeaveoutError: The outputs are neither a tensor nor have ``logits``.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else None
    found = getattr(outputs, "logits", None) if found is None else found
    if not isinstance(found, Tensor):
        raise LeaveoutError(
            "the objective takes a tensor of outputs, or outputs with `logits`; the model returned "
            f"{type(outputs).__name__}. Return one of these, or give an objective of your own"
        )
    return found


def check_classes(h: Tensor, targets: Tensor, name: str, dims: int) -> None:
    """Check that targets are classes for outputs with classes last.

    Raises:
        LeaveoutError: They are no integers, or of another shape.
    """
    integers = not targets.is_floating_point() and not targets.is_complex()
    if h.dim() != dims or h.shape[:-1] != targets.shape or not integers:
        places = "(samples, classes)" if dims == 2 else "(samples, positions, classes)"
        raise LeaveoutError(
            f"{name}: expected outputs {places} and integer classes of the shape before; got "
            f"outputs {tuple(h.shape)} and targets {tuple(targets.shape)} of {targets.dtype}. For "
            "numbers take squared_error, for one logit binary_cross_entropy"
        )
    if h.shape[-1] < 2:
        raise LeaveoutError(
            f"{name}: one output has no classes to choose from, its loss is always 0; take "
            "binary_cross_entropy, or squared_error"
        )


def _margin(h: Tensor, classes: Tensor) -> Tensor:
    """Return log p - log(1 - p) of the classes: their logit less the others' log sum of exps."""
    place = classes[..., None]
    chosen = h.gather(-1, place)[..., 0]
    return chosen - torch.logsumexp(h.scatter(-1, place, float("-inf")), -1)


def log_odds(losses: Tensor) -> Tensor:
    """Return log p - log(1 - p) with p = exp(-loss): of several targets their geometric mean."""
    tiny = torch.finfo(losses.dtype).tiny
    return -losses - (-torch.expm1(-losses)).clamp_min(tiny).log()


def _softmax_losses(
    h: Tensor, classes: Tensor, weight: Tensor | None, smoothing: float, ignore: int
) -> Tensor:
    """Return the cross-entropy of every unit, of the classes' shape."""
    found = functional.cross_entropy(
        h.reshape(-1, h.shape[-1]),
        classes.reshape(-1),
        weight=None if weight is None else weight.to(h),
        ignore_index=ignore,
        label_smoothing=smoothing,
        reduction="none",
    )
    return found.reshape(classes.shape)


def _softmax_mass(
    classes: Tensor, like: Tensor, weight: Tensor | None, smoothing: float, ignore: int
) -> Tensor:
    """Return how often the potential counts in each unit's loss; 0 for what is ignored."""
    seen = (classes != ignore).to(like)
    if weight is None:
        return seen
    weight = weight.to(like)
    own = weight[classes.clamp(min=0)] if ignore < 0 else weight[classes]
    return seen * ((1 - smoothing) * own + smoothing * weight.mean())


def cross_entropy(
    weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    measure: str = "loss",
) -> Objective:
    """Cross-entropy of one class a sample, as ``torch.nn.CrossEntropyLoss`` with its mean has it.

    Args:
        weight: Of each class; a batch's loss is divided by the sum of its samples' weights.
        label_smoothing: Part of the target that is spread over all classes.
        ignore_index: Class of samples that do not count; by default all do.
        measure: ``loss``, ``margin`` (log odds), ``logit`` or ``log_probability`` of the target.
    """
    weights = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    plain = weights is None and not label_smoothing and ignore_index is None
    ignored = -100 if ignore_index is None else ignore_index

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h = logits(outputs)
        check_classes(h, targets, "cross_entropy", 2)
        return _softmax_losses(h, targets, weights, label_smoothing, ignored)

    def margin(outputs: Any, targets: Tensor) -> Tensor:
        return _margin(logits(outputs), targets)

    def check(targets: Tensor) -> None:
        check_values(targets, "cross_entropy", None if ignore_index is None else ignored)

    def counts(targets: Tensor) -> Tensor:
        seen = (targets != ignored).double()
        return seen if weights is None else seen * weights.to(targets.device)[targets.clamp(min=0)]

    measures: dict[str, Losses | None] = {
        "loss": None,
        "margin": lambda o, t: -margin(o, t),
        "logit": lambda o, t: -logits(o).gather(-1, t[:, None])[:, 0],
        "log_probability": lambda o, t: functional.cross_entropy(logits(o), t, reduction="none"),
    }
    return Objective(
        "cross_entropy",
        losses,
        counts=None if weights is None and ignore_index is None else counts,
        measure=choose_measure(measures, measure),
        margin=margin,
        classes=lambda targets: targets,
        likelihood=Likelihood(
            SOFTMAX,
            logits,
            lambda h, t: _softmax_mass(t, h, weights, label_smoothing, ignored),
        ),
        check=check,
        plain=plain,
    )


def check_values(targets: Tensor, name: str, ignored: int | None) -> None:
    """Check that classes are integers and none is negative, but for the one that does not count.

    Raises:
        LeaveoutError: One is; a class of -100 would have loss 0 in torch, silently.
    """
    if targets.is_floating_point():
        raise LeaveoutError(
            f"{name}: the targets are {targets.dtype}, not classes. For numbers take "
            "squared_error, for one logit binary_cross_entropy, for several labels multi_label"
        )
    wrong = (targets < 0) if ignored is None else (targets < 0) & (targets != ignored)
    if bool(wrong.any()):
        raise LeaveoutError(
            f"{name}: {int(wrong.sum())} targets are negative, such as {int(targets[wrong][0])}; "
            "classes count from 0. Give ignore_index for those that do not count"
        )


def check_truths(targets: Tensor, name: str) -> None:
    """Check that what holds or not is told by numbers from 0 to 1.

    Raises:
        LeaveoutError: One lies outside, a class of several for instance.
    """
    wrong = (targets < 0) | (targets > 1)
    if bool(wrong.any()):
        raise LeaveoutError(
            f"{name}: {int(wrong.sum())} targets do not lie between 0 and 1, such as "
            f"{targets[wrong][0].item():g}. For classes take cross_entropy, for numbers "
            "squared_error"
        )


def choose_measure(measures: Mapping[str, Losses | None], name: str) -> Losses | None:
    """Return a measure by its name.

    Raises:
        LeaveoutError: There is none of that name; names those there are.
    """
    if name not in measures:
        raise LeaveoutError(f"measure: {name!r} is not one of {', '.join(measures)}")
    return measures[name]


def token_cross_entropy(
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    shift: bool = False,
    measure: str = "loss",
) -> Objective:
    """Cross-entropy of a class at every position of a sample.

    Args:
        reduction: ``mean``: a batch's loss is the mean over all its tokens, and a sample's own the
            sum over its tokens (what influence functions of language models take). ``sum``: the
            mean over samples of that sum. ``last``: the last token that counts, alone.
        ignore_index: Class of positions that do not count, padding for one.
        label_smoothing: Part of the target that is spread over all classes.
        shift: Whether position t predicts the target at t + 1, as ``transformers`` has it.
        measure: ``loss``; ``log_probability``, the sum over the positions that count; or
            ``margin``, the log odds of the geometric mean of their probabilities.
    """
    if reduction not in ("mean", "sum", "last"):
        raise LeaveoutError(f"reduction: {reduction!r} is not one of mean, sum, last")

    def places(outputs: Any) -> Tensor:
        h = logits(outputs)
        return h[:, :-1] if shift else h

    def wanted(targets: Tensor) -> Tensor:
        targets = targets[:, 1:] if shift else targets
        if reduction != "last":
            return targets
        seen = targets != ignore_index
        later = seen.flip(1).cumsum(1).flip(1)
        return targets.where(seen & (later == 1), torch.full_like(targets, ignore_index))

    def units(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        h, t = places(outputs), targets[:, 1:] if shift else targets
        check_classes(h, t, "token_cross_entropy", 3)
        return h, wanted(targets)

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h, t = units(outputs, targets)
        return _softmax_losses(h, t, None, label_smoothing, ignore_index).sum(1)

    def margin(outputs: Any, targets: Tensor) -> Tensor:
        h, t = units(outputs, targets)
        total = _softmax_losses(h, t, None, 0.0, ignore_index).sum(1)
        seen = (t != ignore_index).sum(1)
        some = seen > 0  # a sample of which nothing counts has no odds
        mean = torch.where(some, total / seen.clamp(min=1), 1.0)
        return torch.where(some, log_odds(mean), 0.0)

    def surprise(outputs: Any, targets: Tensor) -> Tensor:
        h, t = units(outputs, targets)
        return _softmax_losses(h, t, None, 0.0, ignore_index).sum(1)

    measures: dict[str, Losses | None] = {
        "loss": None,
        "margin": lambda o, t: -margin(o, t),
        "log_probability": surprise,
    }
    return Objective(
        "token_cross_entropy",
        losses,
        counts=(lambda t: (wanted(t) != ignore_index).sum(1)) if reduction == "mean" else None,
        measure=choose_measure(measures, measure),
        margin=margin,
        likelihood=Likelihood(
            SOFTMAX,
            places,
            lambda h, t: _softmax_mass(wanted(t), h, None, label_smoothing, ignore_index),
        ),
        check=lambda t: check_values(t, "token_cross_entropy", ignore_index),
    )


def _aligned(outputs: Any, targets: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return predictions and targets of one shape, (samples, ...); one number may stand alone."""
    h = logits(outputs)
    if h.shape[1:] == (1,) and targets.dim() == 1:
        targets = targets[:, None]
    elif h.dim() == 1 and targets.shape[1:] == (1,):
        targets = targets[:, 0]
    if h.shape != targets.shape:
        raise LeaveoutError(
            f"{name}: expected targets of the outputs' shape {tuple(h.shape)}, got "
            f"{tuple(targets.shape)}"
        )
    return h, targets.to(h)


def squared_error() -> Objective:
    """Half the squared distance of outputs and targets, summed over a sample's outputs."""

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h, t = _aligned(outputs, targets, "squared_error")
        return (h - t).square().reshape(len(h), -1).sum(1) / 2

    return Objective(
        "squared_error",
        losses,
        likelihood=Likelihood(GAUSSIAN, logits, lambda h, t: torch.ones_like(h)),
    )


def binary_cross_entropy(pos_weight: float = 1.0, measure: str = "loss") -> Objective:
    """Cross-entropy of one logit a sample and targets 0 or 1, (samples,) or (samples, 1).

    Args:
        pos_weight: Weight of targets 1.
        measure: ``loss``, ``margin`` (log odds) or ``log_probability`` of the target.
    """
    objective = multi_label(pos_weight)

    def sides(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        h, t = _aligned(outputs, targets, "binary_cross_entropy")
        if h.numel() != len(h):
            raise LeaveoutError(
                f"binary_cross_entropy: expected one logit a sample, got outputs {tuple(h.shape)}; "
                "for several labels take multi_label"
            )
        return h.reshape(-1), t.reshape(-1)

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        h, t = sides(outputs, targets)
        return objective.losses(h, t)

    def margin(outputs: Any, targets: Tensor) -> Tensor:
        h, t = sides(outputs, targets)
        return h * (2 * t - 1)

    measures: dict[str, Losses | None] = {
        "loss": None,
        "margin": lambda o, t: -margin(o, t),
        "log_probability": lambda o, t: _bernoulli_losses(*sides(o, t)),
    }
    return Objective(
        "binary_cross_entropy",
        losses,
        measure=choose_measure(measures, measure),
        margin=margin,
        classes=lambda t: t.reshape(-1).round().long(),
        likelihood=objective.likelihood,
        check=lambda t: check_truths(t, "binary_cross_entropy"),
    )


def _bernoulli_losses(h: Tensor, t: Tensor, pos_weight: float = 1.0) -> Tensor:
    weight = None if pos_weight == 1 else torch.tensor(pos_weight).to(h)
    found = functional.binary_cross_entropy_with_logits(h, t, reduction="none", pos_weight=weight)
    return found.reshape(len(h), -1).sum(1)


def multi_label(pos_weight: float = 1.0, measure: str = "loss") -> Objective:
    """Cross-entropy of labels that each hold or not, summed over a sample's labels.

    Args:
        pos_weight: Weight of targets 1.
        measure: ``loss``; ``log_probability``, the sum over labels; or ``margin``, the log odds of
            the geometric mean of their probabilities.
    """

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        return _bernoulli_losses(*_aligned(outputs, targets, "multi_label"), pos_weight)

    def mass(h: Tensor, targets: Tensor) -> Tensor:
        t = targets.reshape(h.shape).to(h)
        return 1 + (pos_weight - 1) * t

    def margin(outputs: Any, targets: Tensor) -> Tensor:
        h, t = _aligned(outputs, targets, "multi_label")
        found = functional.binary_cross_entropy_with_logits(h, t, reduction="none")
        return log_odds(found.reshape(len(h), -1).mean(1))

    measures: dict[str, Losses | None] = {
        "loss": None,
        "margin": lambda o, t: -margin(o, t),
        "log_probability": lambda o, t: _bernoulli_losses(*_aligned(o, t, "multi_label")),
    }
    return Objective(
        "multi_label",
        losses,
        measure=choose_measure(measures, measure),
        margin=margin,
        likelihood=Likelihood(BERNOULLI, logits, mass),
        check=lambda t: check_truths(t, "multi_label"),
    )


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "cross_entropy": cross_entropy,
    "token_cross_entropy": token_cross_entropy,
    "squared_error": squared_error,
    "binary_cross_entropy": binary_cross_entropy,
    "multi_label": multi_label,
}

CROSS_ENTROPY = cross_entropy()
"""Plain cross-entropy, the mean over samples."""
