"""The sections of a setting that say what is learnt: data set, model and objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from leaveout.config.catalogue import DATASETS, Name
from leaveout.config.loading import OWN, SHIPPED, Closed, nearest
from leaveout.config.own import Own


class LabelNoise(Closed):
    """Training labels flipped on purpose, for mislabel detection."""

    fraction: float = Field(gt=0, le=1)
    """Part of the training labels that is flipped, each to another class, all being equally likely;
    drawn from `seed` and the data set's name, so that settings with the same noise on the same
    training samples share the flips. Their ids are kept in the prepared file."""


def _some_noise(noise: LabelNoise | None, info: ValidationInfo) -> LabelNoise | None:
    n_train = info.data.get("n_train")
    if noise and n_train and not round(noise.fraction * n_train):
        raise ValueError(f"fraction: {noise.fraction} of {n_train} samples is none")
    return noise


class Dataset(Closed):
    """Which samples, and how they are normalised."""

    name: Name
    """Data set, see leaveout.data. Or give a `module` of your own, with a function `data`."""
    source: Literal["bundled", "hub", "idx"] = "bundled"
    """`bundled` ships with the package, or with scikit-learn, and needs no network; `hub` downloads
    the pinned files (mnist); `idx` reads the official ones from the folder that
    LEAVEOUT_MNIST_IDX_DIR or LEAVEOUT_FASHION_MNIST_IDX_DIR names."""
    classes: tuple[int, ...] | None = None
    """Only samples of these classes, labelled 0, 1, ... in the order given here; by default all."""
    n_train: int = Field(gt=1)
    """Training samples: the first ones, in file order (of the classes asked for). Of tables, which
    have no official split, the first ones of an order drawn once for all."""
    n_test: int = Field(gt=3)
    """Test samples: the first ones, in file order (of the classes asked for). Of tables, the last
    ones of that order."""
    label_noise: LabelNoise | None = None
    """Flipped training labels; by default none."""
    mean: float = 0.0
    """Subtracted from the inputs, after scaling them to [0, 1]. Columns of tables, and targets that
    are numbers, are standardised by their mean and deviation over the training samples instead."""
    std: float = Field(default=1.0, gt=0)
    """The inputs are divided by it."""

    _noise_is_some = field_validator("label_noise")(_some_noise)

    @field_validator("source")
    @classmethod
    def _source_is_there(cls, source: str, info: ValidationInfo) -> str:
        name = info.data.get("name")  # absent if it is wrong itself
        if name and source not in DATASETS[name].sources:
            raise ValueError(
                f"{name} has no source {source!r}{nearest(source, [*DATASETS[name].sources])}"
            )
        return source

    @field_validator("classes")
    @classmethod
    def _classes_are_there(
        cls, classes: tuple[int, ...] | None, info: ValidationInfo
    ) -> tuple[int, ...] | None:
        name = info.data.get("name")
        if classes is None or not name:
            return classes
        count = DATASETS[name].classes
        if count is None:
            raise ValueError(f"{name} has none: its targets are numbers")
        last = count - 1
        for found in classes:
            if not 0 <= found <= last:
                raise ValueError(
                    f"{name} has no class {found}; the nearest is {min(max(found, 0), last)}. "
                    f"Valid: 0 to {last}"
                )
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise ValueError(f"the classes must be distinct, and two at least; got {classes}")
        return classes

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Self:
        facts = DATASETS[self.name]
        if facts.classes is None and self.label_noise:
            raise ValueError(f"label_noise: {self.name} has no labels: its targets are numbers")
        if facts.full_scale is None and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(f"mean: {self.name} is standardised already; remove mean and std")
        return self

    @property
    def n_classes(self) -> int | None:
        """How many classes the samples have; None where the targets are numbers."""
        return DATASETS[self.name].classes if self.classes is None else len(self.classes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample's input."""
        return DATASETS[self.name].shape

    @property
    def stored(self) -> int:
        """Bytes of one number in the prepared file."""
        return DATASETS[self.name].stored


