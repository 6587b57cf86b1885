"""The configuration: a closed schema, its defaults, and errors that name the key.

Three kinds of file: ``config/config.yaml`` (which settings, methods and metrics),
``config/settings/NAME.yaml`` (one setting each) and ``config/methods.yaml`` (methods and their
grids). The models below are the schema: an unknown or mistyped key is an error that names the key
and the nearest valid one. The workflow, the command line and the editor schema all use them.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from leaveout import costs
from leaveout.data.catalogue import DATASETS, Name
from leaveout.errors import LeaveoutError
from leaveout.subset_file import Subsets, read_subsets

MAX_CHUNKS = 2000
"""Upper bound on the chunks of one layer: each is a job and a file."""

NAME = re.compile(r"[a-z][a-z0-9_]*")


_M = TypeVar("_M", bound=BaseModel)


class ConfigError(LeaveoutError):
    """A configuration that does not fit the schema."""


class _Closed(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class LabelNoise(_Closed):
    """Training labels flipped on purpose, for mislabel detection."""

    fraction: float = Field(gt=0, le=1)
    """Part of the training labels that is flipped, each to another class, all being equally likely;
    drawn from `seed` and the data set's name, so that settings with the same noise on the same
    training samples share the flips. Their ids are kept in the prepared file."""


class Dataset(_Closed):
    """Which samples, and how they are normalised."""

    name: Name
    """Data set, see leaveout.data."""
    source: Literal["bundled", "hub", "idx"] = "bundled"
    """`bundled` ships with the package and needs no network; `hub` downloads the pinned files
    (mnist); `idx` reads the official ones from the folder that LEAVEOUT_MNIST_IDX_DIR or
    LEAVEOUT_FASHION_MNIST_IDX_DIR names."""
    classes: tuple[int, ...] | None = None
    """Only samples of these classes, labelled 0, 1, ... in the order given here; by default all."""
    n_train: int = Field(gt=1)
    """Training samples: the first ones, in file order (of the classes asked for)."""
    n_test: int = Field(gt=3)
    """Test samples: the first ones, in file order (of the classes asked for)."""
    label_noise: LabelNoise | None = None
    """Flipped training labels; by default none."""
    mean: float = 0.0
    """Subtracted from the inputs, after scaling them to [0, 1]."""
    std: float = Field(default=1.0, gt=0)
    """The inputs are divided by it."""

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
        last = DATASETS[name].classes - 1
        for found in classes:
            if not 0 <= found <= last:
                raise ValueError(
                    f"{name} has no class {found}; the nearest is {min(max(found, 0), last)}. "
                    f"Valid: 0 to {last}"
                )
        if len(classes) < 2 or len(set(classes)) != len(classes):
            raise ValueError(f"the classes must be distinct, and two at least; got {classes}")
        return classes

    @field_validator("label_noise")
    @classmethod
    def _noise_is_some(cls, noise: LabelNoise | None, info: ValidationInfo) -> LabelNoise | None:
        n_train = info.data.get("n_train")
        if noise and n_train and not round(noise.fraction * n_train):
            raise ValueError(f"fraction: {noise.fraction} of {n_train} samples is none")
        return noise

    @property
    def n_classes(self) -> int:
        """How many classes the samples have, and a model outputs."""
        return DATASETS[self.name].classes if self.classes is None else len(self.classes)


class Linear(_Closed):
    """Logistic regression."""

    name: Literal["linear"]
    """One linear layer on the flattened input."""


class MLP(_Closed):
    """Multi-layer perceptron."""

    name: Literal["mlp"]
    """Linear layers with ReLU, dropout after each hidden one."""
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """Width of each hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping a hidden unit."""


class CNN(_Closed):
    """Small convolutional network."""

    name: Literal["cnn"]
    """3x3 convolutions with ReLU and 2x2 pooling, then one linear layer."""
    channels: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """Output channels of each block."""
    batch_norm: bool = False
    """Whether a batch norm follows each convolution."""


Model = Linear | MLP | CNN


class Recipe(_Closed):
    """How one model is trained; the loss is the mean cross-entropy over the batch."""

    optimizer: Literal["sgd"] = "sgd"
    """Stochastic gradient descent, as torch.optim.SGD defines it."""
    learning_rate: float = Field(gt=0)
    """Constant step size."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum factor."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty added to the gradient."""
    epochs: int = Field(gt=0)
    """Passes over the training samples."""
    batch_size: int = Field(gt=0)
    """Samples per step; the last batch of an epoch may be smaller."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`float32` means float32 everywhere, TensorFloat-32 is off; `bfloat16` runs forward and
    backward of training in bfloat16 (autocast), with weights and optimiser in float32."""


# Told apart by hand, so that a wrong value gets one error and not one for each alternative.
Chunk = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[int, Field(gt=0), Tag("count")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "count"),
]


class Full(_Closed):
    """Models trained on all training samples."""

    runs: int = Field(default=10, gt=0)
    """Runs, each with its own initialisation and order."""
    checkpoints: int = Field(default=10, gt=0)
    """Checkpoints kept along each trajectory, evenly spaced in epochs, the last one final."""
    chunk: Chunk = "auto"
    """Models per job; `auto` sizes jobs by time, see `hardware`."""


class Half(_Closed):
    """Models trained on a random part of the training samples, for methods that ensemble."""

    runs: int = Field(default=50, gt=0)
    """Runs, each on its own subset, with its own initialisation and order."""
    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Size of a subset as a fraction of the training samples."""
    chunk: Chunk = "auto"
    """Models per job; `auto` sizes jobs by time, see `hardware`."""


