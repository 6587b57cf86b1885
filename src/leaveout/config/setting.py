"""One setting: all that decides its ground truth, and how its trainings are counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from leaveout.config.loading import (
    NAME,
    NAME_RULE,
    RESERVED,
    Closed,
    ConfigError,
    checked_names,
    load_yaml,
    validate,
)
from leaveout.config.own import Own
from leaveout.config.problem import AnyDataset, AnyModel, AnyObjective, CrossEntropy
from leaveout.config.sections import (
    LDS,
    LOO,
    PBRF,
    Attribution,
    Brittleness,
    FirstIds,
    Full,
    Half,
    Recipe,
    SpacedIds,
    spaced,
)
from leaveout.config.subset_file import subset_size

Layer = Literal["full", "half", "lds", "loo", "pbrf"]
LAYERS: tuple[Layer, ...] = get_args(Layer)

MAX_CHUNKS = 2000
"""Upper bound on the chunks of one layer: each is a job and a file."""

MAX_TRAININGS = 1_000_000
"""Upper bound on the trainings of one layer, which are listed one by one."""

_SIZED_BY: dict[Layer, str] = {
    "full": "runs",
    "half": "runs",
    "lds": "subsets",
    "loo": "ids",
    "pbrf": "ids",
}
"""Which key of a layer says how many trainings it has."""


class Setting(Closed):
    """Data set, model, recipe and sizes: all that decides the ground truth."""

    name: str
    """Taken from the file's name."""
    seed: int = Field(default=0, ge=0)
    """Root of every random stream of the setting."""
    hardware: Literal["cpu", "gpu"] = "cpu"
    """What times are estimated for: one CPU core, or one GPU. It changes no file and no result, and
    says nothing of where jobs run."""
    dataset: AnyDataset
    """Which samples."""
    model: AnyModel
    """Which architecture."""
    objective: AnyObjective = CrossEntropy()
    """What training minimises, and what is attributed; by default plain cross-entropy."""
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
    grids: dict[str, Any] = Field(default={})
    """Methods with other hyper-parameters than in config/methods.yaml, for this setting:
    `METHOD: {hyper-parameter: value or list of values}`. A configuration's own replace these."""

    def __hash__(self) -> int:
        """Settings are keys of caches; grids, being mappings, have no hash."""
        return hash((self.name, self.seed, self.recipe))

    @field_validator("grids")
    @classmethod
    def _names_are_names(cls, grids: dict[str, Any]) -> dict[str, Any]:
        checked_names(grids)
        return grids

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if isinstance(self.dataset, Own) or isinstance(self.objective, Own):
            return self  # what the targets are is known once they are there
        asked, data, count = self.objective.name, self.dataset.name, self.dataset.n_classes
        if count is None and asked != "squared_error":
            raise ValueError(
                f"objective: {asked} takes classes, and the targets of {data} are numbers; set "
                "objective: {name: squared_error}"
            )
        if asked == "binary_cross_entropy" and count != 2:
            raise ValueError(
                f"objective: binary_cross_entropy takes two classes, {data} has {count}; set "
                "objective: {name: cross_entropy}, or choose two dataset.classes"
            )
        if asked in ("token_cross_entropy", "multi_label"):
            raise ValueError(
                f"objective: {asked} takes several targets a sample, {data} has one; set "
                "objective: {name: cross_entropy}"
            )
        weight = getattr(self.objective, "weight", None)
        if weight is not None and len(weight) != count:
            raise ValueError(f"objective.weight: {len(weight)} weights for {count} classes")
        return self

    @property
    def has_classes(self) -> bool:
        """Whether each sample has one class, as far as the objective says; one's own may have."""
        own = isinstance(self.objective, Own)
        return own or self.objective.name in ("cross_entropy", "binary_cross_entropy")

    @model_validator(mode="after")
    def _brittleness_has_classes(self) -> Self:
        if self.brittleness and not self.has_classes:
            raise ValueError(
                "brittleness: it counts predictions that flip to another class, and samples of "
                f"{self.objective.name} have none; remove it"
            )
        return self

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
            if subset_size(n_train, ratio) < 1:
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
        length = self.recipe.epochs or self.recipe.iterations
        if length and self.full.checkpoints > length:
            unit = "epochs" if self.recipe.epochs else "iterations"
            raise ValueError(
                f"full.checkpoints: {self.full.checkpoints} is more than recipe.{unit} = {length}"
            )
        self._trainings_are_few()
        return self

    def _trainings_are_few(self) -> None:
        """Refuse too many, from their number alone: nothing is listed before."""
        if self.lds.runs > MAX_CHUNKS:
            raise ValueError(
                f"lds.runs: {self.lds.runs} runs need a job each at least, at most {MAX_CHUNKS} "
                "are allowed"
            )
        for layer in LAYERS:
            size, counts = getattr(self, layer).chunk, self.counts(layer)
            total = sum(counts)
            if total > MAX_TRAININGS:
                raise ValueError(
                    f"{layer}.{_SIZED_BY[layer]}: {total} trainings, at most {MAX_TRAININGS} are "
                    "allowed; ask for fewer"
                )
            jobs = sum(-(-count // size) for count in counts)
            if jobs > MAX_CHUNKS:
                enough = -(-total // (MAX_CHUNKS + 1 - len(counts)))
                raise ValueError(
                    f"{layer}.chunk: {total} in chunks of {size} need {jobs} jobs, at most "
                    f"{MAX_CHUNKS} are allowed; set {layer}.chunk to at least {enough}"
                )

    def counts(self, layer: Layer) -> tuple[int, ...]:
        """Return how many trainings each run of a layer has; full and half models are one run."""
        match layer:
            case "full" | "half":
                return (getattr(self, layer).runs,)
            case "lds":
                return (self.lds.count,) * self.lds.runs
            case "loo" | "pbrf":
                count, again = self._pool(layer)[1:]
                return (count, again) if again else (count,)

    def _pool(self, layer: Literal["loo", "pbrf"]) -> tuple[Sequence[int], int, int]:
        """Return the ids that some are taken from, how many are, and how many in a second run."""
        section = self.loo if layer == "loo" else self.pbrf
        pool: Sequence[int] = range(self.dataset.n_train)
        count = len(pool)
        match section.ids:
            case FirstIds(first=count):
                pool = pool[:count]
            case SpacedIds(spaced=most):
                count = min(most, count)
            case tuple(pool):
                count = len(pool)
        has_second_run = layer == "loo" or self.full.runs > 1  # PBRF starts from a full run
        return pool, count, min(section.replicate, count) if has_second_run else 0

    def removed(self, layer: Literal["loo", "pbrf"]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids to take out, in order, and those of them that get a second run."""
        pool, count, again = self._pool(layer)
        ids = spaced(pool, count)
        return ids, spaced(ids, again)

    def checkpoint_epochs(self) -> tuple[int, ...]:
        """Return after which epochs (counted from 1) a full run keeps a checkpoint.

        After which steps, where the recipe says how many `iterations` there are.
        """
        kept, length = self.full.checkpoints, self.recipe.epochs or self.recipe.iterations or 0
        return tuple(-(-length * (i + 1) // kept) for i in range(kept))


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
        raise ConfigError(f"{path}: a setting's name has {NAME_RULE}")
    if path.stem in RESERVED:
        raise ConfigError(f"{path}: results/{path.stem} is there already; choose another name")
    named = {"name": path.stem, **values}
    return validate(Setting, named, path, path.parent.parent, implied=("name",))