class OwnDataset(Own):
    """Samples of your own: a module's function `data` returns them, a `leaveout.Split`."""

    FUNCTIONS: ClassVar[Mapping[str, int]] = {"data": 0}
    GIVEN: ClassVar[tuple[str, ...]] = ("n_train", "n_test")

    n_train: int = Field(gt=1)
    """Training samples: the first ones of those that `data` returns."""
    n_test: int = Field(gt=3)
    """Test samples: the first ones of those that `data` returns."""
    label_noise: LabelNoise | None = None
    """Flipped training labels, of targets that are one class a sample; by default none."""

    _noise_is_some = field_validator("label_noise")(_some_noise)

    @property
    def n_classes(self) -> None:
        """How many classes there are: unknown before the data are prepared."""

    @property
    def shape(self) -> None:
        """The shape of a sample's input: unknown before the data are prepared."""

    @property
    def stored(self) -> int:
        """Bytes of one number in the prepared file."""
        return 4


class Linear(Closed):
    """Logistic regression."""

    name: Literal["linear"]
    """One linear layer on the flattened input."""


class MLP(Closed):
    """Multi-layer perceptron."""

    name: Literal["mlp"]
    """Linear layers with ReLU or tanh, dropout after each hidden one."""
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """Width of each hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping a hidden unit."""
    activation: Literal["relu", "tanh"] = "relu"
    """After each hidden layer."""


class CNN(Closed):
    """Small convolutional network."""

    name: Literal["cnn"]
    """3x3 convolutions with ReLU and 2x2 pooling, then one linear layer."""
    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """Output channels of each block."""
    batch_norm: bool = False
    """Whether a batch norm follows each convolution."""


class ResNet9(Closed):
    """Residual network of three basic blocks, as the published CIFAR-2 panel has it."""

    name: Literal["resnet9"]
    """3x3 convolution, three residual blocks with batch norm, global average, one linear layer."""
    width: int = Field(default=64, gt=0)
    """Channels of the first convolution; the blocks have 2, 4 and 8 times as many."""


class GPT(Closed):
    """Causal transformer over token ids."""

    name: Literal["gpt"]
    """Inputs are token ids, (samples, positions); outputs are logits at every position."""
    vocabulary: int = Field(gt=1)
    """How many tokens there are; ids count from 0."""
    context: int = Field(gt=0)
    """Positions, at most."""
    layers: int = Field(default=6, gt=0)
    """Blocks of attention and a perceptron."""
    heads: int = Field(default=6, gt=0)
    """Heads of each attention."""
    width: int = Field(default=384, gt=0)
    """Numbers at each position; a multiple of `heads`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of embeddings, attention and both parts of a block."""
    bias: bool = True
    """Whether linear layers and norms have one."""
    tied: bool = True
    """Whether the last layer's weight is that of the embedding."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is no multiple of heads: {self.heads}")
        return self


class OwnModel(Own):
    """A model of your own: a module's function `model` returns it, a `torch.nn.Module`.

    Its weights are drawn from torch's generator, which is seeded before.
    """

    FUNCTIONS: ClassVar[Mapping[str, int]] = {"model": 0}
    GIVEN: ClassVar[tuple[str, ...]] = ("input_shape", "n_outputs")


_MODEL_KEYS: dict[str, Any] = {"activation": "relu"}
"""Keys that models did not always have, with what they were: left out of identities."""


def model_identity(model: Model) -> dict[str, Any]:
    """Return what a setting says of a model, JSON-able; a module's code is no part of that."""
    if isinstance(model, Own):
        return model.identity()
    values = model.model_dump(mode="json")
    return {k: v for k, v in values.items() if k not in _MODEL_KEYS or v != _MODEL_KEYS[k]}


Measure = Literal["loss", "margin", "log_probability"]


class CrossEntropy(Closed):
    """One class a sample."""

    name: Literal["cross_entropy"] = "cross_entropy"
    """Cross-entropy of one class a sample, the mean over a batch."""
    weight: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Of each class; a batch's loss is divided by the sum of its samples' weights."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target that is spread over all classes."""
    ignore_index: int | None = None
    """Class of samples that do not count; by default all do."""
    measure: Literal["loss", "margin", "logit", "log_probability"] = "loss"
    """What is attributed, of a test sample: its loss, or (negated) the log odds, the logit or the
    log-probability of its class."""


