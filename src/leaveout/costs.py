"""What a setting costs, on paper: time, memory and disk of every job, from the configuration alone.

Where chunks begin and end decides files and keys, so one configuration must give the same chunks on
every machine: nothing here looks at the machine it runs on, or at a clock. A setting names the
*nominal* hardware its jobs are sized for (``hardware``), and the model below turns floating-point
operations and a few overheads into seconds there. Only sums and products are taken, which IEEE
arithmetic rounds alike everywhere. docs/scale.md has the formulas, and the estimates beside
measured times.

The constants are part of the layout: a change of one moves chunk boundaries, and models whose chunk
has moved are trained again. Sizes are few round numbers, so a correction by a few per cent moves
few; leave alone what is right within a factor of two.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from leaveout.data.catalogue import DATASETS

if TYPE_CHECKING:  # the configuration asks this module how many chunks it makes
    from leaveout.config import Method, Model, Scalar, Setting

Layer = Literal["full", "half", "lds", "loo", "pbrf"]
LAYERS: tuple[Layer, ...] = get_args(Layer)

SHORTEST = 5 * 60.0
"""Seconds of training in a whole chunk, at least, unless it then has more items than ``MOST``."""
SIZES = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)
"""Items of a whole chunk: round, for who asks for round numbers then has whole chunks only, and
adding to a layer of whole chunks trains nothing again."""
MOST: dict[Layer, int] = {"full": 10, "half": 50, "lds": 50, "loo": 1000, "pbrf": 100}
"""Items of a chunk, at most: few enough for several cores, enough to fill the engine's stacks."""

PASSES = 100.0
"""Passes forward and backward over the training samples until a point of PBRF has converged by
Newton's method: gradients, and products with the Gauss-Newton matrix. ASSUMED, not fitted yet."""

FLOAT = 4
"""Bytes of a number."""

HELD = 64 << 20
"""Bytes of gradients formed at once."""
PAIR_BYTES = 256 << 20
"""The matrices of all pairs of classes, at most, as leaveout.curvature.softmax_hvp has it."""
OWN_SELF_INFLUENCE = (
    "feature_cosine",
    "grad_dot",
    "if_ekfac",
    "if_kfac",
    "label_match",
    "rps_l2",
    "tracin",
    "tracin_cp",
    "trak",
)
"""Methods with a self-influence of their own; any other scores blocks of training samples."""


@dataclass(frozen=True)
class Hardware:
    """Effective rates of one job's share of a nominal machine, in seconds and FLOP/s.

    Attributes:
        gpus: GPUs of a job.
        linear: Matrix products of stacks of linear layers, FLOP/s.
        other: Those of any other module, FLOP/s.
        step: A step of a whole stack of models, whatever is in it.
        module: A step of one model trained alone, for each of its modules.
        gathered: Copying one number of a sample into a model's own batch.
        output: Softmax and loss, for each output.
        hidden: Element-wise work for each hidden unit of a stack.
        activation: The same for each number kept between two layers of any other module.
        momentum: Updating one parameter with momentum.
        dropped: Drawing and applying the mask of one unit.
        drawn: Starting a draw of masks, once a step and model.
        start: A job before and after its work: interpreter, libraries, reading, writing.
        memory: Bytes of a process that has loaded the libraries.
    """

    gpus: int
    linear: float
    other: float
    step: float
    module: float
    gathered: float
    output: float
    hidden: float
    activation: float
    momentum: float
    dropped: float
    drawn: float
    start: float
    memory: float


CPU = Hardware(
    # One thread on one core of an AMD EPYC at 94 GFLOP/s (2048^3 float32 products), torch 2.13.0;
    # fitted in November 2026 to the trainings of docs/scale.md.
    gpus=0,
    linear=90e9,
    other=80e9,
    step=150e-6,
    module=100e-6,
    gathered=0.5e-9,
    output=10e-9,
    hidden=2e-9,
    activation=2.5e-9,
    momentum=0.6e-9,
    dropped=3.6e-9,
    drawn=13e-6,
    start=3.0,
    memory=240e6,
)
GPU = Hardware(
    # ASSUMED, not measured: an NVIDIA A100, float32 without TensorFloat-32 (19.5 TFLOP/s) at 30%;
    # ten kernels of 10 us a module and step; one model at a time unless a stack of linear layers.
    gpus=1,
    linear=0.3 * 19.5e12,
    other=0.3 * 19.5e12,
    step=1e-3,
    module=100e-6,
    gathered=0.0,
    output=0.0,
    hidden=0.0,
    activation=0.0,
    momentum=0.0,
    dropped=0.0,
    drawn=0.0,
    start=15.0,
    memory=3e9,
)
HARDWARE = {"cpu": CPU, "gpu": GPU}