Pairing = Literal["none", "drop", "mask"]


def _read_own(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    subsets = read_subsets(value, (info.context or {}).get("folder", Path("config")))
    if len(subsets) < 3:
        raise ValueError(f"{value}: {len(subsets)} subsets, three are the least to correlate over")
    return subsets


OwnSubsets = Annotated[
    Annotated[int, Field(gt=2), Tag("count")] | Annotated[Subsets, Tag("file")],
    Discriminator(lambda value: "file" if isinstance(value, Subsets | dict) else "count"),
    BeforeValidator(_read_own),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 2}, {"type": "string"}]}),
]


class LDS(_Closed):
    """Retraining on subsets, for the linear datamodeling score."""

    subsets: OwnSubsets = 100
    """Subsets drawn, or the file of your own: a path from the configuration folder, one subset a
    line, the ids it keeps separated by spaces or commas. More of them later leave those that are
    trained as they are."""
    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Size of a subset drawn, as a fraction of the training samples; not with a file."""
    runs: int = Field(default=2, gt=0)
    """Models per subset; two or more give a noise ceiling. More of them later train no other."""
    pairing: Literal["none", "drop"] = "none"
    """`none`: independent initialisation and order. `drop`: run r of every subset is full run r
    with the other ids taken out of its order (same initialisation, what stays is batched anew)."""
    chunk: Chunk = "auto"
    """Subsets per job, which trains one run of each; `auto` sizes jobs by time, see `hardware`."""

    @model_validator(mode="after")
    def _ratio_is_of_drawn_ones(self) -> Self:
        if self.own and "ratio" in self.model_fields_set:
            raise ValueError(
                f"ratio: the subsets of {self.own.file} have sizes of their own; remove ratio"
            )
        return self

    @property
    def own(self) -> Subsets | None:
        """The subsets of the user's file, if they are not drawn."""
        return self.subsets if isinstance(self.subsets, Subsets) else None

    @property
    def count(self) -> int:
        """How many subsets there are."""
        return self.subsets if isinstance(self.subsets, int) else len(self.subsets)


class FirstIds(_Closed):
    """The first ids of the training slice."""

    first: int = Field(gt=1)
    """How many."""


class SpacedIds(_Closed):
    """Ids at even distances in the training slice: a sorted data set does not mislead."""

    spaced: int = Field(gt=1)
    """How many, at most."""


def _distinct(ids: Any) -> Any:
    if isinstance(ids, tuple) and (not ids or len(set(ids)) != len(ids)):
        raise ValueError("the ids must be distinct, and one at least")
    return ids


