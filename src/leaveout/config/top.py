"""The top-level configuration: which settings, methods and metrics the tables show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from leaveout.config.loading import (
    RESERVED,
    Closed,
    ConfigError,
    checked_names,
    nearest,
    validate,
)
from leaveout.config.methods import Method, grid_point, hyper_parameters, label, make_grid
from leaveout.config.setting import Setting


def _kind_of_methods(value: Any) -> str:
    return "entries" if isinstance(value, dict) else "every" if isinstance(value, str) else "names"


Methods = Annotated[
    Annotated[Literal["all"], Tag("every")]
    | Annotated[tuple[str, ...], Tag("names")]
    | Annotated[dict[str, Any], Tag("entries")],
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


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    checked_names(names)
    return names


def _kind_of_settings(value: Any) -> str:
    return "by_setting" if isinstance(value, dict) else "names"


Metrics = Annotated[tuple[Metric, ...], Field(min_length=1), AfterValidator(_once)]
Settings = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1), Tag("names")]
    | Annotated[dict[str, Metrics | None], Field(min_length=1), Tag("by_setting")],
    Discriminator(_kind_of_settings),
]


class Config(Closed):
    """Which settings, methods and metrics the tables show."""

    name: str | None = None
    """Tables, figures and pages go to results/NAME; without a name to results. So trying another
    configuration never overwrites the default one's."""
    settings: Settings
    """Names of files in config/settings, without the ending. As a mapping, metrics given to a
    setting replace `metrics`; one without any keeps them."""
    methods: Methods = "all"
    """Entries of config/methods.yaml, or `all`. As a mapping, hyper-parameters given to an entry
    replace its grid; one without any keeps it."""
    grids: dict[str, dict[str, Any]] = Field(default={})
    """By setting: entries of config/methods.yaml with other hyper-parameters, for this setting.
    They replace those that the setting's file has."""
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
    exact: bool = False
    """Whether a result counts as good only where its inputs are bit-identical to those it was made
    from; by default the same specification is enough."""

    def metrics_of(self, setting: str) -> tuple[Metric, ...]:
        """Return the metrics asked for of a setting."""
        own = self.settings.get(setting) if isinstance(self.settings, dict) else None
        return self.metrics if own is None else own

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str | None) -> str | None:
        if name is not None:
            checked_names([name])
        if name in RESERVED:
            raise ValueError(f"results/{name} is there already; choose another name")
        return name

    @field_validator("settings", "methods", "grids", "compare", "show", "brittleness")
    @classmethod
    def _names_are_names(cls, names: Any) -> Any:
        if names is not None and not isinstance(names, str):
            checked_names(names)
        return names


def parse_config(values: Mapping[str, Any], where: Path | str = "config") -> Config:
    """Check the top-level configuration.

    Raises:
        ConfigError: It does not fit the schema.
    """
    return validate(Config, values, where)


def select_methods(
    config: Config, methods: Mapping[str, Method], setting: Setting | None = None
) -> list[Method]:
    """Return the methods the configuration asks for, in its order, with their grids.

    A method's grid is that of ``config/methods.yaml``, unless the setting gives another one, or
    ``methods`` of the configuration does, or its ``grids``: the last one that does, holds.

    Args:
        config: The configuration.
        methods: All there are.
        setting: For which setting; without one, no grids of a setting hold.

    Raises:
        ConfigError: It names an unknown one, or gives one hyper-parameters that it does not take.
    """
    names = list(methods) if config.methods == "all" else list(config.methods)
    given = config.methods if isinstance(config.methods, dict) else {}
    asked = {f"config: grids: {name}": entries for name, entries in config.grids.items()}
    own = {f"{setting.name}: grids": setting.grids} if setting else {}
    listed = {
        **own,
        "config: methods": names,
        "config: compare": config.compare or (),
        "config: show": config.show or (),
        "config: brittleness": config.brittleness or (),
        **asked,
    }
    for key, wanted in listed.items():
        for name in wanted:
            if name not in methods:
                raise ConfigError(f"{key}: unknown method {name!r}{nearest(name, list(methods))}")
    grids = {**own, "config: methods": given}
    if setting and setting.name in config.grids:
        grids[f"config: grids: {setting.name}"] = config.grids[setting.name]
    found = []
    for name in names:
        method = methods[name]
        for key, entries in grids.items():
            method = _with_grid(method, entries.get(name), f"{key}: {name}")
        found.append(method)
    return found


def _with_grid(method: Method, entry: Any, where: str) -> Method:
    values = hyper_parameters(entry, where)
    if not values:
        return method
    grid = make_grid(method.module, values, where)
    for point in grid:
        # a job is told its point by the label, and reads it back
        if grid_point(method.model_copy(update={"grid": ()}), label(point)) != point:
            raise ConfigError(
                f"{where}: {label(point)} is not quite what was given: six digits at most"
            )
    return method.model_copy(update={"grid": grid})
