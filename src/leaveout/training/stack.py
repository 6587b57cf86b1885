"""Stacks of linear layers: many multi-layer perceptrons trained at once, gradients written by hand.

All models are one tensor with a leading model dimension. Activations are kept feature-major,
(models, features, samples): the matrix products then run at the machine's rate even for ten
outputs, and the softmax reduces over a strided dimension, which vectorises (over a contiguous
dimension of ten it costs as much as the layer itself).

Two kinds of step:

- *separate*: every model sees its own batch; the first layer is a batched product over gathered
  inputs.
- *shared*: all models see the same window of one order, but for a few samples that some of them
  leave out (paired leave-one-out); the first layer of all models is one matrix product, and a
  weight of zero takes a sample out of one model's mean.

Both compute what :func:`leaveout.training.reference.train_one` computes, to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.problem.samples import Samples
from leaveout.training.dropout import MaskStreams, Site
from leaveout.training.transfer import to_device
from leaveout.training.trials import Index, Trial, epoch_order, padded_rows

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A linear layer and what follows it.

    Attributes:
        name: Its name in the module, the prefix of its parameters.
        width: Number of outputs.
        hidden: Whether a ReLU follows.
        dropout: Probability of the dropout that follows the ReLU, 0 if none does.
    """

    name: str
    width: int
    hidden: bool
    dropout: float


def parse(module: nn.Module) -> list[Layer] | None:
    """Read a module as a stack of linear layers.

    Args:
        module: Any module.

    Returns:
        Its layers, or None if it is anything but ``[Flatten] (Linear ReLU [Dropout])* Linear``, all
        with bias.
    """
    if not isinstance(module, nn.Sequential):
        return None
    children = list(module._modules.items())  # named_children() would leave repeated ones out
    kinds = ""
    for _, child in children:
        letter = {nn.Flatten: "F", nn.Linear: "L", nn.ReLU: "R", nn.Dropout: "D"}.get(type(child))
        if letter is None or (isinstance(child, nn.Linear) and child.bias is None):
            return None
        kinds += letter
    once = [id(child) for _, child in children if not isinstance(child, nn.ReLU)]
    if not re.fullmatch("F?(LRD?)*L", kinds) or len(set(once)) < len(once):
        return None
    layers = []
    named = [(name, child) for name, child in children if type(child) is not nn.Flatten]
    for position, (name, child) in enumerate(named):
        if isinstance(child, nn.Linear):
            following = [c for _, c in named[position + 1 : position + 3]]
            dropout = (
                following[1].p
                if len(following) == 2 and isinstance(following[1], nn.Dropout)
                else 0.0
            )
            layers.append(Layer(name, child.out_features, bool(following), dropout))
    return layers


def stack_of(module: nn.Module, samples: Samples) -> list[Layer] | None:
    """Read a module as a stack whose loss the hand-written ways know: plain cross-entropy.

    Returns:
        The layers, or None where the module, the objective or the form of the samples is another.
    """
    inputs = samples.inputs
    if not samples.objective.plain or not isinstance(inputs, Tensor):
        return None
    if any(p.dtype != inputs.dtype for p in module.parameters()):
        return None
    return parse(module)


def trains(module: nn.Module, samples: Samples, recipe: Recipe) -> bool:
    """Return whether :func:`train_stack` knows a module, its samples and a recipe."""
    plain = recipe.optimizer == "sgd" and not recipe.nesterov and recipe.decay == "all"
    constant = recipe.schedule == "constant" and not recipe.warmup and recipe.clip is None
    return (
        (plain and constant and recipe.iterations is None)
        and all(p.requires_grad for p in module.parameters())
        and stack_of(module, samples) is not None
    )


def stack_outputs(layers: Sequence[Layer], state: State, inputs: Tensor) -> Tensor:
    """Return the outputs of every model on the same samples, without dropout.

    Args:
        layers: From :func:`parse`.
        state: Stacked parameters, (models, ...).
        inputs: Samples, (samples, ...); flattened here.

    Returns:
        (models, samples, outputs).
    """
    flat = inputs.flatten(1)
    first = state[f"{layers[0].name}.weight"]
    values = (first.flatten(0, 1) @ flat.T).view(len(first), -1, len(flat))
    for number, layer in enumerate(layers):
        if number > 0:
            values = torch.bmm(state[f"{layer.name}.weight"], values)
        values += state[f"{layer.name}.bias"][:, :, None]
        if layer.hidden:
            values.relu_()
    return values.transpose(1, 2)