Ids = Annotated[Literal["all"] | FirstIds | SpacedIds | tuple[int, ...], AfterValidator(_distinct)]


def _spaced(ids: Sequence[int], most: int) -> tuple[int, ...]:
    """Return so many of the ids, at even distances; all of them if they are no more."""
    count = min(most, len(ids))
    return tuple(ids[len(ids) * i // count] for i in range(count))


class LOO(_Closed):
    """Retraining with one sample left out."""

    ids: Ids = "all"
    """Which samples are left out, one at a time: `all`, `{first: n}`, `{spaced: n}` (so many at
    most, evenly spaced), or a list of ids: places in the training slice, counted from 0 (with
    `dataset.classes`, among the samples of these)."""
    pairing: Pairing = "mask"
    """`mask`: the full run with the id taken out of its batch, all else equal. `drop`: the same
    initialisation and order, what stays is batched anew. `none`: independent initialisation and
    order."""
    shuffle: bool = True
    """Whether the order is shuffled every epoch; false keeps file order."""
    replicate: int = Field(default=500, ge=0)
    """So many ids, evenly spaced, get a second run, for the noise ceiling."""
    second: Literal["seed", "nudge"] = "seed"
    """What the second run is. `seed`: another one, with another initialisation and order; the
    ceiling then holds for what can be said without knowing the run. `nudge`: the same one, its
    initial weights moved by a millionth of their size; the ceiling then holds for methods that see
    the very run, and says what training makes of rounding errors."""
    chunk: Chunk = "auto"
    """Samples per job; `auto` sizes jobs by time, see `hardware`."""


class PBRF(_Closed):
    """Proximal Bregman response: a full model moved to the minimum without one sample."""

    ids: Ids = SpacedIds(spaced=500)
    """Which samples are taken out, one at a time: `all`, `{first: n}`, `{spaced: n}` (so many at
    most, evenly spaced), or a list of ids."""
    damping: float = Field(default=1e-3, gt=0)
    """Weight of half the squared distance from the full model; the damping of an influence
    function with the Gauss-Newton matrix of the mean loss."""
    solver: Literal["newton_cg", "sgd", "adam"] = "newton_cg"
    """`newton_cg`: Newton's method by conjugate gradients. `sgd`, `adam`: plain steps."""
    steps: int = Field(default=50, gt=0)
    """Steps at most; a point that has not converged by then is reported and not counted."""
    tolerance: float = Field(default=1e-4, gt=0)
    """A point has converged when the norm of its objective's gradient has fallen to so small a part
    of what it was at the full model."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Step size of the plain steps."""
    replicate: int = Field(default=100, ge=0)
    """So many of the points, evenly spaced, are solved from full run 1 too, for the ceiling; none
    where there is one full run."""
    chunk: Chunk = "auto"
    """Samples per job; `auto` sizes jobs by time, see `hardware`."""


class Brittleness(_Closed):
    """Retraining without the training samples that a method calls most helpful to a test sample."""

    n_test: int = Field(default=50, gt=0)
    """Test samples, at most: drawn from those of the reported half that the full models classify
    correctly (`runs` of them, by their mean margin). More of them later keep these."""
    k: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    """How many training samples are taken out, the most helpful first; one training for each."""
    runs: int = Field(default=3, gt=0)
    """Full runs that are trained again without them: same initialisation and order, what stays is
    batched anew. Outcomes are means over runs."""

    @field_validator("k")
    @classmethod
    def _ascending(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if list(k) != sorted(set(k)):
            raise ValueError(f"must ascend, each number once; got {list(k)}")
        return k


class Attribution(_Closed):
    """What a method may use to score this setting, for each choice of its hyper-parameters.

    It is part of what is compared: a method that needs more has no value, and the tables say why.
    """

    memory_gb: float = Field(default=8, gt=0)
    """Memory in GB, beside the data and the trained models."""
    hours: float = Field(default=2, gt=0)
    """Time in hours."""


class Setting(_Closed):
    """Data set, model, recipe and sizes: all that decides the ground truth."""

    name: str
    """Taken from the file's name."""
    seed: int = Field(default=0, ge=0)
    """Root of every random stream of the setting."""
    hardware: Literal["cpu", "gpu"] = "cpu"
    """What `chunk: auto` sizes jobs for (5 minutes or more, less where trainings are short): one
    CPU core, or one GPU. It decides where chunks begin and end, not where they run, and no result;
    but models whose chunk has moved are trained again."""
    dataset: Dataset
    """Which samples."""
    model: Model = Field(discriminator="name")
    """Which architecture."""
    recipe: Recipe
    """How it is trained."""
    full: Full = Full()
    """Models on all samples."""
    half: Half = Half()
    """Models on random halves."""
    lds: LDS = LDS()
    """Retraining on subsets."""
    loo: LOO = LOO()
    """Retraining with one sample left out."""
    pbrf: PBRF = PBRF()
    """Full models moved to where a sample's absence would have them."""
    attribution: Attribution = Attribution()
    """What a method may use."""
    brittleness: Brittleness | None = None
    """Retraining without a method's most helpful samples; by default none."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        n_train = self.dataset.n_train
        for name, ids in (("loo", self.loo.ids), ("pbrf", self.pbrf.ids)):
            if isinstance(ids, tuple):
                outside = [i for i in ids if not 0 <= i < n_train]
                if outside:
                    raise ValueError(
                        f"{name}.ids: {outside[:5]} lie outside the training slice "
                        f"0..{n_train - 1} (dataset.n_train); remove them or enlarge the slice"
                    )
            if isinstance(ids, FirstIds) and ids.first > n_train:
                raise ValueError(
                    f"{name}.ids.first: {ids.first} is more than dataset.n_train = {n_train}"
                )
        if own := self.lds.own:
            for place, last in zip(own.places, own.largest, strict=True):
                if last >= n_train:
                    raise ValueError(
                        f"lds.subsets: {own.file}, line {place}: the id {last} lies outside the "
                        f"training slice 0..{n_train - 1} (dataset.n_train)"
                    )
        for section, ratio in (("lds", self.lds.ratio), ("half", self.half.ratio)):
            if int(n_train * ratio) < 1:
                raise ValueError(f"{section}.ratio: {ratio} of {n_train} samples is none")
        if self.brittleness and self.brittleness.k[-1] >= n_train:
            raise ValueError(
                f"brittleness.k: {self.brittleness.k[-1]} leaves nothing of dataset.n_train = "
                f"{n_train}"
            )
        if self.brittleness and self.brittleness.runs > self.full.runs:
            raise ValueError(
                f"brittleness.runs: {self.brittleness.runs} is more than full.runs = "
                f"{self.full.runs}, which they are compared with"
            )
        if self.full.checkpoints > self.recipe.epochs:
            raise ValueError(
                f"full.checkpoints: {self.full.checkpoints} is more than recipe.epochs = "
                f"{self.recipe.epochs}"
            )
        self._chunks_are_few()
        return self

    def _chunks_are_few(self) -> None:
        work = costs.workload(self)
        for section in costs.LAYERS:
            counts = costs.parts(work, section)
            if len(counts) > MAX_CHUNKS:  # before they are counted one by one
                raise ValueError(
                    f"{section}.runs: {len(counts)} runs need a job each at least, at most "
                    f"{MAX_CHUNKS} are allowed"
                )
            jobs = len(costs.chunk_sizes(work, section))
            if jobs <= MAX_CHUNKS:
                continue
            size, total = getattr(self, section).chunk, sum(counts)
            enough = -(-total // (MAX_CHUNKS + 1 - len(counts)))
            if size != "auto":
                raise ValueError(
                    f"{section}.chunk: {total} in chunks of {size} need {jobs} jobs, at most "
                    f"{MAX_CHUNKS} are allowed; set {section}.chunk to at least {enough}"
                )
            hours = total * costs.item_seconds(work, section) / 3600
            raise ValueError(
                f"{section}.chunk: {total} take about {hours:.0f} hours (hardware: "
                f"{self.hardware}), {jobs} jobs by time; at most {MAX_CHUNKS} are allowed. Ask for "
                f"fewer, name faster hardware, or set {section}.chunk to at least {enough}"
            )

    def removed(self, layer: Literal["loo", "pbrf"]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids to take out, in order, and those of them that get a second run."""
        section = self.loo if layer == "loo" else self.pbrf
        everything = range(self.dataset.n_train)
        match section.ids:
            case "all":
                ids = tuple(everything)
            case FirstIds(first=first):
                ids = tuple(range(first))
            case SpacedIds(spaced=most):
                ids = _spaced(everything, most)
            case tuple(listed):
                ids = listed
        again = layer == "loo" or self.full.runs > 1  # PBRF starts from a full run
        return ids, _spaced(ids, section.replicate) if again else ()

    def checkpoint_epochs(self) -> tuple[int, ...]:
        """Return after which epochs (counted from 1) a full run keeps a checkpoint."""
        kept, epochs = self.full.checkpoints, self.recipe.epochs
        return tuple(-(-epochs * (i + 1) // kept) for i in range(kept))


def _kind_of_methods(value: Any) -> str:
    return "grids" if isinstance(value, dict) else "every" if isinstance(value, str) else "names"


Methods = Annotated[
    Annotated[Literal["all"], Tag("every")]
    | Annotated[tuple[str, ...], Tag("names")]
    | Annotated[dict[str, Any], Tag("grids")],
    Discriminator(_kind_of_methods),
]

Metric = Literal[
    "lds",
    "loo",
    "pbrf",
    "lds_pearson",
    "lds_kendall",
    "loo_kendall",
    "loo_topk",
    "auc",
    "brittleness",
]


def _named_once(names: Any) -> Any:
    if isinstance(names, tuple) and len(set(names)) != len(names):
        raise ValueError(f"{', '.join(names)}: a name stands there twice")
    return names


def _kind_of_settings(value: Any) -> str:
    return "by_setting" if isinstance(value, dict) else "names"


Metrics = Annotated[tuple[Metric, ...], Field(min_length=1), AfterValidator(_named_once)]
Settings = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1), Tag("names")]
    | Annotated[dict[str, Metrics | None], Field(min_length=1), Tag("by_setting")],
    Discriminator(_kind_of_settings),
]


class Config(_Closed):
    """Which settings, methods and metrics the tables show."""

    settings: Settings
    """Names of files in config/settings, without the ending. As a mapping, metrics given to a
    setting replace `metrics`; one without any keeps them."""
    methods: Methods = "all"
    """Entries of config/methods.yaml, or `all`. As a mapping, hyper-parameters given to an entry
    replace its grid; one without any keeps it."""
    grids: dict[str, dict[str, Any]] = {}
    """By setting: entries of config/methods.yaml with other hyper-parameters, for this setting."""
    metrics: Metrics = ("lds", "loo")
    """Which metrics. `auc` (finding flipped labels by self-influence) is made for the settings with
    `dataset.label_noise`, `brittleness` for those with that section, the others for all."""
    brittleness: tuple[str, ...] | None = None
    """Methods whose most helpful samples are taken out for the metric `brittleness`, of those that
    are shown; by default all. `random` among them is what the others are compared with."""
    top_k: int = Field(default=10, gt=0)
    """How many samples `loo_topk` looks at: the share of the so many that matter most when left out
    that are among a method's so many highest scores."""
    subgroups: bool = False
    """Whether LDS and LOO are also shown by class of the test sample, and by how sure the full
    models are of it."""
    compare: tuple[str, str] | None = None
    """Two methods: how narrow the intervals of their LDS and of its difference get with more
    subsets and runs. Nothing is made of it where `methods` leaves out one of them."""
    show: tuple[str, ...] | None = None
    """Methods whose supporters, opponents and most self-influential samples are pictured; by
    default one of each kind that `methods` has, by an empty list none. Those that `methods` leaves
    out are left out here."""
    bootstrap: int = Field(default=1000, ge=10)
    """Bootstrap draws of every interval."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where models are trained and scored; decides no more than rounding."""

    def metrics_of(self, setting: str) -> tuple[Metric, ...]:
        """Return the metrics asked for of a setting."""
        own = self.settings.get(setting) if isinstance(self.settings, dict) else None
        return self.metrics if own is None else own

    _once = field_validator("settings", "methods", "compare", "show", "brittleness")(_named_once)


Scalar = bool | int | float | str


class Method(_Closed):
    """A method: one file in leaveout.attribution, and the hyper-parameters to try."""

    name: str
    """The entry's name."""
    module: str
    """The Python module that implements it."""
    grid: tuple[dict[str, Scalar], ...]
    """Every combination of hyper-parameters, in the order of the file."""
    needs: tuple[str, ...] = ("full",)
    """Which models it uses: `full`, `half`; the module's NEEDS."""


def nearest(word: str, valid: Sequence[str], cutoff: float = 0.5) -> str:
    """Return the end of an error that says what might be meant, and what there is.

    Args:
        word: What is unknown.
        valid: What there is.
        cutoff: How alike the nearest must be to be named: 0 for always, 1 for equal.
    """
    close = difflib.get_close_matches(word, valid, n=1, cutoff=cutoff)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} Valid: {', '.join(valid) or 'none'}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Follow a pydantic error location down the schema and list the keys valid there."""
    current: Any = model
    for step in location:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            break
        field = current.model_fields.get(str(step))
        if field is None:
            continue
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        tags = [m for m in models if "name" in m.model_fields and set(location[1:2]) & {*_tags(m)}]
        current = next(iter(tags or models), None)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [
            name for name in current.model_fields if not (current is Setting and name == "name")
        ]
    return []


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    return getattr(model.model_fields["name"].annotation, "__args__", ())


_TAGS = ("linear", "mlp", "cnn", "auto", "count", "file", "every", "names", "grids", "by_setting")
"""Alternatives that pydantic names in a location, though no file has them as keys."""


def _explain(error: ValidationError, model: type[BaseModel], where: Path | str) -> ConfigError:
    lines = []
    for item in error.errors():
        location = item["loc"]
        key = ".".join(str(step) for step in location if step not in _TAGS)
        if item["type"] == "extra_forbidden":
            valid = _fields_at(model, location[:-1])
            text = f"{key}: unknown key{nearest(str(location[-1]), valid)}"
        elif item["type"] == "literal_error" and isinstance(item["input"], str):
            valid = re.findall(r"'([^']*)'", item["ctx"]["expected"])
            text = f"{key}: unknown value {item['input']!r}{nearest(item['input'], valid)}"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            text = f"{key}: {message}" if key else message
        else:
            text = f"{key}: {item['msg']} (got {item['input']!r})"
        lines.append(text)
    return ConfigError(f"{where}: " + f"\n{where}: ".join(dict.fromkeys(lines)))


def _validate(
    model: type[_M], values: Mapping[str, Any], where: Path | str, folder: Path | None = None
) -> _M:
    try:
        return model.model_validate(values, context={"folder": folder} if folder else None)
    except ValidationError as error:
        raise _explain(error, model, where) from error


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error; by itself the last one wins, silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, refusing repeated keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys and values, refusing repeated keys.

    Raises:
        ConfigError: The file is missing, or is something else.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        others = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(f"{path}: no such file{nearest(path.stem, others)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def load_setting(path: Path | str) -> Setting:
    """Load one setting; its name is the file's.

    Raises:
        ConfigError: The file is missing or does not fit the schema.
    """
    path = Path(path)
    values = load_yaml(path)
    if "name" in values:
        raise ConfigError(f"{path}: name: unknown key; a setting is named by its file")
    if not NAME.fullmatch(path.stem):
        raise ConfigError(f"{path}: a setting's name has lower-case letters, digits and _ only")
    return _validate(Setting, {"name": path.stem, **values}, path, path.parent.parent)


def parse_config(values: Mapping[str, Any], where: Path | str = "config") -> Config:
    """Check the top-level configuration.

    Raises:
        ConfigError: It does not fit the schema.
    """
    return _validate(Config, values, where)


@cache
def _signature(module: str) -> tuple[dict[str, tuple[str, bool]], tuple[str, ...]]:
    """Return what a method's file says of it, without importing it (and torch with it).

    Returns:
        The keyword-only parameters of its ``attribute``, name -> (type, has a default), and its
        ``NEEDS``.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"{spec.origin}: line {error.lineno}: {error.msg}") from error
    needs: tuple[str, ...] = ("full",)
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "NEEDS":
            needs = tuple(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    unknown = set(needs) - {"full", "half"}
    if unknown:
        raise ConfigError(f"{spec.origin}: NEEDS: unknown {sorted(unknown)}. Valid: full, half")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "attribute":
            takes = {
                arg.arg: (
                    ast.unparse(arg.annotation) if arg.annotation else "str",
                    value is not None,
                )
                for arg, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            }
            return takes, needs
    raise ConfigError(
        f"{spec.origin}: defines no function 'attribute'; see the README, add a method"
    )


def _coerce(value: Any, kind: str, where: str) -> Scalar:
    """Convert a YAML scalar to the type a method declares (YAML reads 1e-3 as text)."""
    types: dict[str, type] = {"float": float, "int": int, "str": str, "bool": bool}
    wanted = types.get(kind, str)
    try:
        if isinstance(value, bool) != (wanted is bool) or isinstance(value, list | dict):
            raise ValueError
        converted = wanted(value)
        if wanted is int and converted != float(value):
            raise ValueError
        if wanted is float and not math.isfinite(converted):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: expected {kind}, got {value!r}") from error
    return converted  # type: ignore[no-any-return]


def load_methods(path: Path | str) -> dict[str, Method]:
    """Load the methods and expand their grids.

    An entry is ``NAME: {hyper-parameter: value or list of values}``; the code is
    ``leaveout.attribution.NAME`` unless the entry names a ``module``.

    Raises:
        ConfigError: A module is missing, or a hyper-parameter is not one its ``attribute`` takes.
    """
    path = Path(path)
    methods = {}
    for name, entry in load_yaml(path).items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"{path}: {name}: a method's name has lower-case letters, digits and _"
            )
        values = _hyper_parameters(entry, f"{path}: {name}")
        module = values.pop("module", f"leaveout.attribution.{name}")
        try:
            takes, needs = _signature(module)
        except (ImportError, ValueError, AttributeError) as error:  # not there, or no module's name
            hint = "" if "module" in (entry or {}) else nearest(name, _known_methods())
            raise ConfigError(f"{path}: {name}: no module {module}{hint}") from error
        for key in values:
            if key not in takes:
                raise ConfigError(
                    f"{path}: {name}.{key}: unknown key{nearest(key, ['module', *takes])}"
                )
        grid = _grid(module, values, f"{path}: {name}")
        methods[name] = Method(name=name, module=module, grid=grid, needs=needs)
    return methods