class TokenCrossEntropy(Closed):
    """A class at every position of a sample."""

    name: Literal["token_cross_entropy"]
    """Cross-entropy of a class at every position."""
    reduction: Literal["mean", "sum", "last"] = "mean"
    """`mean`: a batch's loss is the mean over all its tokens, a sample's own the sum over its
    tokens. `sum`: the mean over samples of that sum. `last`: the last token that counts, alone."""
    ignore_index: int = -100
    """Class of positions that do not count, padding for one."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target that is spread over all classes."""
    shift: bool = False
    """Whether position t predicts the target at t + 1, as `transformers` has it."""
    measure: Measure = "loss"
    """What is attributed, of a test sample: its loss, or (negated) the sum of its targets' log odds
    or log-probabilities."""


class SquaredError(Closed):
    """Numbers."""

    name: Literal["squared_error"]
    """Half the squared distance of outputs and targets, summed over a sample's outputs."""


class BinaryCrossEntropy(Closed):
    """One logit a sample."""

    name: Literal["binary_cross_entropy"]
    """Cross-entropy of one logit a sample and targets 0 or 1."""
    pos_weight: float = Field(default=1.0, gt=0)
    """Weight of targets 1."""
    measure: Measure = "loss"
    """What is attributed, of a test sample: its loss, or (negated) the sum of its targets' log odds
    or log-probabilities."""


class MultiLabel(Closed):
    """Labels of which several may hold."""

    name: Literal["multi_label"]
    """Cross-entropy of labels that each hold or not, summed over a sample's labels."""
    pos_weight: float = Field(default=1.0, gt=0)
    """Weight of targets 1."""
    measure: Measure = "loss"
    """What is attributed, of a test sample: its loss, or (negated) the sum of its targets' log odds
    or log-probabilities."""


class OwnObjective(Own):
    """An objective of your own.

    A module's function `objective` returns a `leaveout.Objective`, or a function of outputs and
    targets that gives one loss a sample; or the module has such a function `loss` itself.
    """

    FUNCTIONS: ClassVar[Mapping[str, int]] = {"objective": 0, "loss": 2}


def _form(value: Any) -> str:
    own = isinstance(value, Own) or (isinstance(value, dict) and "module" in value)
    return OWN if own else SHIPPED


def _kind(value: Any) -> Any:
    """Tell the forms of a section apart: by `module`, which is one's own, or by `name`."""
    if _form(value) == OWN:
        return OWN
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


AnyDataset = Annotated[
    Annotated[Dataset, Tag(SHIPPED)] | Annotated[OwnDataset, Tag(OWN)], Discriminator(_form)
]
Model = Linear | MLP | CNN | ResNet9 | GPT | OwnModel
AnyModel = Annotated[
    Annotated[Linear, Tag("linear")]
    | Annotated[MLP, Tag("mlp")]
    | Annotated[CNN, Tag("cnn")]
    | Annotated[ResNet9, Tag("resnet9")]
    | Annotated[GPT, Tag("gpt")]
    | Annotated[OwnModel, Tag(OWN)],
    Discriminator(_kind),
]
NamedObjective = CrossEntropy | TokenCrossEntropy | SquaredError | BinaryCrossEntropy | MultiLabel
AnyObjective = Annotated[
    Annotated[CrossEntropy, Tag("cross_entropy")]
    | Annotated[TokenCrossEntropy, Tag("token_cross_entropy")]
    | Annotated[SquaredError, Tag("squared_error")]
    | Annotated[BinaryCrossEntropy, Tag("binary_cross_entropy")]
    | Annotated[MultiLabel, Tag("multi_label")]
    | Annotated[OwnObjective, Tag(OWN)],
    Discriminator(_kind),
]


def objective_identity(objective: NamedObjective | OwnObjective) -> dict[str, Any]:
    """Return what a setting says of its objective; nothing where it is plain cross-entropy.

    Settings did not always have one.
    """
    if objective == CrossEntropy():
        return {}
    if isinstance(objective, Own):
        return {"objective": objective.identity()}
    return {"objective": objective.model_dump(mode="json", exclude_none=True)}
