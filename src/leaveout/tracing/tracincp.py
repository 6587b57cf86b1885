"""TracInCP of a user's model: influence, self-influence, proponents and opponents, embeddings.

Paper: Pruthi et al. 2020, Estimating Training Data Influence by Tracing Gradient Descent,
arXiv:2002.08484.
Formula: score[j, i] = sum over checkpoints c of lr_c <g_i(c), g_j(c)>, g the gradient of a sample's
loss in the parameters of the chosen layers; positive where training on i lowers the loss of j.

The interface is the one that captum's users know (``captum.influence``); docs/peers.md says what
is different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from leaveout.errors import LeaveoutError
from leaveout.gradients import projection_of_factors
from leaveout.gradients.factors import Factor
from leaveout.gradients.parts import (
    Chosen,
    Losses,
    choose,
    dots,
    fit,
    form_parts,
    gradient_parts,
    squared_norms,
)
from leaveout.gradients.per_sample import CHUNK_BYTES
from leaveout.gradients.rules import Formed, Part
from leaveout.problem.trees import rows, tensors
from leaveout.tracing.batches import Batch, as_batches, per_sample, placed
from leaveout.tracing.checkpoints import (
    Load,
    borrowed,
    list_checkpoints,
    load_checkpoint,
    load_with,
)
from leaveout.tracing.layers import chosen_parameters, linear_layer_name
from leaveout.tracing.most import KMostInfluentialResults, most_influential
from leaveout.tracing.waiting import Waiting, sees_samples
from leaveout.training.stack import parse

GROUP_BYTES = 256 << 20
"""Training batches, and scores of them, held while the checkpoints are gone through, at most."""

HELD_BYTES = 512 << 20
"""Gradients of test samples held at once, at most."""

LossFunction = Callable[..., Tensor]


class TracInCP:
    """Influence of training samples on the loss of others, traced over checkpoints.

    Attributes are the arguments of the constructor. Every method loads the checkpoints one after
    the other into the model, computes in evaluation mode, and leaves the model as it was. Scores do
    not depend on how data are cut into batches, beyond rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Dataset[Any] | DataLoader[Any],
        checkpoints: str | Path | Iterable[Any],
        checkpoints_load_func: Load = load_checkpoint,
        layers: Sequence[str] | None = None,
        loss_fn: LossFunction | None = None,
        batch_size: int = 512,
        test_loss_fn: LossFunction | None = None,
        shared: Sequence[int] = (),
    ) -> None:
        """Prepare the tracing; nothing is computed yet.

        Args:
            model: The module that the checkpoints are of.
            train_dataset: Training samples. Batches are tuples, the last item targets:
                ``loss_fn(model(*batch[:-1]), batch[-1])``.
            checkpoints: A folder of files, or whatever ``checkpoints_load_func`` takes: a list of
                paths, an iterator of state dicts.
            checkpoints_load_func: Loads a checkpoint into the model and returns the learning rate.
            layers: Names of the modules (or parameters) whose gradients count; by default all
                parameters that require a gradient.
            loss_fn: The loss. Scores are the same whether it returns a loss a sample, their mean or
                their sum. With class weights, or tokens that are ignored, the scores of torch's own
                losses with ``reduction="mean"`` are proportional to those of the sum. None if the
                model returns losses itself.
            batch_size: Samples at once, where ``train_dataset`` is a ``Dataset``.
            test_loss_fn: Another loss, of the samples whose loss is influenced.
            shared: Positions, in a batch, of arguments that all samples share, such as a mask over
                positions; all other tensors have a row a sample.

        Raises:
            LeaveoutError: An argument is not usable; the message says which.
        """
        self.model = model
        self.train_dataset = train_dataset
        self.checkpoints = list_checkpoints(checkpoints)
        self.checkpoints_load_func = checkpoints_load_func
        self.layers = layers
        self.loss_fn = loss_fn
        self.batch_size = batch_size
        self.test_loss_fn = loss_fn if test_loss_fn is None else test_loss_fn
        self.shared = [*shared]
        self._parameters = chosen_parameters(model, layers)
        self._train = as_batches(train_dataset, batch_size, "train_dataset")
        self._losses = per_sample(loss_fn, "loss_fn")
        self._test_losses = per_sample(self.test_loss_fn, "test_loss_fn")

    def influence(
        self,
        inputs: Batch | DataLoader[Any],
        k: int | None = None,
        proponents: bool = True,
        show_progress: bool = False,
        aggregate: bool = False,
    ) -> Tensor | KMostInfluentialResults:
        """Return the influence of the training samples on the loss of others.

        Args:
            inputs: Test samples: a batch, or a loader of batches.
            k: Return only the k most influential training samples for each test sample.
            proponents: Whether these are the ones that help most; else those that harm most.
            show_progress: Whether to show it on stderr.
            aggregate: Whether to sum over the test samples, which makes one row of them.

        Returns:
            Scores (test, train); with ``k`` indices and scores, (test, k) each, found without ever
            holding all scores.
        """
        with borrowed(self.model):
            blocks = self._scores(self._tests(inputs), show_progress)
            if aggregate:
                blocks = (block.sum(0, keepdim=True) for block in blocks)
            if k is not None:
                return most_influential(blocks, k, proponents)
            return torch.cat(list(blocks), dim=1)

    def self_influence(
        self, inputs: Batch | DataLoader[Any] | None = None, show_progress: bool = False
    ) -> Tensor:
        """Return the influence of each sample on its own loss, (samples,).

        Args:
            inputs: A batch or a loader; the training samples by default.
            show_progress: Whether to show it on stderr.
        """
        with borrowed(self.model):
            groups = self._groups(self._given(inputs), 1, show_progress)
            return torch.cat([self._squared_norms(group, bar) for group, bar in groups])

    def embeddings(
        self,
        inputs: Batch | DataLoader[Any] | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Return a vector a sample whose inner products are the influences.

        It stacks sqrt(lr_c) g(c) over checkpoints, so that what finds the largest inner products
        finds proponents. captum's users know it as ``compute_intermediate_quantities``.

        Args:
            inputs: A batch or a loader, whose loss is ``test_loss_fn``; the training samples by
                default.
            show_progress: Whether to show it on stderr.

        Returns:
            (samples, checkpoints x numbers of a gradient). All parameters of a model of any size
            make vectors of that size: choose layers, or ``TracInCPFastRandProj``.
        """
        with borrowed(self.model):
            return self._embed(inputs, show_progress)

    # how a sample is seen at a checkpoint; the random projection has another view

    def _view(self, checkpoint: int, parts: list[Part]) -> list[Part]:
        return parts

    # what all of them are made of

    def _embed(self, inputs: Batch | DataLoader[Any] | None, show_progress: bool) -> Tensor:
        losses = self._losses if inputs is None else self._test_losses
        found = []
        for group, bar in self._groups(self._given(inputs), 1, show_progress):
            columns = []
            for number, rate, chosen, formed in self._loaded((group[0], losses)):
                rooted = [
                    form_parts(self._view(number, parts)) * rate**0.5
                    for batch in group
                    for _, parts in self._gradients(batch, chosen, formed, losses, bar)
                ]
                columns.append(torch.cat(rooted))
            found.append(torch.cat(columns, dim=1))
        return torch.cat(found)

    def _scores(self, tests: list[Batch], show_progress: bool) -> Iterator[Tensor]:
        """Yield scores (test, some training samples) of consecutive groups of batches."""
        n_test = sum(len(tensors(batch)[0]) for batch in tests)
        for group, bar in self._groups(self._train, n_test, show_progress):
            scores, waiting = None, Waiting()
            tried = (group[0], self._losses), (tests[0], self._test_losses)
            for number, rate, chosen, formed in self._loaded(*tried):
                for held in self._held(tests, number, chosen, formed):
                    column = 0
                    for batch in group:
                        first = bar if held[0][0] == 0 else None
                        for n, parts in self._gradients(batch, chosen, formed, self._losses, first):
                            view = self._view(number, parts)
                            if scores is None:
                                width = sum(len(tensors(b)[0]) for b in group)
                                scores = _new_scores(view[0], n_test, width)
                            own = [sees_samples(part, batch) for part in view]
                            for row, other, others_own in held:
                                now = []
                                for a, b, *fixed in zip(other, view, others_own, own, strict=True):
                                    if all(fixed):
                                        assert isinstance(a, Factor)
                                        assert isinstance(b, Factor)
                                        waiting.add((row, column), rate, a, b)
                                    else:
                                        now.append((a, b))
                                if now:
                                    found = dots(*zip(*now, strict=True))
                                    place = scores[row : row + len(found), column : column + n]
                                    place.add_(found, alpha=rate)
                            column += n
                            if waiting.taken > HELD_BYTES:
                                waiting.add_to(scores)
            assert scores is not None
            waiting.add_to(scores)
            yield scores

    def _squared_norms(self, group: list[Batch], bar: tqdm[Any]) -> Tensor:
        """Sum the squared norms of gradients over checkpoints, (samples,)."""
        total: Tensor | None = None
        for _, rate, chosen, formed in self._loaded((group[0], self._losses)):
            found = [
                squared_norms(parts)
                for batch in group
                for _, parts in self._gradients(batch, chosen, formed, self._losses, bar)
            ]
            values = torch.cat(found).mul_(rate)
            total = values if total is None else total.add_(values)
        assert total is not None
        return total

    def _loaded(self, *tried: tuple[Batch, Losses]) -> Iterator[tuple[int, float, Chosen, int]]:
        """Load one checkpoint after the other.

        Args:
            *tried: Samples, and their loss, that show how to differentiate.

        Yields:
            Its number, its learning rate, how to differentiate, and the numbers that are formed.
        """
        for number, checkpoint in enumerate(self.checkpoints):
            rate = load_with(self.checkpoints_load_func, self.model, checkpoint)
            # a use of a weight that adds 0 at one checkpoint may add more at the next
            if number == 0 or parse(self.model) is None:
                chosen = choose(self.model, self._parameters)
                formed = max(fit(self.model, chosen, losses, batch) for batch, losses in tried)
            yield number, rate, chosen, formed

    def _gradients(
        self, batch: Batch, chosen: Chosen, formed: int, losses: Losses, bar: tqdm[Any] | None
    ) -> Iterator[tuple[int, list[Part]]]:
        """Yield gradients of consecutive samples, forming at most ``CHUNK_BYTES`` at once."""
        count = len(tensors(batch)[0])
        size = max(1, CHUNK_BYTES // (4 * formed)) if formed else count
        for start in range(0, count, size):
            part = rows(batch, slice(start, start + size)) if size < count else batch
            yield min(size, count - start), gradient_parts(self.model, chosen, losses, part)
        if bar is not None:
            bar.update()

    def _held(
        self, tests: list[Batch], number: int, chosen: Chosen, formed: int
    ) -> Iterator[list[tuple[int, list[Part], list[bool]]]]:
        """Yield gradients of test samples, as many as can be held.

        Yields:
            The first one's row, the parts, and for each whether its layer sees the samples.
        """
        held: list[tuple[int, list[Part], list[bool]]] = []
        row = taken = 0
        for batch in tests:
            for n, parts in self._gradients(batch, chosen, formed, self._test_losses, None):
                view = self._view(number, parts)
                size = sum(_bytes(part) for part in view)
                if held and taken + size > HELD_BYTES:
                    yield held
                    held, taken = [], 0
                held.append((row, view, [sees_samples(part, batch) for part in view]))
                row, taken = row + n, taken + size
        yield held

    def _groups(
        self, batches: Iterable[Any], n_scores: int, show_progress: bool
    ) -> Iterator[tuple[list[Batch], tqdm[Any]]]:
        """Go through batches once, in groups for which each checkpoint is loaded once."""
        device = self._device()
        try:
            total = len(batches) * len(self.checkpoints)  # type: ignore[arg-type]
        except TypeError:
            total = None
        with tqdm(
            total=total, desc=type(self).__name__, unit="batch", disable=not show_progress
        ) as bar:
            group: list[Batch] = []
            taken = 0
            for given in batches:
                batch, n = placed(given, device, "train_dataset", self.shared)
                size = n * n_scores * 4
                size += sum(value.numel() * value.element_size() for value in tensors(batch))
                if group and taken + size > GROUP_BYTES:
                    yield group, bar
                    group, taken = [], 0
                group.append(batch)
                taken += size
            if group:
                yield group, bar

    def _given(self, inputs: Batch | DataLoader[Any] | None) -> Iterable[Any]:
        return self._train if inputs is None else self._tests(inputs)

    def _tests(self, inputs: Batch | DataLoader[Any]) -> list[Batch]:
        given = as_batches(inputs, 0, "inputs") if isinstance(inputs, DataLoader) else [inputs]
        found = [placed(batch, self._device(), "inputs", self.shared)[0] for batch in given]
        if not found:
            raise LeaveoutError("inputs: the loader is empty")
        return found

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


class TracInCPFast(TracInCP):
    """TracInCP on the last linear layer alone: no gradient goes through what comes before it."""

    def __init__(
        self,
        model: nn.Module,
        final_fc_layer: nn.Module | str,
        train_dataset: Dataset[Any] | DataLoader[Any],
        checkpoints: str | Path | Iterable[Any],
        checkpoints_load_func: Load = load_checkpoint,
        loss_fn: LossFunction | None = None,
        batch_size: int = 512,
        test_loss_fn: LossFunction | None = None,
        bias: bool = True,
        shared: Sequence[int] = (),
    ) -> None:
        """Prepare the tracing; see :class:`TracInCP`.

        Args:
            model: The module.
            final_fc_layer: Its last linear layer, or that one's name.
            train_dataset: Training samples.
            checkpoints: Checkpoints.
            checkpoints_load_func: Loads one and returns the learning rate.
            loss_fn: The loss.
            batch_size: Samples at once, where ``train_dataset`` is a ``Dataset``.
            test_loss_fn: Another loss, of the samples whose loss is influenced.
            bias: Whether the layer's bias counts. captum leaves it out.
            shared: Positions of arguments that all samples share.

        Raises:
            LeaveoutError: ``final_fc_layer`` is no linear layer of the model.
        """
        name = linear_layer_name(model, final_fc_layer)
        layer = model.get_submodule(name)
        own = ["weight", "bias"] if bias and layer.bias is not None else ["weight"]
        super().__init__(
            model,
            train_dataset,
            checkpoints,
            checkpoints_load_func,
            [f"{name}.{parameter}".removeprefix(".") for parameter in own],
            loss_fn,
            batch_size,
            test_loss_fn,
            shared,
        )
        self.final_fc_layer = name


class TracInCPFastRandProj(TracInCPFast):
    """TracInCPFast between random projections of the last layer's gradients.

    The training samples' embeddings are made when they are first needed, and kept; an influence is
    then an inner product. Both sides of d a', the gradient of a sample, are multiplied by Gaussian
    matrices, drawn anew for each checkpoint; inner products keep their expectation. Self-influence
    needs no projection, and has none.
    """

    def __init__(
        self,
        model: nn.Module,
        final_fc_layer: nn.Module | str,
        train_dataset: Dataset[Any] | DataLoader[Any],
        checkpoints: str | Path | Iterable[Any],
        checkpoints_load_func: Load = load_checkpoint,
        loss_fn: LossFunction | None = None,
        batch_size: int = 512,
        test_loss_fn: LossFunction | None = None,
        projection_dim: int | None = None,
        seed: int = 0,
        bias: bool = True,
        shared: Sequence[int] = (),
    ) -> None:
        """Prepare the tracing; see :class:`TracInCPFast`.

        Args:
            model: The module.
            final_fc_layer: Its last linear layer, or that one's name.
            train_dataset: Training samples.
            checkpoints: Checkpoints.
            checkpoints_load_func: Loads one and returns the learning rate.
            loss_fn: The loss.
            batch_size: Samples at once, where ``train_dataset`` is a ``Dataset``.
            test_loss_fn: Another loss, of the samples whose loss is influenced.
            projection_dim: Numbers kept of a sample at each checkpoint, at most; the root of it of
                either side. None projects nothing.
            seed: Of the projections.
            bias: Whether the layer's bias counts. captum leaves it out.
            shared: Positions of arguments that all samples share.
        """
        super().__init__(
            model,
            final_fc_layer,
            train_dataset,
            checkpoints,
            checkpoints_load_func,
            loss_fn,
            batch_size,
            test_loss_fn,
            bias,
            shared,
        )
        self.projection_dim = projection_dim
        self.seed = seed
        self._train_embeddings: Tensor | None = None

    def _view(self, checkpoint: int, parts: list[Part]) -> list[Part]:
        (part,) = parts
        if not isinstance(part, Factor):
            raise LeaveoutError(
                f"final_fc_layer: {self.final_fc_layer} sees more than one vector a sample; use "
                "TracInCPFast"
            )
        if self.projection_dim is None:
            return parts
        return [
            Formed(
                part.name,
                projection_of_factors.project(
                    part, self.projection_dim, self.seed, "tracin", checkpoint
                ),
            )
        ]

    def _scores(self, tests: list[Batch], show_progress: bool) -> Iterator[Tensor]:
        if self._train_embeddings is None:
            self._train_embeddings = self._embed(None, show_progress)
        queries = torch.cat([self._embed(batch, False) for batch in tests])
        size = max(1, GROUP_BYTES // (4 * len(queries)))
        for block in self._train_embeddings.split(size):
            yield queries @ block.T


def _new_scores(part: Part, n_test: int, n_train: int) -> Tensor:
    values = part.values if isinstance(part, Formed) else part.deltas
    return values.new_zeros(n_test, n_train)


def _bytes(part: Part) -> int:
    tensors = [part.values] if isinstance(part, Formed) else [part.inputs, part.deltas]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