@dataclass(frozen=True)
class Network:
    """What the cost of a model depends on.

    Attributes:
        inputs: Numbers in a sample.
        outputs: Outputs of a sample.
        parameters: Trained numbers.
        forward: FLOPs of the matrix products of one sample's forward pass.
        first: Those of the first layer, which passes no gradient on.
        activations: Numbers kept between two layers for the backward pass, of one sample.
        modules: Layers of any kind.
        last: Numbers that the last layer sees.
        dropped: Units under dropout.
        widths: Sum of the widths of the inputs and outputs of all layers; 0 unless all are linear.
        buffers: Numbers in a state that are not trained.
        stacked: Whether many models are trained at once as stacks of linear layers.
    """

    inputs: int
    outputs: int
    parameters: int
    forward: float
    first: float = 0.0
    activations: int = 0
    modules: int = 1
    last: int = 0
    dropped: int = 0
    widths: int = 0
    buffers: int = 0
    stacked: bool = False

    @property
    def train(self) -> float:
        """FLOPs of one sample in one step: forward, gradients of weights, gradients of inputs."""
        return 3 * self.forward - self.first

    @property
    def state(self) -> int:
        """Numbers in the state of a model."""
        return self.parameters + self.buffers


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
        chunk: Items of a chunk, for the layers where the configuration fixes them.
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


def network(model: Model, input_shape: tuple[int, int, int], n_outputs: int) -> Network:
    """Return what the cost of a model depends on.

    Args:
        model: The architecture section of a setting.
        input_shape: Channels, height and width of a sample.
        n_outputs: Number of outputs.
    """
    inputs = math.prod(input_shape)
    match model.name:
        case "linear":
            return _linear((inputs, n_outputs), dropout=False)
        case "mlp":
            return _linear((inputs, *model.hidden, n_outputs), dropout=model.dropout > 0)
        case "cnn":
            return _cnn(model.channels, model.batch_norm, input_shape, n_outputs)


def _linear(widths: tuple[int, ...], dropout: bool) -> Network:
    products = [a * b for a, b in itertools.pairwise(widths)]
    hidden = widths[1:-1]
    return Network(
        inputs=widths[0],
        outputs=widths[-1],
        parameters=sum(products) + sum(widths[1:]),
        forward=2 * sum(products),
        first=2 * products[0],
        activations=sum(hidden),
        modules=2 + len(hidden) * (3 if dropout else 2),
        last=widths[-2],
        dropped=sum(hidden) if dropout else 0,
        widths=sum(widths) + sum(hidden),
        stacked=True,
    )


def _cnn(
    channels: tuple[int, ...], batch_norm: bool, shape: tuple[int, int, int], n_outputs: int
) -> Network:
    width, height, breadth = shape
    convolutions, activations, parameters, buffers = [], 0, 0, 0
    for units in channels:
        area = height * breadth
        convolutions.append(2 * 9 * width * units * area)
        activations += units * area
        parameters += 9 * width * units + units + (2 * units if batch_norm else 0)
        buffers += 2 * units + 1 if batch_norm else 0
        width, height, breadth = units, height // 2, breadth // 2
    flat = width * height * breadth
    return Network(
        inputs=math.prod(shape),
        outputs=n_outputs,
        parameters=parameters + flat * n_outputs + n_outputs,
        forward=sum(convolutions) + 2 * flat * n_outputs,
        first=convolutions[0],
        activations=activations,
        modules=2 + len(channels) * (4 if batch_norm else 3),
        last=flat,
        buffers=buffers,
    )