def _hyper_parameters(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict | None):
        raise ConfigError(f"{where}: expected hyper-parameters, got {entry!r}")
    return {str(key): value for key, value in (entry or {}).items()}


def _grid(module: str, values: Mapping[str, Any], where: str) -> tuple[dict[str, Scalar], ...]:
    """Expand a grid of hyper-parameters, checked against what a method's ``attribute`` takes."""
    takes, _ = _signature(module)
    for key in values:
        if key not in takes:
            raise ConfigError(f"{where}.{key}: unknown key{nearest(key, list(takes))}")
    for key, (_, has_default) in takes.items():
        if key not in values and not has_default:
            raise ConfigError(f"{where}.{key}: missing, {module} needs it")
    axes = [
        [
            (key, _coerce(value, takes[key][0], f"{where}.{key}"))
            for value in (given if isinstance(given, list) else [given])
        ]
        for key, given in values.items()
    ]
    grid = tuple(dict(point) for point in itertools.product(*axes))
    labels = [label(point) for point in grid]
    if len(set(labels)) != len(labels) or not grid:
        raise ConfigError(f"{where}: the grid is empty or repeats a value")
    for odd in (text for text in labels if not re.fullmatch(r"[\w.=+-]+", text)):
        raise ConfigError(
            f"{where}: {odd!r} is to be part of a file's name, and of commands on a "
            "cluster: only letters, digits and _.-+ can stand in a value"
        )
    return grid


