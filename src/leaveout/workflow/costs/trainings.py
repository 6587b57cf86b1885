"""The costs of preparing data, training and retraining: time, memory and disk of every job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from leaveout.config import LAYERS, CrossEntropy, Layer, Setting
from leaveout.config.subset_file import subset_size
from leaveout.retraining.items import chunk_sizes
from leaveout.workflow.costs.networks import CPU, FLOAT, HARDWARE, Network, network

SHORTEST = 5 * 60.0
"""Seconds of training in a proposed chunk, at least, unless that takes more than ``MOST``."""
SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)
"""Proposed items of a chunk: round, so that round numbers of trainings fill whole chunks, and
adding to a layer trains nothing again."""
MOST: dict[Layer, int] = {"full": 10, "half": 50, "lds": 50, "loo": 1000, "pbrf": 100}
"""Items of a proposed chunk, at most: few enough for several cores, enough for a stack's worth."""

PASSES = 100.0
"""Passes forward and backward over the training samples until a point of PBRF has converged by
Newton's method: gradients, and products with the Gauss-Newton matrix. ASSUMED, not fitted yet."""


@dataclass(frozen=True)
class Workload:
    """All that the costs of a setting depend on.

    Attributes:
        name: The setting's.
        hardware: Key of ``HARDWARE``.
        network: The model.
        n_train: Training samples.
        n_test: Test samples.
        epochs: Passes over the samples a model is trained on.
        batch_size: Samples in a step.
        iterations: Steps in all, where the recipe counts these and not epochs; 0 where it does not.
        optimizer_states: Numbers the optimiser keeps for each parameter.
        full: Runs on all samples.
        checkpoints: States kept of each.
        half: Runs on a part of them.
        half_ratio: Which part.
        lds: Subsets.
        lds_ratio: Size of each.
        lds_runs: Models of each.
        loo: Left-out samples, of each run.
        loo_shared: Whether all leave-one-out models see the batches of one run.
        pbrf: Points of PBRF, of each run.
        pbrf_passes: Passes over the training samples for each.
        stored: Bytes of a number of a sample on disk: 1 where pixels are kept as they are.
        chunk: Items of a chunk, for the layers where they are stated.
        method_memory: Bytes a method may take.
        method_seconds: Time it may take.
    """

    name: str
    hardware: str
    network: Network
    n_train: int
    n_test: int
    epochs: int
    batch_size: int
    iterations: int = 0
    optimizer_states: int = 0
    full: int = 10
    checkpoints: int = 10
    half: int = 50
    half_ratio: float = 0.5
    lds: int = 100
    lds_ratio: float = 0.5
    lds_runs: int = 1
    loo: tuple[int, ...] = ()
    loo_shared: bool = True
    pbrf: tuple[int, ...] = ()
    pbrf_passes: float = PASSES
    stored: int = FLOAT
    chunk: tuple[tuple[Layer, int], ...] = ()
    method_memory: float = 8e9
    method_seconds: float = 7200


@dataclass(frozen=True)
class Job:
    """What one job takes.

    Attributes:
        seconds: On the nominal hardware, start included.
        memory: Bytes of the host, at the peak.
        disk: Bytes it writes.
        gpus: GPUs it asks for.
        items: Trainings in it; 0 where it trains nothing.
    """

    seconds: float
    memory: float
    disk: float
    gpus: int = 0
    items: int = 0