def workload(setting: Setting) -> Workload:
    """Return what the costs of a setting depend on."""
    data, recipe, lds, loo = setting.dataset, setting.recipe, setting.lds, setting.loo
    fixed: dict[Layer, int | str] = {
        "full": setting.full.chunk,
        "half": setting.half.chunk,
        "lds": lds.chunk,
        "loo": loo.chunk,
        "pbrf": setting.pbrf.chunk,
    }
    return Workload(
        name=setting.name,
        hardware=setting.hardware,
        network=network(setting.model, DATASETS[data.name].shape, data.n_classes),
        n_train=data.n_train,
        n_test=data.n_test,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        optimizer_states=1 if recipe.momentum else 0,
        full=setting.full.runs,
        checkpoints=setting.full.checkpoints,
        half=setting.half.runs,
        half_ratio=setting.half.ratio,
        lds=lds.count,
        # of a user's own subsets an upper bound, so that chunks do not move when lines are added
        lds_ratio=1.0 if lds.own else lds.ratio,
        lds_runs=lds.runs,
        loo=_counts(setting, "loo"),
        loo_shared=loo.pairing != "none",
        pbrf=_counts(setting, "pbrf"),
        pbrf_passes=PASSES if setting.pbrf.solver == "newton_cg" else float(setting.pbrf.steps),
        stored=DATASETS[data.name].stored,
        chunk=tuple((k, size) for k, size in fixed.items() if isinstance(size, int)),
        method_memory=setting.attribution.memory_gb * 1e9,
        method_seconds=setting.attribution.hours * 3600,
    )


def _counts(setting: Setting, layer: Literal["loo", "pbrf"]) -> tuple[int, ...]:
    """Return how many ids each run of a layer takes out."""
    return tuple(len(ids) for ids in setting.removed(layer) if ids)


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


def training_seconds(work: Workload, ratio: float = 1.0, shared: bool = False) -> float:
    """Return the seconds of training one model and testing it.

    Args:
        work: The workload.
        ratio: Part of the training samples it sees.
        shared: Whether the models of a stack see the same batches.
    """
    net, on = work.network, HARDWARE[work.hardware]
    samples = int(work.n_train * ratio)
    steps = work.iterations or -(-samples // work.batch_size) * work.epochs
    visits = work.iterations * work.batch_size or samples * work.epochs
    rate = on.linear if net.stacked else on.other
    together = stack_size(work, shared)
    a_visit = net.train / rate + net.outputs * on.output
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
    return visits * a_visit + steps * a_step + work.n_test * net.forward / rate


def proximal_seconds(work: Workload) -> float:
    """Return the seconds of moving a full model to the PBRF of one point, and testing it."""
    net, on = work.network, HARDWARE[work.hardware]
    rate = on.linear if net.stacked else on.other
    a_visit = net.train / rate + net.outputs * on.output
    a_visit += net.activations * (on.hidden if net.stacked else on.activation)
    return work.pbrf_passes * work.n_train * a_visit + work.n_test * net.forward / rate


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
    """Return how many items a whole chunk of a layer holds.

    The smallest round number that takes ``SHORTEST``, or ``MOST``. It depends on the time of one
    item, and not on how many there are: what is added later adds chunks.
    """
    fixed = dict(work.chunk).get(layer)
    return fixed or timed_size(item_seconds(work, layer), MOST[layer])


def timed_size(seconds: float, most: int) -> int:
    """Return the smallest of ``SIZES`` that takes ``SHORTEST``, or ``most``.

    Args:
        seconds: Of one item.
        most: Items at most, one of ``SIZES``.
    """
    return next(size for size in SIZES if size * seconds >= SHORTEST or size == most)


def chunk_sizes(work: Workload, layer: Layer) -> dict[str, int]:
    """Return the number of items of each chunk of a layer, by its name, in order.

    A chunk of full or half models is named by a number, ``3``; any other by its run and a number,
    ``1-3``, so that names stay when runs or items are added.
    """
    size = chunk_size(work, layer)
    return {
        str(number) if layer in ("full", "half") else f"{run}-{number}": items
        for run, part in enumerate(parts(work, layer))
        for number, items in enumerate(cut(part, size))
    }


def cut(items: int, size: int) -> list[int]:
    """Cut items into chunks of one size; the last one holds the rest."""
    whole, rest = divmod(items, size)
    return [size] * whole + [rest] * (rest > 0)


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
        for name, size in chunk_sizes(work, layer).items()
    }


def _data_bytes(work: Workload, number: int = FLOAT) -> float:
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
    held = on.memory + 2 * _data_bytes(work) + 3 * _chunk_disk(work, layer, size)
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
    size = _data_bytes(work)
    disk = _data_bytes(work, work.stored)
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