def _known_methods() -> list[str]:
    spec = importlib.util.find_spec("leaveout.attribution")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path.stem for path in folder.glob("*.py"))
    return [name for name in found if _is_method(f"leaveout.attribution.{name}")]


def _is_method(module: str) -> bool:
    try:
        _signature(module)
    except ConfigError:
        return False
    return True


def label(params: Mapping[str, Scalar]) -> str:
    """Return the name of a grid point, as used in paths and tables, e.g. ``damping=0.01``.

    Parameters are joined by ``+``: Snakemake takes a wildcard apart at commas when it hands a job
    to a cluster (``--target-jobs``), and the job fails.
    """
    return "+".join(f"{key}={_text(value)}" for key, value in params.items()) or "default"


def _text(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid_point(method: Method, text: str) -> dict[str, Scalar]:
    """Return the hyper-parameters that a label names: of the grid, or any that the method takes.

    A configuration may replace a grid, so that a label is not always one of ``methods.yaml``'s.

    Raises:
        ConfigError: The label is of neither kind.
    """
    for params in method.grid:
        if label(params) == text:
            return params
    parts = [] if text == "default" else split_label(text)
    values: dict[str, Any] = {key: value for key, _, value in (p.partition("=") for p in parts)}
    takes, _ = _signature(method.module)
    for key in values:
        if takes.get(key, ("", False))[0] == "bool":
            values[key] = {"True": True, "False": False}.get(values[key], values[key])
    try:
        (params,) = _grid(method.module, values, method.name)
    except ConfigError as error:
        known = ", ".join(label(params) for params in method.grid)
        raise ConfigError(
            f"{method.name} has no grid point {text!r} ({error}); known: {known}"
        ) from error
    return params


def split_label(text: str) -> list[str]:
    """Take a label apart; a number may have a plus of its own, as in ``damping=1e+06``."""
    return re.split(r"\+(?=[A-Za-z_]\w*=)", text)


def select_methods(
    config: Config, methods: Mapping[str, Method], setting: str = ""
) -> list[Method]:
    """Return the methods the configuration asks for, in its order, with the grids it gives them.

    Args:
        config: The configuration.
        methods: All there are.
        setting: For which setting; the configuration can have grids of its own for it.

    Raises:
        ConfigError: It names an unknown one, or gives one hyper-parameters that it does not take.
    """
    names = list(methods) if config.methods == "all" else list(config.methods)
    grids = {f"grids: {name}": list(given) for name, given in config.grids.items()}
    listed = {
        "methods": names,
        "compare": list(config.compare or ()),
        "show": list(config.show or ()),
        "brittleness": list(config.brittleness or ()),
        **grids,
    }
    for key, wanted in listed.items():
        for name in wanted:
            if name not in methods:
                raise ConfigError(
                    f"config: {key}: unknown method {name!r}{nearest(name, list(methods))}"
                )
    given = config.methods if isinstance(config.methods, dict) else {}
    found = {name: _with_grid(methods[name], given.get(name), "methods") for name in names}
    for name, entry in config.grids.get(setting, {}).items():
        if name in found:
            found[name] = _with_grid(methods[name], entry, f"grids: {setting}")
    return list(found.values())


def _with_grid(method: Method, entry: Any, key: str) -> Method:
    where = f"config: {key}: {method.name}"
    values = _hyper_parameters(entry, where)
    if not values:
        return method
    grid = _grid(method.module, values, where)
    for point in grid:
        # a job is told its point by the label, and reads it back
        if grid_point(method.model_copy(update={"grid": ()}), label(point)) != point:
            raise ConfigError(
                f"{where}: {label(point)} is not quite what was given: six digits at most"
            )
    return method.model_copy(update={"grid": grid})
