"""The plan: which jobs a configuration asks for, and which files each reads and makes.

It knows configuration and paths, and imports neither Snakemake nor torch. What a job does is said
in :mod:`leaveout.workflow.steps`; here is what a configuration shows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from leaveout.config import (
    Config,
    ConfigError,
    Method,
    Setting,
    load_methods,
    load_setting,
    nearest,
    parse_config,
    select_methods,
)
from leaveout.config.damping import damped
from leaveout.config.metric_names import PANELS, truth_of
from leaveout.workflow.step import Job, Names, Step, fill

RESULTS = "results"
TRIAL = "trial"
"""Names a configuration with values from the command line, unless these give it a name."""
SHOWN = (
    ("magic",),
    ("if_cg", "if_explicit"),
    ("if_ekfac", "if_kfac"),
    ("trak_50", "trak_10", "trak_1"),
    ("grad_dot",),
    ("feature_cosine",),
)
"""The methods pictured unless the configuration says which: the first available of each group."""


@dataclass(frozen=True)
class Plan:
    """The configured settings, methods and metrics.

    Attributes:
        config: The top-level configuration.
        settings: By name, in order.
        grids: For each setting the methods by name, in order, with its grids.
        steps: The registry of steps.
        folder: The configuration folder, as rules and commands name it.
    """

    config: Config
    settings: dict[str, Setting]
    grids: dict[str, dict[str, Method]]
    steps: Mapping[str, Step]
    folder: str = "config"
    _found: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, values: Mapping[str, Any], folder: Path | str, steps: Mapping[str, Step]) -> Plan:
        """Check the configuration and load all it names.

        Args:
            values: The top-level configuration.
            folder: Holds ``settings`` and ``methods.yaml``.
            steps: The registry of steps.

        Raises:
            ConfigError: Something does not fit the schema.
        """
        config = parse_config(values)
        where = Path(folder)
        settings = {
            name: load_setting(where / "settings" / f"{name}.yaml") for name in config.settings
        }
        _check_metrics(config, settings)
        known = sorted(path.stem for path in (where / "settings").glob("*.yaml"))
        for name in set(config.grids) - set(known):
            raise ConfigError(f"config: grids: unknown setting {name!r}{nearest(name, known)}")
        methods = load_methods(where / "methods.yaml")
        grids = {
            name: {method.name: method for method in select_methods(config, methods, setting)}
            for name, setting in settings.items()
        }
        return cls(config, settings, grids, steps, str(folder))

    # what a configuration shows

    @property
    def methods(self) -> dict[str, Method]:
        """The methods shown, by name, in order; a setting can have other grids of them."""
        return next(iter(self.grids.values()), {})

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics shown as panels, of any setting: with one value for each method."""
        found = (metric for setting in self.settings for metric in self.metrics_of(setting))
        return tuple(dict.fromkeys(found))

    def metrics_of(self, setting: str) -> list[str]:
        """Return the panels of a setting: labels are found only where some were flipped."""
        asked = self.config.metrics_of(setting)
        noisy = self.settings[setting].dataset.label_noise is not None
        return [m for m in asked if m in PANELS and (m != "auc" or noisy)]

    def truths_of(self, setting: str) -> list[str]:
        """Return the ground truths of a setting's metrics: which labels are flipped, is known."""
        metrics = self.metrics_of(setting)
        return list(dict.fromkeys(truth_of(metric) for metric in metrics if metric != "auc"))

    def removing(self, setting: str) -> list[str]:
        """Return the methods whose most helpful samples a setting is trained without."""
        asked = self.config.metrics_of(setting)
        if "brittleness" not in asked or not self.settings[setting].brittleness:
            return []
        wanted = self.config.brittleness
        return [method for method in self.methods if wanted is None or method in wanted]

    def grouped(self, setting: str) -> list[str]:
        """Return the metrics of a setting that are shown by subgroup too: of classes, if any."""
        asked = self.config.subgroups and self.settings[setting].has_classes
        measured = self.metrics_of(setting) if asked else []
        return [metric for metric in ("lds", "loo") if metric in measured]

    def damped(self, setting: str, metric: str) -> list[str]:
        """Return the methods that have a damping to choose for a metric of a setting.

        Only the linear datamodeling score leaves it open: what leave-one-out and PBRF ask for is a
        damping known beforehand (:mod:`leaveout.scoring.damping`).
        """
        asked = metric == "lds" and metric in self.metrics_of(setting)
        return [name for name, method in self.methods.items() if asked and damped(method)]

    def has_choice(self, metric: str) -> bool:
        """Return whether any method has several grid points on a setting with a metric."""
        return any(
            len(method.grid) > 1
            for setting, methods in self.grids.items()
            if metric in self.metrics_of(setting)
            for method in methods.values()
        )

    @property
    def compared(self) -> tuple[str, ...]:
        """The two methods whose LDS is compared, if any are, and both are shown."""
        pair = self.config.compare or ()
        return pair if "lds" in self.metrics and self.methods.keys() >= set(pair) else ()

    @property
    def pictured(self) -> list[str]:
        """The methods whose samples are pictured."""
        if self.config.show is not None:
            return [name for name in self.config.show if name in self.methods]
        first = (next((n for n in kind if n in self.methods), None) for kind in SHOWN)
        return [name for name in first if name]

    # where files lie

    @cached_property
    def folders(self) -> dict[str, str]:
        """Where a configuration's files lie, so that trying one overwrites no other's.

        ``place`` holds what shows several settings: tables, pages, figures. ``home`` holds, in a
        folder for each setting, what is measured: the common one, unless a configuration with a
        name measures otherwise than the shipped files say.
        """
        asked = self.config
        place = f"{RESULTS}/{asked.name}" if asked.name else RESULTS
        usual = type(asked).model_fields
        other = any(getattr(asked, k) != usual[k].default for k in ("bootstrap", "top_k", "grids"))
        grids = isinstance(asked.methods, dict) and any(asked.methods.values())
        # without an LDS to choose by, other samples are taken out
        unchosen = any(self.removing(s) and "lds" not in self.metrics_of(s) for s in self.settings)
        return {"place": place, "home": place if other or grids or unchosen else RESULTS}

    # jobs

    def names(self, step: str, **known: str) -> list[Names]:
        """Return the names of a step's jobs, those with some values or all of them, in order."""
        index = (step, *sorted(known))
        if index not in self._found:
            groups: dict[tuple[str, ...], list[Names]] = {}
            for names in self.steps[step].every(self):
                groups.setdefault(tuple(names[name] for name in sorted(known)), []).append(names)
            self._found[index] = groups
        return list(self._found[index].get(tuple(known[name] for name in sorted(known)), []))

    def files(self, step: str, output: str = "", **known: str) -> list[str]:
        """Return the files that a step's jobs make: one output of each job, in order.

        Args:
            step: The step's name.
            output: Which output; the first one by default.
            known: Values of names, such as the setting; those of all jobs by default.
        """
        outputs = self.steps[step].outputs
        pattern = outputs[output] if output else self.steps[step].pattern
        folders = self.folders
        return [fill(pattern, folders, names) for names in self.names(step, **known)]

    def job(self, step: str, names: Names) -> Job:
        """Return a step's job, with the files it reads and makes."""
        kind = self.steps[step]
        method = self.grids[names["setting"]][names["method"]] if "method" in names else None
        return Job(
            step=kind,
            names={name: names[name] for name in kind.names},
            options={name: option.value(self, names) for name, option in kind.options.items()},
            load=self.settings.__getitem__,
            method=method,
            inputs={name: put.of(self, names) for name, put in kind.inputs.items()},
            outputs={name: fill(path, self.folders, names) for name, path in kind.outputs.items()},
            device=self.config.device,
        )

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs there can be, each after those that make its inputs."""
        return [self.job(step, names) for step in self.steps for names in self.names(step)]

    def shown(self, *kinds: str) -> list[str]:
        """Return what people look at: tables, pages and figures, or only some kinds of them."""
        wanted = kinds or ("table", "page", "figure")
        return [path for job in self.jobs if job.step.shown in wanted for path in job.makes]


def _check_metrics(config: Config, settings: Mapping[str, Setting]) -> None:
    """Refuse metrics that no setting can have.

    Raises:
        ConfigError: There is one, named.
    """
    asked: dict[str, list[str]] = {}
    for name in settings:
        for metric in config.metrics_of(name):
            asked.setdefault(metric, []).append(name)
    auc, brittleness = (asked.get(metric, []) for metric in ("auc", "brittleness"))
    if auc and not any(settings[name].dataset.label_noise for name in auc):
        raise ConfigError(
            "config: metrics: auc is about flipped labels, and no setting has any "
            f"(dataset.label_noise): {', '.join(auc)}. Add one that has, such as "
            "mnist_lr_noise10, or leave out auc."
        )
    if brittleness and not any(settings[name].brittleness for name in brittleness):
        raise ConfigError(
            "config: metrics: brittleness is for settings with the section `brittleness`, and "
            f"none has it: {', '.join(brittleness)}. Add one that has, such as mnist_lr, or "
            "leave out brittleness."
        )
    if config.subgroups and not any(setting.has_classes for setting in settings.values()):
        raise ConfigError(
            "config: subgroups: they are classes of test samples, and samples of these settings "
            f"have none: {', '.join(settings)}. Leave out subgroups."
        )
    for name in asked.get("loo_topk", []):
        count = len(settings[name].removed("loo")[0])
        if config.top_k >= count:
            raise ConfigError(
                f"config: top_k: the {config.top_k} that matter most, of {count} samples that "
                f"{name} leaves out (loo.ids); give fewer."
            )


def named(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that some values on the command line were mixed into.

    It gets a name of its own, so that its tables take no other configuration's place.

    Args:
        values: The configuration, those values included.
        given: They themselves. ``device`` and ``exact`` decide no table.
    """
    if set(given) <= {"device", "exact"} or "name" in given:
        return dict(values)
    return {**values, "name": TRIAL}
