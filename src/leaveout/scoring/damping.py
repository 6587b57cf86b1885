"""Choose an influence function's damping without a single retrained model.

Paper: Wang et al. 2025, Taming Hyperparameter Sensitivity in Data Attribution, arXiv:2505.24261,
poses the problem and answers it with an indicator of full-data quantities. Its full text was not at
hand when this was written: the problem is the paper's, the derivation below is our own, and nothing
here should be taken for the paper's indicator.

Derivation. Let tau_l be the scores of one test sample at damping l, (train,), tau'_l their
derivative in l, and y what retraining on random subsets of one size yields. Over such subsets the
covariance of two sums of scores is, up to one factor, that of the scores over the
training samples. With r = corr(y, sum tau_l), o = corr(y, -sum tau'_l) and x =
corr(tau_l, -tau'_l), what the linear datamodeling score measures (were it Pearson's) obeys exactly

    dr / dl = (sd(tau'_l) / sd(tau_l)) (x r - o):

more damping helps if and only if o < x r. Only y needs retraining, so it is modelled:

1. Gradient descent that stops after t = (steps x learning rate) / (1 - momentum) is ridge with
   damping 1 / t to first order (Ali, Kolter and Tibshirani 2019, arXiv:1810.10082); weight decay
   adds to it. This is ``training_damping``, T, for as many steps as a retraining takes.
2. The inverse curvature of a random subset of a of n samples is on average, up to a factor, that of
   all samples with a larger damping m, as for ridge regressions on subsamples (Patil and Du 2023,
   Generalized equivalences between subsampling and ridge regularization, after arXiv:2304.13016):
   T = m (1 - d(m) / a) / (1 - d(m) / n), d(m) = tr H (H + m I)^-1. This holds for large a and n
   and curvature of rank one a sample; with more classes the damping lies between m and T.

Then y goes with the scores at damping m (``effective_damping``), r = corr(tau_l, tau_m), and the
condition above says that r rises up to l = m and falls after it. The indicator is this r, averaged
over test samples: the linear datamodeling score to be expected, but for a factor that is the same
for all l. The grid point with the largest is chosen. Leave-one-out removes one sample, so a = n and
m = T; PBRF fits all samples to the end with a damping of its own, so m is that damping.

Cost: one score matrix at damping m for each choice of the other hyper-parameters, and for LDS
320 Hessian-vector products for d. The scores of the grid are read from their files, block by block.
Approximated: y, as above; the method's own errors cancel where they are alike at l and m.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from leaveout import seeds
from leaveout.attribution.task import Task
from leaveout.config import Method, Recipe, Scalar, Setting
from leaveout.config.damping import COLUMNS
from leaveout.config.subset_file import subset_size
from leaveout.curvature.hvp import hessian_products
from leaveout.curvature.spectrum import PROBES, effective_dimension, spectral_density
from leaveout.errors import LeaveoutError, NotComputableError
from leaveout.gradients.per_sample import n_parameters
from leaveout.retraining.common import load_data
from leaveout.scoring.files import not_computed, read_scores
from leaveout.scoring.run import finite, held, load_task, outputs_finite, score_blocks
from leaveout.store import artefacts
from leaveout.store.artefacts import Artefact, CorruptArtefactError
from leaveout.training.optimisers import rate, total_steps

Metric = Literal["lds", "loo", "pbrf"]
Floats = NDArray[np.float64]


def training_damping(recipe: Recipe, n_samples: float) -> float:
    """Return the damping that stopping early amounts to, 1 / (steps x learning rate), and decay.

    It is about gradient descent: NaN for Adam and for clipped steps.

    Args:
        recipe: How models are trained.
        n_samples: Training samples of such a model.
    """
    if recipe.optimizer != "sgd" or recipe.clip is not None:
        return math.nan  # steps are not as long as the gradient says
    steps = total_steps(recipe, math.ceil(n_samples))
    if recipe.schedule == "constant" and not recipe.warmup:
        travelled = steps * recipe.learning_rate
    else:
        travelled = sum(rate(recipe, step, steps) for step in range(steps))
    return (1 - recipe.momentum) / travelled + recipe.weight_decay


def subset_damping(
    damping: float, values: torch.Tensor, weights: torch.Tensor, subset: float, n: int
) -> float:
    """Return the damping m on all samples that equals ``damping`` on a random subset.

    The solution of damping = m (1 - d(m) / subset) / (1 - d(m) / n) with d(m) < subset, whose right
    side grows with m.

    Args:
        damping: On the subset.
        values: The spectrum of the curvature of all samples; see ``spectral_density``.
        weights: Its weights.
        subset: Samples in a subset.
        n: All samples.
    """

    def excess(m: float) -> float:
        d = effective_dimension(values, weights, m)
        return m * (1 - d / subset) / (1 - d / n) - damping if d < subset else -damping

    # d(m) < trace / m, so that at the upper end m (1 - d / subset) is at least the damping
    low, high = damping, damping + float((weights * values.clamp_min(0)).sum()) / subset
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


def effective_damping(setting: Setting, metric: Metric, task: Task) -> tuple[float, float]:
    """Return the training's own damping and the one whose scores should predict a metric best.

    Args:
        setting: The setting.
        metric: Against which ground truth.
        task: Its samples and models, of which full run 0 is used.

    Returns:
        Both; the second is NaN if it depends on a model, and that one's training diverged.
    """
    n = len(task.train)
    if metric == "pbrf":
        return setting.pbrf.damping, setting.pbrf.damping
    if metric == "loo":
        own = training_damping(setting.recipe, n)
        return own, own
    kept = setting.lds.own
    drawn = [subset_size(n, setting.lds.ratio)]
    sizes = [len(kept.ids(k)) for k in range(len(kept))] if kept else drawn
    subset = sum(sizes) / len(sizes)
    own = training_damping(setting.recipe, subset)
    if not (finite(task.full[0]) and outputs_finite(task, task.full[0])):
        return own, math.nan
    size = n_parameters(task.module)
    signs = seeds.generator(task.seed, task.setting, "damping", "probes").choice(
        np.array([-1.0, 1.0]), (PROBES, size)
    )
    state = task.full[0].final
    values, weights = spectral_density(
        lambda vectors: hessian_products(task.module, state, task.train, vectors),
        torch.from_numpy(signs).to(task.like),
    )
    return own, subset_damping(own, values, weights, subset, n)


def correlations(
    reference: Iterator[NDArray[np.float32]], scores: Sequence[artefacts.Rows]
) -> Floats:
    """Return each matrix's correlation with a reference over training samples, (matrix, test).

    Args:
        reference: Blocks of rows, in order, (train, test) together.
        scores: Matrices of the same shape on disk.

    Returns:
        NaN where a column is constant or not finite.
    """
    row, centre = 0, None
    sums: list[list[Floats]] = []
    for block in reference:
        own = block.astype(np.float64)
        rows = np.arange(row, row + len(block))
        row += len(block)
        others = [rows_of.take(rows).astype(np.float64) for rows_of in scores]
        if centre is None:  # numbers near their mean, lest their squares swallow the variance
            centre = [values.mean(axis=0) for values in (own, *others)]
            sums = [[np.zeros(own.shape[1]) for _ in range(5)] for _ in scores]
        x = own - centre[0]
        for k, other in enumerate(others):
            y = other - centre[k + 1]
            for total, part in zip(sums[k], (x, y, x * x, y * y, x * y), strict=True):
                total += part.sum(axis=0)
    found = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for sx, sy, sxx, syy, sxy in sums:
            spread = np.sqrt(sxx - sx * sx / row) * np.sqrt(syy - sy * sy / row)
            found.append(np.where(spread > 0, (sxy - sx * sy / row) / spread, np.nan))
    return np.stack(found)


def choose_damping(
    setting: Setting,
    metric: Metric,
    method: Method,
    data_path: Path,
    full_paths: Sequence[Path],
    half_paths: Sequence[Path],
    score_paths: Sequence[Path],
    device: str,
) -> str:
    """Say, for each grid point of a method, what its damping promises, and which is chosen.

    Args:
        setting: The setting.
        metric: The ground truth to be predicted; none is read.
        method: A method with the hyper-parameter ``damping``.
        data_path: The setting's ``data`` artefact.
        full_paths: Its full models.
        half_paths: Its half models, if the method needs them.
        score_paths: The method's scores, in grid order.
        device: ``cpu`` or ``cuda``.

    Returns:
        CSV with the columns ``COLUMNS``.

    Raises:
        LeaveoutError: A score file is damaged, of something else, or of no damping.
    """
    data = load_data(setting, data_path, device)
    models = [
        [artefacts.read(path, "models") for path in paths] for paths in (full_paths, half_paths)
    ]
    task = load_task(setting, data, *models)
    own, effective = effective_damping(setting, metric, task)
    points = read_scores(score_paths, setting.name, method.name)
    params: dict[str, Mapping[str, Scalar]] = {k: v.meta["params"] for k, v in points.items()}
    for name, artefact in points.items():
        if "damping" not in params[name]:
            raise LeaveoutError(
                f"{artefact.path}: {method.name} has no damping to choose: {name}. Give scores of "
                "a method that has."
            )
    indicator = dict.fromkeys(points, (math.nan, 0))
    for group in _alike(params):
        indicator |= _indicator(
            task, method, {**params[group[0]], "damping": effective}, {k: points[k] for k in group}
        )
    texts = {name: f"{value:.6f}" for name, (value, _) in indicator.items()}
    known = {name: float(text) for name, text in texts.items() if text != "nan"}
    chosen = max(known, key=lambda name: known[name], default=None)  # the first of equals
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in points:
        given = (params[name]["damping"], f"{own:.6g}", f"{effective:.6g}", texts[name])
        last = (indicator[name][1], "yes" if name == chosen else "no")
        writer.writerow((setting.name, metric, method.name, name, *given, *last))
    return text.getvalue()


def _alike(params: Mapping[str, Mapping[str, Scalar]]) -> list[list[str]]:
    """Group grid points that differ in their damping alone."""
    groups: dict[str, list[str]] = {}
    for name, point in params.items():
        rest = str(sorted((k, v) for k, v in point.items() if k != "damping"))
        groups.setdefault(rest, []).append(name)
    return list(groups.values())


def _indicator(
    task: Task, method: Method, params: Mapping[str, Scalar], points: Mapping[str, Artefact]
) -> dict[str, tuple[float, int]]:
    """Return the mean correlation with the scores at ``params``, and of how many test samples."""
    there = {name: file for name, file in points.items() if not not_computed(file)}
    for file in there.values():
        if "score" not in file.rows:
            raise CorruptArtefactError(file.path, "it has no array 'score'")
        for what, ids in (("train", task.train.ids), ("test", task.test.ids)):
            if not np.array_equal(file.tensors[f"{what}_id"], ids):
                raise CorruptArtefactError(file.path, f"its {what} ids are not the data's")
    nothing = dict.fromkeys(points, (math.nan, 0))
    if not there:
        return nothing
    module = importlib.import_module(method.module)
    shape = (len(task.train.ids), len(task.test.ids))
    reference = score_blocks(lambda: module.attribute(task, **params), shape, method.module, [])
    rows = [file.rows["score"] for file in there.values()]
    try:
        found = correlations(held(module, task, reference), rows)
    except NotComputableError:
        return nothing
    means = {}
    for name, row in zip(there, found, strict=True):
        good = row[np.isfinite(row)]
        means[name] = (float(good.mean()) if len(good) else math.nan, len(good))
    return nothing | means