@dataclass(frozen=True)
class Scoring:
    """What a method does to score.

    Attributes:
        flops: Floating-point operations, as many as take its time at the rate of matrix products.
        memory: Bytes beside data and models.
        gradients: Whether gradients are formed, some at once.
        refused: Whether it says that it is too much, by ``NotComputableError``, and ends there.
    """

    flops: float = 0.0
    memory: float = 0.0
    gradients: bool = True
    refused: bool = False


def score_job(work: Workload, method: Method, params: dict[str, Scalar]) -> Job:
    """Return what one score matrix takes, at most what a method may take.

    A method that is not part of the package is counted as Grad-Dot.
    """
    on, found = HARDWARE[work.hardware], _scoring(work, method, params)
    matrix = 0.0 if found.refused else FLOAT * float(work.n_train) * work.n_test
    written = min(matrix, 32 << 20)  # a block of rows, formed while one is written
    states = work.full * work.checkpoints * work.network.state * FLOAT
    taken = found.memory + (3 * HELD if found.gradients and not found.refused else 0)
    return Job(
        seconds=on.start + min(found.flops / _rate(work), work.method_seconds) + 4 * matrix / 1e9,
        memory=on.memory
        + 2 * _data_bytes(work)
        + 2 * states
        + 4 * written
        + min(taken, work.method_memory),
        disk=matrix + 8.0 * (work.n_train + work.n_test),
        gpus=on.gpus,
    )


def _rate(work: Workload) -> float:
    """Return the FLOP/s of a model's matrix products."""
    on = HARDWARE[work.hardware]
    return on.linear if work.network.stacked else on.other


def curvature_flops(net: Network, samples: int, vectors: float) -> float:
    """Return the FLOPs of products of the curvature over some samples with so many vectors.

    Of softmax regression the fewer of two ways, as ``leaveout.curvature.softmax_hvp`` chooses:
    sample by sample, or by matrices of all pairs of classes, which are formed first.
    """
    if net.activations or not net.stacked:
        # a tangent doubles every product but those of the first layer's inputs, which have none
        return vectors * samples * 2.0 * (net.train - net.first)
    width, pairs = net.inputs + 1, net.outputs * (net.outputs - 1) / 2
    by_sample = vectors * 4.0 * samples * width * (net.outputs - 1)
    if pairs * width**2 * FLOAT > PAIR_BYTES:
        return by_sample
    # five eighths of each symmetric matrix are summed
    forming = 1.25 * pairs * samples * width**2
    return min(by_sample, forming + vectors * 2.0 * pairs * width**2)


def _kronecker_flops(net: Network, samples: int) -> float:
    """Return the FLOPs of EK-FAC, or K-FAC, over some samples.

    A backward pass a class and products of the layers' inputs with each other, in each of two
    passes; eigenvectors of about 20 widths^3 in float64.
    """
    each = 2 * (net.outputs + 1) * net.train + 4.0 * net.widths**2
    return samples * each + 40.0 * net.widths**3