@dataclass
class _Step:
    """One step of all models.

    Attributes:
        inputs: (samples, features) when shared, otherwise (models, samples, features).
        labels: (1 or models, samples).
        weights: Weight of each sample in its model's mean, (models, samples).
        idle: Models that see nothing in this step, or None.
        masks: For each dropout layer 1 / (1 - p) where a unit is kept, else 0, (1 or models, units,
            samples).
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    idle: Tensor | None
    masks: list[Tensor]


def shared_window(trials: Sequence[Trial], n: int, batch_size: int) -> int | None:
    """Return how much longer than a batch a window all trials share must be, or None."""
    if len({trial.order_identity() for trial in trials}) > 1:
        return None
    left_out = max(n - len(trial.kept) if trial.kept is not None else 0 for trial in trials)
    return left_out if left_out <= batch_size // 4 else None


def _weights(member: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / count for members and 0 for others; (..., samples)."""
    return member.to(dtype) / member.sum(dim=-1, keepdim=True).clamp_(min=1)


class _Batches:
    """The steps of a stack, epoch by epoch."""

    def __init__(
        self,
        trials: Sequence[Trial],
        inputs: Tensor,
        labels: Tensor,
        batch_size: int,
        dropouts: Sequence[Site],
        dtype: torch.dtype,
    ) -> None:
        self.trials = trials
        self.inputs = inputs.flatten(1).contiguous().to(dtype)
        self.labels = labels
        self.weight_dtype = inputs.dtype
        self.batch_size = batch_size
        self.dropouts = dropouts
        self.extra = shared_window(trials, len(inputs), batch_size)
        # trials of one identity and length draw the same masks: one stream then serves them all
        same = (
            len({(t.root, t.identity, None if t.kept is None else len(t.kept)) for t in trials})
            == 1
        )
        streams = [t.dropout_generator() for t in (trials[:1] if same else trials)]
        self.streams = MaskStreams(streams, dropouts, inputs.device) if dropouts else None
        # (model, sample) of what a model drops from the order, and of what leaves a hole
        shared = trials if self.extra is not None else []
        self.dropped = _pairs([_complement(t.kept, len(inputs)) for t in shared])
        self.removed = _pairs([[] if t.removed is None else [t.removed] for t in trials])

    def epoch(self, epoch: int) -> Iterator[_Step]:
        """Yield the steps of one epoch."""
        return self._separate(epoch) if self.extra is None else self._shared(epoch, self.extra)

    def _separate(self, epoch: int) -> Iterator[_Step]:
        n = len(self.inputs)
        rows = padded_rows(self.trials, n, epoch, self.batch_size)
        steps = rows.shape[1]
        lengths = (rows != -2).sum(axis=2)
        idle: NDArray[np.bool_] = np.logical_not((rows >= 0).any(axis=2))
        index = to_device(rows, self.inputs.device)
        weights = _weights(index >= 0, self.weight_dtype)
        index.clamp_(min=0)
        models = len(rows)
        # one buffer for all steps: a fresh one each time costs more in page faults than the copy
        buffer = self.inputs.new_empty((models * self.batch_size, self.inputs.shape[1]))
        for step in range(steps):
            width = int(lengths[:, step].max())
            batch = index[:, step, :width]
            flat = batch.reshape(-1)
            gathered = buffer[: len(flat)]
            torch.index_select(self.inputs, 0, flat, out=gathered)
            still = idle[:, step].nonzero()[0]
            yield _Step(
                gathered.view(models, width, -1),
                self.labels.index_select(0, flat).view(models, width),
                weights[:, step, :width],
                to_device(still, self.inputs.device) if len(still) else None,
                self._masks(lengths[:, step], width, None),
            )

    def _shared(self, epoch: int, extra: int) -> Iterator[_Step]:
        n, size = len(self.inputs), self.batch_size
        order = epoch_order(self.trials[0], n, epoch)
        mine = self._places(order)
        step_of = torch.div(mine, size, rounding_mode="floor")  # -1 -> -1: in no step
        step_of = step_of.expand(len(self.trials), n).contiguous()
        if len(self.removed):
            step_of[self._at(self.removed, order)] = -1
        lengths = n - np.bincount(self.dropped[:, 0], minlength=len(self.trials))
        steps = -(-int(lengths.max()) // size)
        on_device = to_device(order, self.inputs.device)
        for step in range(steps):
            window = slice(step * size, min(n, (step + 1) * size + extra))
            member = step_of[:, window] == step
            # only a row of one, or none, can leave a model with nothing to see; to ask the device
            # every time would make it wait
            idle = None
            if lengths.min() - step * size <= 1:
                still = member.any(dim=1).logical_not_().nonzero()[:, 0]
                idle = still if len(still) else None
            batch = on_device[window]
            yield _Step(
                self.inputs.index_select(0, batch),
                self.labels.index_select(0, batch)[None],
                _weights(member, self.weight_dtype),
                idle,
                self._masks(
                    np.clip(lengths - step * size, 0, size),
                    len(batch),
                    mine[:, window] % size if extra and self.dropouts else None,
                ),
            )

    def _at(self, pairs: Index, order: Index) -> tuple[Tensor, Tensor]:
        """Return (model, sample) pairs as an index into (models, places in the common order)."""
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        device = self.inputs.device
        return to_device(pairs[:, 0], device), to_device(place[pairs[:, 1]], device)

    def _places(self, order: Index) -> Tensor:
        """Return where in each model's own order the samples of the common order stand.

        Returns:
            (models, samples), -1 for what a model drops; (1, samples) if none drops anything.
        """
        n = len(order)
        common = torch.arange(n, dtype=torch.int32, device=self.inputs.device)[None]
        if not len(self.dropped):
            return common
        gone = common.new_zeros((len(self.trials), n), dtype=torch.bool)
        gone[self._at(self.dropped, order)] = True
        # later samples move up by one place each
        return (common - gone.cumsum(dim=1, dtype=torch.int32)).masked_fill_(gone, -1)

    def _masks(self, lengths: Index, width: int, place: Tensor | None) -> list[Tensor]:
        """Draw a step's masks.

        Args:
            lengths: Samples in each model's row, holes included, (models,).
            width: Samples in the step's arrays.
            place: Which position of its row a model's sample has, (models, width); None if it is
                the sample's own.
        """
        if self.streams is None:
            return []
        streams = len(self.streams.streams)
        masks = []
        drawn = self.streams.draw(lengths[:streams], self.batch_size)
        for rows, (_, probability, _) in zip(drawn, self.dropouts, strict=True):
            # beyond the end of a row lie padding and the next batch, whose weight is 0
            if place is None:
                chosen = rows[:, :width]
            elif streams == 1:
                chosen = rows[0][place]
            else:
                chosen = torch.take_along_dim(rows, place[:, :, None].long(), dim=1)
            # laid out as the activations: multiplying by a transposed mask takes five times as long
            kept = chosen.transpose(1, 2)
            kept = kept.to(self.inputs.dtype, memory_format=torch.contiguous_format)
            masks.append(kept / (1 - probability))
        return masks


def _complement(kept: Index | None, n: int) -> Index:
    gone = np.full(n, kept is not None)
    if kept is not None:
        gone[kept] = False
    return np.flatnonzero(gone)


def _pairs(lists: Sequence[Sequence[int] | Index]) -> Index:
    """Return (number of the list, item) of every item of some lists, (items, 2)."""
    if not lists:
        return np.zeros((0, 2), dtype=np.int64)
    numbers = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return np.stack([numbers, np.concatenate([np.array(x, np.int64) for x in lists])], axis=1)


class _Optimizer:
    """Stochastic gradient descent on stacked tensors, as torch.optim.SGD defines it.

    Gradients come as factors and are never formed where the update can take them as a matrix
    product.
    """

    def __init__(self, recipe: Recipe, parameters: Sequence[Tensor]) -> None:
        self.rate = recipe.learning_rate
        self.momentum = recipe.momentum
        self.decay = recipe.weight_decay
        self.buffers = {id(p): torch.zeros_like(p) for p in parameters} if self.momentum else {}

    def step_product(self, weight: Tensor, left: Tensor, right: Tensor) -> None:
        """Step along the gradient ``left @ right``; matrices, or batches of them."""
        product = weight.baddbmm_ if weight.dim() == 3 else weight.addmm_
        if left.dtype != weight.dtype:  # products in bfloat16, weights in float32
            self.step(weight, (left @ right).to(weight.dtype))
            return
        if not self.momentum:
            product(left, right, beta=1 - self.rate * self.decay, alpha=-self.rate)
            return
        buffer = self.buffers[id(weight)]
        accumulate = buffer.baddbmm_ if weight.dim() == 3 else buffer.addmm_
        accumulate(left, right, beta=self.momentum)
        self._step_buffer(weight, buffer)

    def step(self, weight: Tensor, gradient: Tensor) -> None:
        """Step along a gradient."""
        if not self.momentum:
            weight.mul_(1 - self.rate * self.decay).sub_(gradient, alpha=self.rate)
            return
        buffer = self.buffers[id(weight)]
        buffer.mul_(self.momentum).add_(gradient)
        self._step_buffer(weight, buffer)

    def _step_buffer(self, weight: Tensor, buffer: Tensor) -> None:
        if self.decay:
            buffer.add_(weight, alpha=self.decay)
        weight.sub_(buffer, alpha=self.rate)


def train_stack(
    layers: Sequence[Layer],
    state: State,
    trials: Sequence[Trial],
    samples: Samples,
    recipe: Recipe,
    snapshot_epochs: Collection[int] = (),
) -> list[State]:
    """Train many stacks of linear layers at once, by what :func:`trains` allows.

    ``layers`` are those of :func:`parse`. The other arguments, and what is returned, are those of
    :func:`leaveout.training.functional.train_functional`.
    """
    dropouts = [Site((layer.width,), layer.dropout) for layer in layers if layer.dropout]
    inputs = samples.inputs
    dtype = torch.bfloat16 if recipe.precision == "bfloat16" else inputs.dtype
    batches = _Batches(trials, inputs, samples.targets, recipe.batch_size, dropouts, dtype)
    weights = [state[f"{layer.name}.weight"] for layer in layers]
    biases = [state[f"{layer.name}.bias"] for layer in layers]
    shared = batches.extra is not None
    if shared:
        weights[0] = weights[0].flatten(0, 1)  # a view: one matrix for all models
    optimizer = _Optimizer(recipe, [*weights, *biases])
    assert recipe.epochs is not None
    kept_epochs = {*snapshot_epochs, recipe.epochs}
    snapshots = []
    for epoch in range(recipe.epochs):
        for step in batches.epoch(epoch):
            saved = _save(step.idle, [*state.values()], optimizer)
            _train_step(layers, weights, biases, optimizer, step, shared, len(trials))
            _restore(step.idle, [*state.values()], optimizer, saved)
        if epoch + 1 in kept_epochs:
            snapshots.append({name: value.clone() for name, value in state.items()})
    return snapshots


def _save(idle: Tensor | None, tensors: list[Tensor], optimizer: _Optimizer) -> list[Tensor]:
    """Copy what idle models must keep through a step: momentum and weight decay would move them."""
    if idle is None:
        return []
    return [tensor[idle] for tensor in [*tensors, *_buffers(optimizer, tensors)]]


def _restore(
    idle: Tensor | None, tensors: list[Tensor], optimizer: _Optimizer, saved: list[Tensor]
) -> None:
    if idle is not None:
        for tensor, old in zip([*tensors, *_buffers(optimizer, tensors)], saved, strict=True):
            tensor[idle] = old


def _buffers(optimizer: _Optimizer, tensors: list[Tensor]) -> list[Tensor]:
    """Return the momentum buffers with a leading model dimension."""
    models = len(tensors[0])
    return [b.view(models, -1) for b in optimizer.buffers.values()]


def _train_step(
    layers: Sequence[Layer],
    weights: list[Tensor],
    biases: list[Tensor],
    optimizer: _Optimizer,
    step: _Step,
    shared: bool,
    models: int,
) -> None:
    """Forward, backward and update; activations are (models, features, samples).

    In bfloat16 what autocast would do: the operands of products are rounded, and so are activations
    and their gradients; softmax, weights and their updates stay in float32.
    """
    masks = iter(step.masks)
    dtype = step.inputs.dtype
    # the same tensors unless the products are in bfloat16
    rounded = [weight.to(dtype) for weight in weights]
    offsets = [bias[:, :, None].to(dtype) for bias in biases]
    if shared:
        samples = len(step.inputs)
        values = torch.mm(rounded[0], step.inputs.T).view(models, -1, samples)
        values += offsets[0]
    else:
        values = torch.baddbmm(offsets[0], rounded[0], step.inputs.transpose(1, 2))
    activations = []
    for number, layer in enumerate(layers):
        if number > 0:
            values = torch.baddbmm(offsets[number], rounded[number], values)
        if layer.hidden:
            values.relu_()
            if layer.dropout:
                values *= next(masks)
            activations.append(values)
    # d loss / d logits of a weighted mean of cross-entropies
    delta = torch.softmax(values.to(step.weights.dtype), dim=1)
    labels = step.labels.expand(models, -1)[:, None, :]
    delta.scatter_add_(1, labels, delta.new_full((1, 1, 1), -1.0).expand(labels.shape))
    delta = delta.mul_(step.weights[:, None, :]).to(dtype)
    for number in reversed(range(len(layers))):
        if number > 0:
            below = activations[number - 1]
            back = torch.bmm(rounded[number].transpose(1, 2), delta)
            # zero where the ReLU or the dropout was; elsewhere the dropout's scale
            back = torch.ops.aten.threshold_backward(back, below, 0)
            if layers[number - 1].dropout:
                back /= 1 - layers[number - 1].dropout
            optimizer.step_product(weights[number], delta, below.transpose(1, 2))
        elif shared:
            optimizer.step_product(weights[0], delta.view(-1, delta.shape[2]), step.inputs)
        else:
            optimizer.step_product(weights[0], delta, step.inputs)
        optimizer.step(biases[number], delta.sum(dim=2, dtype=step.weights.dtype))
        if number > 0:
            delta = back
