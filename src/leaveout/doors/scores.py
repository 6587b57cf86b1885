"""Scores of training samples for test samples: the best of them, a file, their measure."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaveout.config import label
from leaveout.errors import LeaveoutError
from leaveout.metrics.evaluate import evaluate
from leaveout.store.contents import Arrays, save
from leaveout.training.progress import progress_bar


@dataclass(frozen=True)
class Truth:
    """A ground truth that scores can be measured against.

    Attributes:
        path: Its file, of the workflow's kind ``lds``, ``loo`` or ``pbrf``.
        metric: Which it is.
        setting: Name of the problem.
        seed: Root seed of the problem.
    """

    path: Path
    metric: str
    setting: str
    seed: int


@dataclass(frozen=True)
class Result:
    """How well scores agree with a ground truth.

    Attributes:
        metric: ``lds`` (Spearman over subsets), ``loo`` or ``pbrf`` (Pearson over samples).
        value: The mean over test samples; positive where the scores are right.
        low: Lower end of its 95% interval.
        high: Upper end.
        ceiling: What a predictor without error could reach, given the noise of retraining; NaN
            where one run tells nothing of it.
        note: What is to be known of the ceiling.
        n_test: Test samples.
        n_undefined: How many of them have no correlation.
    """

    metric: str
    value: float
    low: float
    high: float
    ceiling: float
    note: str
    n_test: int
    n_undefined: int

    def __str__(self) -> str:
        """Return it in a line."""
        top = f"ceiling {self.ceiling:.3f}" if self.ceiling == self.ceiling else self.note
        return (
            f"{self.metric} {self.value:.3f} (95%: {self.low:.3f} to {self.high:.3f}; {top}; "
            f"{self.n_test - self.n_undefined} of {self.n_test} test samples)"
        )


@dataclass(frozen=True)
class Scores:
    """What a method says of training samples; positive helps.

    Attributes:
        values: (train, test), float32, on the CPU; of self-influence (train,).
        train_ids: Ids of the training samples.
        test_ids: Ids of the test samples; empty for self-influence.
        method: Its name.
        params: Its hyper-parameters.
        facts: Which trainings they were made from, for the check that no model judges itself.
    """

    values: Tensor
    train_ids: NDArray[np.int64]
    test_ids: NDArray[np.int64]
    method: str
    params: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def top(self, k: int = 10, harmful: bool = False) -> tuple[NDArray[np.int64], Tensor]:
        """Return the training samples that help each test sample most.

        Args:
            k: How many, at most.
            harmful: Whether to return those that harm it most instead.

        Returns:
            Their ids and their scores, (test, k) each, the strongest first; of self-influence (k,).
        """
        across = self.values.T if self.values.dim() == 2 else self.values
        found = across.topk(min(k, across.shape[-1]), dim=-1, largest=not harmful)
        return self.train_ids[found.indices.numpy()], found.values

    def save(self, path: Path | str, setting: str = "own") -> None:
        """Write them as a ``score`` file, which ``leaveout evaluate`` reads.

        Args:
            path: The file, ``.safetensors``.
            setting: Name of the problem, as in the ground truth.
        """
        kind = "score" if self.values.dim() == 2 else "self_influence"
        tensors = {kind: self.values.numpy(), "train_id": self.train_ids}
        dims: dict[str, tuple[str, ...]] = {kind: ("train",), "train_id": ("train",)}
        if kind == "score":
            tensors["test_id"] = self.test_ids
            dims |= {kind: ("train", "test"), "test_id": ("test",)}
        params = dict(self.params)
        which = {"method": self.method, "label": label(params), "params": params}
        save(path, Arrays(kind, tensors, dims, {**which, **self.facts}), {"setting": setting})

    def against(self, truth: Truth, bootstrap: int = 1000) -> Result:
        """Measure them against a ground truth, over all its test samples.

        Args:
            truth: From :class:`leaveout.Benchmark`, of the same samples.
            bootstrap: Draws of the interval.

        Raises:
            LeaveoutError: They are of other samples, or of models of the ground truth itself.

        Example:
            >>> print(scores.against(bench.lds()))  # doctest: +SKIP
            lds 0.412 (95%: 0.371 to 0.452; ceiling 0.88; 40 of 40 test samples)
        """
        if self.values.dim() != 2:
            raise LeaveoutError("self-influence has no ground truth of this kind")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "score.safetensors")
            self.save(path, truth.setting)
            found = evaluate(
                truth.metric,
                truth.path,
                [path],
                [],
                setting=truth.setting,
                method=self.method,
                root_seed=truth.seed,
                bootstrap=bootstrap,
            )
        text = found["csv"]
        assert isinstance(text, str)
        rows = csv.DictReader(io.StringIO(text))
        row = next(r for r in rows if r["truth"] == "mean" and r["half"] == "all")
        return Result(
            metric=truth.metric,
            value=float(row["value"]),
            low=float(row["ci_low"]),
            high=float(row["ci_high"]),
            ceiling=float(row["ceiling"]),
            note=row["ceiling_note"],
            n_test=int(row["n_test"]),
            n_undefined=int(row["n_nan"]) + int(row["n_constant"]),
        )


def collected(blocks: Iterable[NDArray[np.float32]], rows: int, method: str) -> Tensor:
    """Put blocks of rows together, (train, test), float32 on the CPU; show progress if it is long.

    Args:
        blocks: Of the scores, in order.
        rows: How many there will be.
        method: Whose they are.
    """
    parts = []
    with progress_bar(rows, method, "sample", delay=5) as bar:
        for block in blocks:
            parts.append(torch.from_numpy(block))
            bar.update(len(block))
    return torch.cat(parts)