def workload(setting: Setting) -> Workload:
    """Return what the costs of a setting depend on."""
    data, recipe, lds = setting.dataset, setting.recipe, setting.lds
    return Workload(
        name=setting.name,
        hardware=setting.hardware,
        network=_network(setting),
        n_train=data.n_train,
        n_test=data.n_test,
        epochs=recipe.epochs or -(-(recipe.iterations or 0) * recipe.batch_size // data.n_train),
        batch_size=recipe.batch_size,
        iterations=recipe.iterations or 0,
        optimizer_states=2 if recipe.optimizer != "sgd" else 1 if recipe.momentum else 0,
        full=setting.full.runs,
        checkpoints=setting.full.checkpoints,
        half=setting.half.runs,
        half_ratio=setting.half.ratio,
        lds=lds.count,
        # of a user's own subsets an upper bound, so that chunks do not move when lines are added
        lds_ratio=1.0 if lds.own else lds.ratio,
        lds_runs=lds.runs,
        loo=setting.counts("loo"),
        loo_shared=setting.loo.pairing != "none",
        pbrf=setting.counts("pbrf"),
        pbrf_passes=PASSES if setting.pbrf.solver == "newton_cg" else float(setting.pbrf.steps),
        stored=data.stored,
        chunk=tuple((layer, getattr(setting, layer).chunk) for layer in LAYERS),
        method_memory=setting.attribution.memory_gb * 1e9,
        method_seconds=setting.attribution.hours * 3600,
    )


def _network(setting: Setting) -> Network:
    """Return what the cost of a setting's model depends on, as far as it is known beforehand."""
    binary = setting.objective.name == "binary_cross_entropy"
    outputs = 1 if binary else setting.dataset.n_classes or 1
    found = network(setting.model, setting.dataset.shape, outputs)
    # what is trained in stacks: linear layers with ReLU, plain cross-entropy, plain descent
    plain = setting.objective == CrossEntropy() and setting.recipe.optimizer == "sgd"
    relu = getattr(setting.model, "activation", "relu") == "relu"
    return replace(found, stacked=found.stacked and plain and relu)


# time


def stack_size(work: Workload, shared: bool) -> int:
    """Return how many models are trained at once; on a CPU as the engine chooses it."""
    net = work.network
    if not net.stacked:
        return 1
    if work.hardware == "gpu":
        return 128
    numbers = (1 + work.optimizer_states) * net.parameters
    if not shared:
        numbers += work.batch_size * net.inputs
    return max(8, min(128, (4 << 20) // (numbers * FLOAT)))


def rate(work: Workload) -> float:
    """Return the FLOP/s of a model's matrix products."""
    on = HARDWARE[work.hardware]
    return on.linear if work.network.stacked else on.other


def training_seconds(work: Workload, ratio: float = 1.0, shared: bool = False) -> float:
    """Return the seconds of training one model and testing it.

    Args:
        work: The workload.
        ratio: Part of the training samples it sees.
        shared: Whether the models of a stack see the same batches.
    """
    net, on = work.network, HARDWARE[work.hardware]
    samples = subset_size(work.n_train, ratio)
    steps = work.iterations or -(-samples // work.batch_size) * work.epochs
    visits = work.iterations * work.batch_size or samples * work.epochs
    together = stack_size(work, shared)
    a_visit = net.train / rate(work) + net.outputs * on.output
    a_step = work.optimizer_states * net.parameters * on.momentum
    if net.stacked:
        a_visit += net.activations * on.hidden + (0.0 if shared else net.inputs * on.gathered)
        a_step += on.step / together
    else:
        a_visit += net.activations * on.activation
        a_step += net.modules * on.module
    if net.dropped:  # models that share their batches share their masks
        a_visit += net.dropped * on.dropped / (together if shared else 1)
        a_step += on.drawn / (together if shared else 1)
    return visits * a_visit + steps * a_step + work.n_test * net.forward / rate(work)


def proximal_seconds(work: Workload) -> float:
    """Return the seconds of moving a full model to the PBRF of one point, and testing it."""
    net, on = work.network, HARDWARE[work.hardware]
    a_visit = net.train / rate(work) + net.outputs * on.output
    a_visit += net.activations * (on.hidden if net.stacked else on.activation)
    return work.pbrf_passes * work.n_train * a_visit + work.n_test * net.forward / rate(work)


def item_seconds(work: Workload, layer: Layer) -> float:
    """Return the seconds of one item of a layer: one training."""
    match layer:
        case "full":
            return training_seconds(work)
        case "half":
            return training_seconds(work, work.half_ratio)
        case "lds":
            return training_seconds(work, work.lds_ratio)
        case "loo":
            return training_seconds(work, shared=work.loo_shared)
        case "pbrf":
            return proximal_seconds(work)


# chunks


def parts(work: Workload, layer: Layer) -> tuple[int, ...]:
    """Return the items of each run of a layer; no chunk reaches from one run into the next.

    Runs of full and half models are no more than items: there is one part.
    """
    match layer:
        case "full":
            return (work.full,)
        case "half":
            return (work.half,)
        case "lds":
            return (work.lds,) * work.lds_runs
        case "loo":
            return work.loo
        case "pbrf":
            return work.pbrf


def chunk_size(work: Workload, layer: Layer) -> int:
    """Return how many items a whole chunk of a layer holds: as stated, else as proposed."""
    return dict(work.chunk).get(layer) or proposed_size(work, layer)


def proposed_size(work: Workload, layer: Layer) -> int:
    """Return the smallest round number of items that takes ``SHORTEST``, or ``MOST``."""
    return timed_size(item_seconds(work, layer), MOST[layer])


def timed_size(seconds: float, most: int) -> int:
    """Return the smallest of ``SIZES`` that takes ``SHORTEST``, or ``most``.

    Args:
        seconds: Of one item.
        most: Items at most, one of ``SIZES``.
    """
    return next(size for size in SIZES if size * seconds >= SHORTEST or size == most)


# jobs


def chunk_jobs(work: Workload, layer: Layer) -> dict[str, Job]:
    """Return what each chunk of a layer takes, by its name, in order."""
    on, seconds = HARDWARE[work.hardware], item_seconds(work, layer)
    # a chunk of leave-one-out trains the full run, too
    extra = seconds if layer == "loo" else 0.0
    return {
        name: Job(
            seconds=on.start + extra + size * seconds,
            memory=_training_memory(work, layer, size),
            disk=_chunk_disk(work, layer, size),
            gpus=on.gpus,
            items=size,
        )
        for name, size in chunk_sizes(layer, parts(work, layer), chunk_size(work, layer)).items()
    }


def data_bytes(work: Workload, number: int = FLOAT) -> float:
    """Return the bytes of a setting's samples: inputs, a label and an id each."""
    return (work.n_train + work.n_test) * (work.network.inputs * number + 16.0)


def _chunk_disk(work: Workload, layer: Layer, size: int) -> float:
    ids, targets = 8.0 * (work.n_train + work.n_test), FLOAT * work.n_test
    match layer:
        case "full" | "half":
            states = work.checkpoints if layer == "full" else 1
            one = states * work.network.state * FLOAT + work.n_train + 8.0
            return 8.0 * work.n_train + size * one
        case "lds":
            return ids + size * (targets + work.n_train + 8.0)
        case "loo":  # and the full run
            return ids + (size + 1) * (targets + 8.0)
        case "pbrf":  # and the full model, and how the solver ended
            return ids + (size + 1) * (targets + 8.0) + size * 25.0


def _training_memory(work: Workload, layer: Layer, size: int) -> float:
    """Return the bytes of the host at a job's peak: libraries, data, what it writes, one stack."""
    net, on = work.network, HARDWARE[work.hardware]
    held = on.memory + 2 * data_bytes(work) + 3 * _chunk_disk(work, layer, size)
    if on.gpus:  # the models are on the GPU
        return held
    if layer == "pbrf":
        return held + _proximal_memory(work, size)
    shared = layer == "loo" and work.loo_shared
    models = min(size + 1, stack_size(work, shared))
    states = 2 + work.optimizer_states + (work.checkpoints if layer == "full" else 0)
    stack = states * net.state + work.batch_size * (net.inputs + 3 * net.activations)
    # tested at the end, on all test samples at once; a convolution keeps several copies
    stack += work.n_test * (net.outputs + (1 if net.stacked else 4) * net.activations)
    order = 5 * 8.0 * work.n_train  # batches of an epoch: positions, members, weights
    return held + models * (stack * FLOAT + order)


def _proximal_memory(work: Workload, size: int) -> float:
    """Return the bytes of moving some points of PBRF at once, in float64."""
    net, n = work.network, work.n_train
    one = 16.0 * ((net.activations + net.outputs) * n + 8 * net.parameters)
    dense = net.parameters <= 10_000 and net.modules == 2 and size > 8
    curvature = 3 * 8.0 * net.parameters**2 if dense else 512e6
    return 8.0 * n * net.inputs + 3 * max(one, min(size * one, 256e6)) + curvature


def data_job(work: Workload) -> Job:
    """Return what preparing the data takes."""
    size = data_bytes(work)
    disk = data_bytes(work, work.stored)
    return Job(CPU.start + size / 20e6, CPU.memory + 4 * size, disk)


def truth_job(work: Workload, layer: Literal["lds", "loo", "pbrf"]) -> Job:
    """Return what putting a ground truth together takes."""
    # what all its chunks hold, with what several of them repeat standing there once
    ids = 8.0 * (work.n_train + work.n_test)
    size = ids + sum(_chunk_disk(work, layer, count) - ids for count in parts(work, layer))
    if layer == "lds":
        size -= (work.lds_runs - 1) * work.lds * (work.n_train + 8.0)
    return Job(CPU.start + size / 50e6, CPU.memory + 4 * size, size)


def brittleness_job(setting: Setting) -> Job:
    """Return what retraining without one method's most helpful samples takes, at most.

    Nothing if the setting has no section `brittleness`.
    """
    asked, work = setting.brittleness, workload(setting)
    on = HARDWARE[work.hardware]
    models = asked.n_test * len(asked.k) * asked.runs if asked else 0
    # every model keeps nearly all samples, in batches of its own; and the scores are read
    return Job(
        seconds=on.start + models * training_seconds(work),
        memory=_training_memory(work, "lds", 0)
        + stack_size(work, shared=False) * 3.0 * FLOAT * work.network.state
        + 8.0 * work.n_train * (models // asked.runs if asked else 0),
        disk=models * 16.0 + 8.0 * (asked.n_test * asked.k[-1] if asked else 0),
        gpus=on.gpus,
        items=models,
    )


def chunk_job(setting: Setting, layer: Layer, name: str) -> Job:
    """Return what one chunk of a layer takes on the setting's nominal hardware, before any margin.

    What a job asks a scheduler for: more of both on a second attempt is the scheduler's business,
    as is a job that runs on slower hardware than the setting names.

    Args:
        setting: The setting.
        layer: Which layer.
        name: Which chunk.
    """
    return _setting_jobs(setting, layer)[name]


@cache  # every job of a workflow asks
def _setting_jobs(setting: Setting, layer: Layer) -> dict[str, Job]:
    return chunk_jobs(workload(setting), layer)
