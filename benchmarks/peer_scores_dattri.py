"""dattri's methods, called as `experiments/benchmark_result.py` in its repository calls them.

That script scores training samples in batches of 500 and gives the whole training set at once to
what takes it for curvature. Influence functions there solve anew for every batch; ``batch=None``
makes one of all, as its `examples/pretrained_benchmark` do: its best case, where memory allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from dattri.algorithm.data_shapley import KNNShapleyAttributor
from dattri.algorithm.factgrass import FactGraSSAttributor
from dattri.algorithm.influence_function import (
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorEKFAC,
    IFAttributorExplicit,
    IFAttributorLiSSA,
)
from dattri.algorithm.logra import LoGraAttributor
from dattri.algorithm.rps import RPSAttributor
from dattri.algorithm.tracin import TracInAttributor
from dattri.algorithm.trak import TRAKAttributor
from dattri.task import AttributionTask
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from peer_problem import Problem, State

BATCH = 500


def _loaders(problem: Problem, batch: int | None) -> tuple[DataLoader[Any], DataLoader[Any]]:
    size = batch or len(problem.train)
    return DataLoader(problem.train, batch_size=size), DataLoader(problem.test, batch_size=BATCH)


def _task(
    problem: Problem, checkpoints: State | list[State], loss: Callable[..., Tensor] | None = None
) -> AttributionTask:
    net = problem.net()

    def batch_loss(params: State, sample: tuple[Tensor, Tensor]) -> Tensor:
        outputs = functional_call(net, params, sample[0])
        return nn.functional.cross_entropy(outputs, sample[1].long())

    return AttributionTask(loss_func=loss or batch_loss, model=net, checkpoints=checkpoints)


def _one(net: nn.Module) -> Callable[[State, tuple[Tensor, Tensor]], Tensor]:
    """Return the loss of one sample without a batch dimension."""

    def loss(params: State, sample: tuple[Tensor, Tensor]) -> Tensor:
        outputs = functional_call(net, params, sample[0][None])
        return nn.functional.cross_entropy(outputs, sample[1][None])

    return loss


def tracin(problem: Problem, runs: int, weight: float, cosine: bool = False) -> Tensor:
    """Grad-Dot (one run), Grad-Cos and TracIn; gradients go through a random projection to 512."""
    states = [problem.full[run][-1] for run in range(runs)]
    task = _task(problem, states, _one(problem.net()))
    method = TracInAttributor(task, torch.full((runs,), weight), normalized_grad=cosine)
    with torch.no_grad():
        return method.attribute(*_loaders(problem, BATCH))


def trak(problem: Problem, runs: int, dimension: int) -> Tensor:
    """TRAK, projected by the normal distribution."""
    net = problem.net()
    loss = _one(net)

    def margin(params: State, sample: tuple[Tensor, Tensor]) -> Tensor:
        log_p = -loss(params, sample)
        return log_p - torch.log(1 - torch.exp(log_p))

    def probability(params: State, sample: tuple[Tensor, Tensor]) -> Tensor:
        return torch.exp(-loss(params, sample))

    task = _task(problem, [problem.half[run][-1] for run in range(runs)], margin)
    method = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": dimension})
    train, test = _loaders(problem, BATCH)
    method.cache(train)
    with torch.no_grad():
        return method.attribute(test)


def _influence(kind: Callable[..., Any]) -> Callable[..., Tensor]:
    def score(problem: Problem, batch: int | None = BATCH, **params: Any) -> Tensor:
        method = kind(_task(problem, problem.full[0][-1]), **params)
        method.cache(_loaders(problem, None)[0])
        with torch.no_grad():
            return method.attribute(*_loaders(problem, batch))

    return score


def rps(problem: Problem, l2: float) -> Tensor:
    """Representer points; the batches for its own training are of 64."""
    net = problem.net()
    task = AttributionTask(
        loss_func=nn.functional.cross_entropy, model=net, checkpoints=problem.full[0][-1]
    )
    method = RPSAttributor(task, net.names[-1], normalize_preactivate=True, l2_strength=l2)
    method.cache(_loaders(problem, 64)[0])
    return method.attribute(*_loaders(problem, BATCH))


def knn_shapley(problem: Problem, k: int) -> Tensor:
    """Shapley values of nearest neighbours, on what the last layer gets."""
    net = problem.net()
    with torch.no_grad():
        features = [
            TensorDataset(net.features(part.tensors[0]), part.tensors[1])
            for part in (problem.train, problem.test)
        ]
        loaders = [DataLoader(part, batch_size=BATCH) for part in features]
        return KNNShapleyAttributor(k).attribute(*loaders).T  # it gives (test, train)


def _block_projected(kind: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return LoGra or FactGraSS with the empirical Fisher matrix, all in one batch."""

    def score(problem: Problem, dimension: int, damping: float) -> Tensor:
        def loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        task = AttributionTask(loss_func=loss, model=problem.net(), checkpoints=problem.full[0][-1])
        method = kind(task, hessian="eFIM", damping=damping, proj_dim=dimension)
        train, test = _loaders(problem, None)
        method.cache(train)
        return method.attribute(train, test)

    return score


METHODS = {
    "tracin": tracin,
    "trak": trak,
    "if_explicit": _influence(IFAttributorExplicit),
    "if_cg": _influence(IFAttributorCG),
    "if_lissa": _influence(IFAttributorLiSSA),
    "if_arnoldi": _influence(IFAttributorArnoldi),
    "datainf": _influence(IFAttributorDataInf),
    "if_ekfac": _influence(IFAttributorEKFAC),
    "rps": rps,
    "knn_shapley": knn_shapley,
    "logra": _block_projected(LoGraAttributor),
    "factgrass": _block_projected(FactGraSSAttributor),
}
