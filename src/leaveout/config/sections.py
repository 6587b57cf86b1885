"""The sections of a setting that say how models are trained, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from leaveout.config.loading import Closed
from leaveout.config.subset_file import Subsets, read_subsets

_LATER: dict[str, Any] = {
    "nesterov": False,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "decay": "all",
    "clip": None,
    "schedule": "constant",
    "warmup": 0,
    "final_rate": 0.0,
    "iterations": None,
}
"""Keys that recipes did not always have, with what they were: these are left out of identities."""


class Recipe(Closed):
    """How one model is trained; the loss is the objective's mean over the batch."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """As torch.optim's SGD, Adam or AdamW define it."""
    learning_rate: float = Field(gt=0)
    """Step size, before the schedule."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum factor of `sgd`."""
    nesterov: bool = False
    """Whether `sgd` looks ahead."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradients and their squares, of `adam` and `adamw`."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the averaged squares, of `adam` and `adamw`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty added to the gradient; of `adamw`, decay of the weights themselves."""
    decay: Literal["all", "matrices"] = "all"
    """Which parameters decay: all, or those of two dimensions and more (no biases, no norms)."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of all parameters together; a longer one is scaled down to it
    (torch.nn.utils.clip_grad_norm_). By default none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes from its value to `final_rate` times it over all steps."""
    warmup: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from 0 in a line; the schedule follows."""
    final_rate: float = Field(default=0.0, ge=0, le=1)
    """Part of the learning rate that the schedule ends at; not of `constant`."""
    epochs: int | None = Field(default=None, gt=0)
    """Passes over the training samples; or `iterations`."""
    iterations: int | None = Field(default=None, gt=0)
    """Steps, whatever the number of training samples: passes follow until there are so many."""
    batch_size: int = Field(gt=0)
    """Samples per step; the last batch of an epoch may be smaller."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`float32` means float32 everywhere, TensorFloat-32 is off; `bfloat16` runs forward and
    backward of training in bfloat16 (autocast), with weights and optimiser in float32."""

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("epochs: give either epochs or iterations")
        for key in ("betas", "eps"):
            if self.optimizer == "sgd" and getattr(self, key) != _LATER[key]:
                raise ValueError(f"{key}: sgd has none; it is a key of adam and adamw")
        for key in ("momentum", "nesterov"):
            if self.optimizer != "sgd" and getattr(self, key):
                raise ValueError(f"{key}: {self.optimizer} has none; it is a key of sgd")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it needs a momentum")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {self.betas} do not lie in [0, 1)")
        if self.schedule == "constant" and self.final_rate:
            raise ValueError("final_rate: a constant schedule has none; choose linear or cosine")
        return self

    def identity(self) -> dict[str, Any]:
        """Return all that decides a training, JSON-able."""
        values = self.model_dump(mode="json")
        later = {key: list(v) if isinstance(v, tuple) else v for key, v in _LATER.items()}
        return {k: v for k, v in values.items() if k not in later or v != later[k]}


Chunk = Annotated[int, Field(gt=0)]


class Full(Closed):
    """Models trained on all training samples."""

    runs: int = Field(default=10, gt=0)
    """Runs, each with its own initialisation and order."""
    checkpoints: int = Field(default=10, gt=0)
    """Checkpoints kept along each trajectory, evenly spaced in epochs, the last one final."""
    chunk: Chunk = 10
    """Models per job. `leaveout plan` proposes another size where jobs get long or short."""


class Half(Closed):
    """Models trained on a random part of the training samples, for methods that ensemble."""

    runs: int = Field(default=50, gt=0)
    """Runs, each on its own subset, with its own initialisation and order."""
    ratio: float = Field(default=0.5, gt=0, lt=1)
    """Size of a subset as a fraction of the training samples."""
    chunk: Chunk = 50
    """Models per job. `leaveout plan` proposes another size where jobs get long or short."""


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


class LDS(Closed):
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
    chunk: Chunk = 50
    """Subsets per job, which trains one run of each."""

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


class FirstIds(Closed):
    """The first ids of the training slice."""

    first: int = Field(gt=1)
    """How many."""


class SpacedIds(Closed):
    """Ids at even distances in the training slice: a sorted data set does not mislead."""

    spaced: int = Field(gt=1)
    """How many, at most."""


def _distinct(ids: Any) -> Any:
    if isinstance(ids, tuple) and (not ids or len(set(ids)) != len(ids)):
        raise ValueError("the ids must be distinct, and one at least")
    return ids


Ids = Annotated[Literal["all"] | FirstIds | SpacedIds | tuple[int, ...], AfterValidator(_distinct)]


def spaced(ids: Sequence[int], most: int) -> tuple[int, ...]:
    """Return so many of the ids, at even distances; all of them if they are no more."""
    count = min(most, len(ids))
    return tuple(ids[len(ids) * i // count] for i in range(count))


class LOO(Closed):
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
    chunk: Chunk = 500
    """Samples per job."""


class PBRF(Closed):
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
    chunk: Chunk = 100
    """Samples per job."""


class Brittleness(Closed):
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


class Attribution(Closed):
    """What a method may use to score this setting, for each choice of its hyper-parameters.

    It is part of what is compared: a method that needs more has no value, and the tables say why.
    """

    memory_gb: float = Field(default=8, gt=0)
    """Memory in GB, beside the data and the trained models."""
    hours: float = Field(default=2, gt=0)
    """Time in hours."""