def _scoring(work: Workload, method: Method, params: dict[str, Scalar]) -> Scoring:
    net, rate = work.network, _rate(work)
    n, m, p = work.n_train, work.n_test, net.parameters
    products = 2.0 * n * m * p
    match method.module.rpartition(".")[2]:
        case "random" | "label_match":
            return Scoring(gradients=False)
        case "feature_cosine" | "knn_shapley" | "rps_l2" as method_name:
            flops = (n + m) * net.forward + 2.0 * n * m * net.last
            memory = 2.0 * FLOAT * (n + m) * (net.last + net.activations)
            if method_name == "knn_shapley":  # two sorts of all training samples, in float64
                flops, memory = flops + 1.5e4 * n * m, memory + FLOAT * n * m + (128 << 20)
            elif method_name == "rps_l2":
                # conjugate gradients in Newton's steps: as many as the root of the condition
                # number, some 8 / sqrt(l2) in all for features of length 1; in float64, at half
                # the rate
                steps = 10 + 8 / float(params.get("l2", 1e-2)) ** 0.5
                flops += steps * 8.0 * n * net.last * net.outputs
            return Scoring(flops, memory, gradients=False)
        case "if_explicit":  # in float64, at half the rate
            if 16.0 * p * p > work.method_memory:
                return Scoring(refused=True)
            flops = 2.0 * n * p * p + 2 * (p**3 / 3 + 2.0 * m * p * p) + products
            return Scoring(flops, 16.0 * p * p + 20.0 * m * p)
        case "if_cg":
            flops = curvature_flops(net, n, float(params.get("iterations", 10)) * m)
            return Scoring(flops + products, 7.0 * FLOAT * m * p)
        case "trak":
            if params.get("masks") and not net.dropped:
                return Scoring(refused=True)
            k = int(params.get("projection", 512))
            models = int(params.get("models", 1))
            members = models * max(1, int(params.get("masks", 0)))
            one = p * (2.0 * k if params.get("projector") == "rademacher" else 200.0)
            # in double precision, at half the rate: X'X
            flops = members * ((n + m) * (2 * net.train + one) + 2.0 * n * k * (k + m))
            memory = FLOAT * (float(n) * (m + 3 * k) + (n + m) * net.widths) + 24.0 * k * k
            return Scoring(flops, memory, gradients=not net.stacked)
        case "logra" | "grass":
            rank = int(params.get("rank", 0))
            k = rank**2 or int(params.get("projection", 512))
            parts = max(1, net.modules // 2) if rank or params.get("factored") else 1
            flops = 3.0 * (n + m) * net.train + parts * 2.0 * n * k * (2 * k + m)
            flops += parts * (4.0 * rank * n * net.widths + 2.0 * k**3)
            if not net.stacked:  # gradients are formed, twice
                flops += 4.0 * (n + m) * net.train
            memory = parts * (24.0 * k * k + 12.0 * n * 4 * k) + FLOAT * m * k
            return Scoring(flops, memory, gradients=not net.stacked)
        case "if_lissa":
            samples = min(n, int(params.get("batch", 100)))
            product = samples * 2.0 * (net.train - net.first)
            # short products: what they are added to is cut, turned and put together again, so that
            # it passes through memory some forty times
            adding = 40.0 * FLOAT * p * rate / 10e9
            flops = int(params.get("depth", 100)) * m * (product + adding) + products
            return Scoring(flops, 4.0 * FLOAT * m * p)
        case "if_arnoldi":
            count = int(params.get("iterations", 50))
            memory = 2.0 * FLOAT * count * p
            if memory > work.method_memory:
                return Scoring(refused=True)
            product = n * (net.train + 2.0 * (net.train - net.first))
            # one vector at a time runs at a fraction of the rate
            flops = 4 * count * (product + 8.0 * count * p) + 2.0 * (n + m) * count * p
            return Scoring(flops, memory)
        case "relatif":  # all training samples are right-hand sides, too, a chunk at a time
            base = method.model_copy(update={"module": str(params.get("base", "if_cg"))})
            both = _scoring(replace(work, n_test=n + m), base, params)
            # a chunk's gradients, of length 1, turned, divided and solved
            held = _scoring(work, base, params).memory + 5 * HELD
            return replace(both, memory=0.0 if both.refused else held)
        case "if_kfac" | "if_ekfac":
            flops = _kronecker_flops(net, n) + products
            return Scoring(flops, FLOAT * (min(m * float(p), 64e6) + 10.0 * net.widths**2))
        case "datainf":
            if net.stacked:  # products of pairs of factors, or of formed gradients
                layers = net.modules // 2
                pairs = 2.0 * n * n * (net.widths + m * layers)
                if pairs < 3 * products:
                    memory = FLOAT * n * (net.widths + m * float(layers))
                    return Scoring(pairs, memory, gradients=False)
            return Scoring(3 * products, 3.0 * FLOAT * m * p)
        case "astra":
            iterations, samples = int(params.get("iterations", 20)), int(params.get("batch", 0))
            if samples:  # other samples, and so other matrices, in each step
                product = min(n, samples) * 2.0 * (net.train - net.first) * iterations * m
            else:
                product = curvature_flops(net, n, iterations * float(m))
            flops = product + iterations * m * 4.0 * p * net.widths + products
            flops += _kronecker_flops(net, n)
            return Scoring(flops, 6.0 * FLOAT * m * p)
        case "magic" | "dvemb":
            adjoints = (2.0 + work.optimizer_states) * m
            steps = work.epochs * 2 + -(-n // work.batch_size)
            memory = FLOAT * ((steps + adjoints) * p + float(n) * m)
            if memory > work.method_memory:
                return Scoring(refused=True)
            # every step: there and back for each test sample, at half the rate, for batches make
            # thin products; twice that where autograd does it
            there = work.epochs * 2.0 * n * net.train
            back = work.epochs * 2.0 * (2 if net.stacked else 4) * n * m * net.forward
            if back / rate > work.method_seconds:  # it says so after the first epoch back
                return Scoring(there + back / work.epochs, memory, refused=True)
            return Scoring(there + back, memory)
        case "source":
            segments = int(params.get("segments", 3))
            memory = (segments + 2.0) * FLOAT * m * p
            if memory > work.method_memory:
                return Scoring(refused=True)
            # EK-FAC of each segment from the samples at all its checkpoints; its eigenvectors turn
            # all test gradients twice; and the training gradients are formed at each checkpoint
            once = 8.0 * m * p * net.widths
            flops = segments * (_kronecker_flops(net, n * work.checkpoints // segments) + once)
            flops += work.checkpoints * 1.5 * products
            return Scoring(flops, memory)
        case other:
            models = {"tracin": int(params.get("runs", 1)), "tracin_cp": work.checkpoints}.get(
                other, 1
            )
            factored = net.stacked or params.get("layers") == "last"
            if factored:
                flops = models * ((n + m) * net.train + 2.0 * n * m * net.widths)
            else:  # the training gradients are formed anew for each block of test samples
                blocks = -(-m // max(1, HELD // (FLOAT * p)))
                flops = models * ((blocks * n + m) * net.train + products)
            at_once = min(n, HELD // (FLOAT * p))
            memory = FLOAT * ((n + m) * net.widths + at_once * 8.0 * net.activations)
            return Scoring(flops, memory, gradients=not factored)


def self_influence_job(work: Workload, method: Method, params: dict[str, Scalar]) -> Job:
    """Return what the self-influence by one method takes.

    That of preparing to score where the method has a self-influence of its own; else that of blocks
    of scores, of which the first one says whether all would take too long.
    """
    on, module = HARDWARE[work.hardware], method.module.rpartition(".")
    if module[0] in ("", "leaveout.attribution") and module[2] in OWN_SELF_INFLUENCE:
        size, blocks = 1, 1
    else:  # as leaveout.attribution.self_influence cuts them
        numbers = FLOAT * max(work.n_train, work.network.parameters)
        size = max(1, min(work.n_train, (256 << 20) // numbers))
        blocks = -(-work.n_train // size)
    block = replace(work, n_test=size)
    share = replace(block, method_seconds=work.method_seconds / blocks)
    refused = _scoring(share, method, params).refused
    job = score_job(share if refused else block, method, params)
    one = job.seconds - on.start
    all_of_them = one if refused or blocks * one > work.method_seconds else blocks * one
    return replace(job, seconds=on.start + all_of_them, disk=12.0 * work.n_train)


def feature_jobs(work: Workload, projection: int) -> list[Job]:
    """Return what projecting the gradients of all samples takes, one pass for each model.

    Each job holds some full and half models: (train + test) samples x ``projection`` numbers of
    each, by a dense projection (TRAK, arXiv:2303.14186).
    """
    net, on = work.network, HARDWARE[work.hardware]
    samples = work.n_train + work.n_test
    rate = on.linear if net.stacked else on.other
    seconds = samples * (net.train + 2.0 * net.parameters * projection) / rate
    one = float(FLOAT) * samples * projection
    memory = on.memory + 2 * _data_bytes(work) + 3 * FLOAT * net.state
    return [
        Job(on.start + size * seconds, memory + 3 * size * one, size * one, on.gpus, size)
        for size in cut(work.full + work.half, timed_size(seconds, 50))
    ]


def product_job(work: Workload, projection: int) -> Job:
    """Return what one score matrix takes that is a product of projected gradients, on a CPU."""
    matrix, models = float(FLOAT) * work.n_train * work.n_test, work.full + work.half
    features = float(FLOAT) * (work.n_train + work.n_test) * projection
    products = 2.0 * work.n_train * projection * (work.n_test + projection)
    return Job(
        seconds=CPU.start + models * (products / CPU.other + features / 1e9),
        memory=CPU.memory + 3 * features + 4 * matrix,
        disk=matrix + 8.0 * (work.n_train + work.n_test),
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
