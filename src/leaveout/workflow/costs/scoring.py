"""The costs of scoring: a score matrix of each method, self-influence, projected gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leaveout.config import Method, Scalar
from leaveout.retraining.items import cut
from leaveout.workflow.costs.networks import CPU, FLOAT, HARDWARE, Network
from leaveout.workflow.costs.trainings import Job, Workload, data_bytes, rate, timed_size

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
        seconds=on.start + min(found.flops / rate(work), work.method_seconds) + 4 * matrix / 1e9,
        memory=on.memory
        + 2 * data_bytes(work)
        + 2 * states
        + 4 * written
        + min(taken, work.method_memory),
        disk=matrix + 8.0 * (work.n_train + work.n_test),
        gpus=on.gpus,
    )


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
    net = work.network
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
            adding = 40.0 * FLOAT * p * rate(work) / 10e9
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
            if back / rate(work) > work.method_seconds:  # it says so after the first epoch back
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
    else:  # as leaveout.scoring.self_influence cuts them
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
    seconds = samples * (net.train + 2.0 * net.parameters * projection) / rate(work)
    one = float(FLOAT) * samples * projection
    memory = on.memory + 2 * data_bytes(work) + 3 * FLOAT * net.state
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
