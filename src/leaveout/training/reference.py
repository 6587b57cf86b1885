"""One model at a time: the plain loop that every faster path is tested against.

It uses torch's own modules and ``torch.optim.SGD``; only dropout is replaced, see
:mod:`leaveout.training.dropout`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from leaveout.config import Recipe
from leaveout.training.dropout import StreamDropout, draw_masks, use_streams
from leaveout.training.losses import sample_losses
from leaveout.training.precision import forward_precision
from leaveout.training.trials import Index, Trial, epoch_rows

State = dict[str, Tensor]


def train_one(
    module: nn.Module,
    trial: Trial,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    snapshot_epochs: Collection[int] = (),
) -> list[State]:
    """Train one model.

    Args:
        module: Freshly initialised, on the device of ``inputs``; trained in place.
        trial: Which samples, order and dropout masks.
        inputs: Training inputs, (samples, ...).
        labels: Training labels, (samples,).
        recipe: Optimiser and sizes.
        snapshot_epochs: After which epochs, counted from 1, the state is kept; the last epoch
            always is.

    Returns:
        State dicts at ``snapshot_epochs`` and at the end, in order.
    """
    dropouts = use_streams(module, inputs[:1])
    stream = trial.dropout_generator()
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    kept_epochs = {*snapshot_epochs, recipe.epochs}
    snapshots = []
    module.train()
    for epoch in range(recipe.epochs):
        rows = epoch_rows(trial, len(inputs), epoch, recipe.batch_size)
        for batch, masks in draw_steps(rows, stream, dropouts, inputs.device):
            for layer, mask in zip(dropouts, masks, strict=True):
                layer.mask = mask
            optimizer.zero_grad()
            with forward_precision(recipe, inputs.device):
                outputs = module(inputs[batch])
            sample_losses(outputs.to(inputs.dtype), labels[batch]).mean().backward()
            optimizer.step()
        if epoch + 1 in kept_epochs:
            # contiguous, whatever memory format the module is trained in
            snapshots.append(
                {
                    k: v.detach().clone(memory_format=torch.contiguous_format)
                    for k, v in module.state_dict().items()
                }
            )
    return snapshots


def draw_steps(
    rows: Index, stream: np.random.Generator, dropouts: list[StreamDropout], device: torch.device
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Draw the masks of one epoch's steps.

    Masks are drawn for holes, too, so that a removed sample changes nobody else's masks.

    Args:
        rows: From :func:`leaveout.training.trials.epoch_rows`.
        stream: The trial's dropout generator.
        dropouts: From :func:`leaveout.training.dropout.use_streams`.
        device: Where the samples are.

    Yields:
        Positions of a step's samples, (samples,), and for each dropout layer the units kept,
        (samples, *units). Where the removed sample was alone in its batch there is no step.
    """
    layers = [(layer.unit_shape, layer.probability) for layer in dropouts]
    for row in rows:
        places = row[row != -2]
        stays = places != -1
        masks = draw_masks(stream, len(places), layers)
        if stays.any():
            yield (
                torch.from_numpy(places[stays]).to(device),
                [torch.from_numpy(mask[stays]).to(device) for mask in masks],
            )
