"""The nominal hardware that costs are estimated for, and what they depend on of a model."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from leaveout.config import CNN, GPT, MLP, Linear, Model, ResNet9

FLOAT = 4
"""Bytes of a number."""


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


INPUTS = 1024
IMAGE = (3, 32, 32)
"""ASSUMED of samples of the user's own, which are not known before they are prepared."""
UNKNOWN = Network(
    inputs=INPUTS,
    outputs=10,
    parameters=1_000_000,
    forward=2e7,
    activations=100_000,
    modules=50,
    last=512,
)
"""ASSUMED of a model of the user's own, whose code is not run to plan: a million parameters, each
used ten times in a forward pass."""


def network(model: Model, input_shape: tuple[int, ...] | None, n_outputs: int) -> Network:
    """Return what the cost of a model depends on.

    Args:
        model: The architecture section of a setting.
        input_shape: Shape of a sample: channels, height and width of an image; None if unknown.
        n_outputs: Number of outputs.
    """
    inputs = INPUTS if input_shape is None else math.prod(input_shape)
    image = input_shape if input_shape is not None and len(input_shape) == 3 else IMAGE
    match model:
        case Linear():
            return _linear((inputs, n_outputs), dropout=False)
        case MLP():
            return _linear((inputs, *model.hidden, n_outputs), dropout=model.dropout > 0)
        case CNN():
            return _cnn(model.channels, model.batch_norm, image, n_outputs)
        case ResNet9():
            return _resnet9(model.width, image, n_outputs)
        case GPT():
            return _gpt(model)
        case _:
            return replace(UNKNOWN, inputs=inputs, outputs=n_outputs)


def _resnet9(width: int, shape: tuple[int, ...], n_outputs: int) -> Network:
    area, before = shape[1] * shape[2], width
    parameters, norms = 9 * shape[0] * width, width
    first = forward = 2.0 * parameters * area
    activations = 2 * width * area
    for stride in (1, 2, 2):
        area, after = area // stride**2, 2 * before
        block = 9 * before * after + 9 * after * after + before * after
        parameters, norms = parameters + block, norms + 3 * after
        forward += 2.0 * block * area
        activations += 6 * after * area
        before = after
    return Network(
        inputs=math.prod(shape),
        outputs=n_outputs,
        parameters=parameters + 2 * norms + before * n_outputs + n_outputs,
        forward=forward + 2 * before * n_outputs,
        first=first,
        activations=activations,
        modules=30,
        last=before,
        buffers=2 * norms + 10,
    )


def _gpt(model: GPT) -> Network:
    width, tokens = model.width, model.context
    embeddings = model.vocabulary * width * (1 if model.tied else 2) + tokens * width
    biases = (9 * width if model.bias else 0) + (4 if model.bias else 2) * width
    norm = (2 if model.bias else 1) * width
    matrices = model.layers * 12 * width * width + model.vocabulary * width
    # every token looks at every other
    attention = model.layers * 4.0 * tokens * tokens * width
    each = 18 * width + 2 * model.heads * tokens
    return Network(
        inputs=tokens,
        outputs=model.vocabulary * tokens,
        parameters=model.layers * (12 * width * width + biases) + norm + embeddings,
        forward=2.0 * matrices * tokens + attention,
        activations=model.layers * tokens * each,
        modules=3 + 12 * model.layers,
        last=width,
        dropped=tokens * (width + model.layers * (2 * width + model.heads * tokens))
        if model.dropout
        else 0,
    )


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
    channels: tuple[int, ...], batch_norm: bool, shape: tuple[int, ...], n_outputs: int
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
