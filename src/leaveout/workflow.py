"""What the rules ask: which files a target needs, and which key a job has.

The workflow's own Python, kept here so that it is tested and the rules stay thin. It knows
configuration and paths, and imports neither Snakemake nor torch. Methods that take ``wildcards``
are input or parameter functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from leaveout import costs, plan, resources
from leaveout.config import (
    Config,
    ConfigError,
    Method,
    Scalar,
    Setting,
    label,
    load_methods,
    load_setting,
    nearest,
    parse_config,
    select_methods,
)
from leaveout.damping import damped
from leaveout.metric_names import PANELS, truth_of
from leaveout.plan import Layer, Step

Wildcards = Any
SHOWN = (
    ("magic",),
    ("if_cg", "if_explicit"),
    ("if_ekfac", "if_kfac"),
    ("trak_50", "trak_10", "trak_1"),
    ("grad_dot",),
    ("feature_cosine",),
)
"""The methods pictured unless the configuration says which: of each kind the first one shown."""
EVALUATE = costs.Job(seconds=600, memory=2e9, disk=1e5)
"""What an evaluation should take: most of it is the bootstrap, and memory is bounded."""
TIDY, RANKS, COMPARED = TABLES = (
    "results/tidy.csv",
    "results/rank_table.csv",
    "results/published_table.csv",
)
"""The tables of all metrics, but for that of costs."""


@dataclass(frozen=True)
class Plan:
    """The configured settings, methods and metrics.

    Attributes:
        config: The top-level configuration.
        settings: By name, in order.
        grids: For each setting the methods by name, in order, with its grids.
    """

    config: Config
    settings: dict[str, Setting]
    grids: dict[str, dict[str, Method]]

    @classmethod
    def load(cls, values: Mapping[str, Any], folder: Path | str) -> Plan:
        """Check the configuration and load all it names.

        Args:
            values: The top-level configuration.
            folder: Holds ``settings`` and ``methods.yaml``.

        Raises:
            ConfigError: Something does not fit the schema.
        """
        config = parse_config(values)
        folder = Path(folder)
        settings = {
            name: load_setting(folder / "settings" / f"{name}.yaml") for name in config.settings
        }
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
        for name in asked.get("loo_topk", []):
            count = len(settings[name].removed("loo")[0])
            if config.top_k >= count:
                raise ConfigError(
                    f"config: top_k: the {config.top_k} that matter most, of {count} samples that "
                    f"{name} leaves out (loo.ids); give fewer."
                )
        known = sorted(path.stem for path in (folder / "settings").glob("*.yaml"))
        for name in set(config.grids) - set(known):
            raise ConfigError(f"config: grids: unknown setting {name!r}{nearest(name, known)}")
        methods = load_methods(folder / "methods.yaml")
        grids = {
            setting: {method.name: method for method in select_methods(config, methods, setting)}
            for setting in settings
        }
        return cls(config, settings, grids)

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

    def measuring(self, metric: str) -> list[str]:
        """Return the settings that have a metric."""
        return [setting for setting in self.settings if metric in self.metrics_of(setting)]

    def truths_of(self, setting: str) -> list[str]:
        """Return the ground truths of a setting's metrics: which labels are flipped, is known."""
        metrics = self.metrics_of(setting)
        return list(dict.fromkeys(truth_of(metric) for metric in metrics if metric != "auc"))

    def _chunks(self, setting: str, layer: str, folder: str) -> list[str]:
        names = plan.chunks(self.settings[setting], cast(Layer, layer))
        return [f"results/{setting}/{folder}/{layer}/{name}.safetensors" for name in names]

    def models(self, setting: str, kind: str) -> list[str]:
        """Return the files of a setting's full or half models."""
        return self._chunks(setting, kind, "models")

    def retrained(self, wildcards: Wildcards) -> list[str]:
        """Return the chunks behind a ground truth."""
        return self._chunks(wildcards.setting, wildcards.metric, "retrain")

    def base_model(self, wildcards: Wildcards) -> str:
        """Return the file of full models that a chunk of PBRF starts from."""
        name = plan.base_chunk(self.settings[wildcards.setting], wildcards.chunk)
        return f"results/{wildcards.setting}/models/full/{name}.safetensors"

    def full_models(self, wildcards: Wildcards) -> list[str]:
        """Return the full models of a setting."""
        return self.models(wildcards.setting, "full")

    def half_models(self, wildcards: Wildcards) -> list[str]:
        """Return the half models of a setting, if the method needs them."""
        needed = "half" in self.methods[wildcards.method].needs
        return self.models(wildcards.setting, "half") if needed else []

    def all_models(self) -> list[str]:
        """Return all models of all settings."""
        return [p for s in self.settings for kind in ("full", "half") for p in self.models(s, kind)]

    def truths(self) -> list[str]:
        """Return all ground truths."""
        return [
            f"results/{s}/truth/{m}.safetensors" for s in self.settings for m in self.truths_of(s)
        ]

    def truth(self, wildcards: Wildcards) -> str:
        """Return what a metric compares with: a ground truth, or the data with their flips."""
        if wildcards.metric == "auc":
            return f"results/{wildcards.setting}/data.safetensors"
        return f"results/{wildcards.setting}/truth/{truth_of(wildcards.metric)}.safetensors"

    def _scores(self, setting: str, method: str, ending: str, layer: str = "scores") -> list[str]:
        grid = self.grids[setting][method].grid
        return [f"results/{setting}/{layer}/{method}/{label(point)}{ending}" for point in grid]

    def scores(self, wildcards: Wildcards) -> list[str]:
        """Return what one method says for a metric, one file a grid point."""
        layer = "self_influence" if wildcards.metric == "auc" else "scores"
        return self._scores(wildcards.setting, wildcards.method, ".safetensors", layer)

    def score_layers(self, setting: str) -> list[str]:
        """Return what a setting's metrics need of the methods."""
        needed = {
            "scores": bool(self.truths_of(setting) or self.removing(setting)),
            "self_influence": "auc" in self.metrics_of(setting),
        }
        return [layer for layer, wanted in needed.items() if wanted]

    def all_scores(self, ending: str = ".safetensors") -> list[str]:
        """Return all scores and self-influences, or the files beside them."""
        return [
            path
            for setting in self.settings
            for layer in self.score_layers(setting)
            for method in self.methods
            for path in self._scores(setting, method, ending, layer)
        ]

    @property
    def compared(self) -> tuple[str, ...]:
        """The two methods whose LDS is compared, if any are, and both are shown."""
        pair = self.config.compare or ()
        return pair if "lds" in self.metrics and self.methods.keys() >= set(pair) else ()

    def compared_scores(self, wildcards: Wildcards) -> list[str]:
        """Return the scores of the two methods that are compared."""
        s = wildcards.setting
        return [p for m in self.compared for p in self._scores(s, m, ".safetensors")]

    def widths(self) -> list[str]:
        """Return the tables, then the figures, of how intervals narrow."""
        shapes = ("results/{}/metrics/lds_width.csv", "results/figures/{}_lds_width.svg")
        settings = self.measuring("lds") if self.compared else []
        return [shape.format(setting) for shape in shapes for setting in settings]

    def metric_csvs(self, wildcards: Wildcards) -> list[str]:
        """Return the metrics of all methods and settings."""
        return [
            f"results/{s}/metrics/{wildcards.metric}/{m}.csv"
            for s in self.measuring(wildcards.metric)
            for m in self.methods
        ]

    def draws(self, wildcards: Wildcards) -> list[str]:
        """Return what lies beside the metrics of all methods and settings."""
        return [plan.draws_path(path) for path in self.metric_csvs(wildcards)]

    def all_metric_csvs(self) -> list[str]:
        """Return the metrics of all methods and settings, of all metrics."""
        return [p for m in self.metrics for p in self.metric_csvs(SimpleNamespace(metric=m))]

    def all_draws(self) -> list[str]:
        """Return what lies beside them."""
        return [plan.draws_path(path) for path in self.all_metric_csvs()]

    def all_damping_csvs(self) -> list[str]:
        """Return the dampings chosen without retraining, of all metrics."""
        return [p for m in self.metrics for p in self.damping_csvs(SimpleNamespace(metric=m))]

    def removing(self, setting: str) -> list[str]:
        """Return the methods whose most helpful samples a setting is trained without."""
        asked = self.config.metrics_of(setting)
        if "brittleness" not in asked or not self.settings[setting].brittleness:
            return []
        wanted = self.config.brittleness
        return [method for method in self.methods if wanted is None or method in wanted]

    def chosen_by(self, wildcards: Wildcards) -> list[str]:
        """Return the LDS that chooses which of a method's scores count, if it has a choice."""
        if (
            "lds" not in self.metrics_of(wildcards.setting)
            or len(self.grids[wildcards.setting][wildcards.method].grid) == 1
        ):
            return []
        return [f"results/{wildcards.setting}/metrics/lds/{wildcards.method}.csv"]

    def own_scores(self, wildcards: Wildcards) -> list[str]:
        """Return the scores of one method, one file a grid point."""
        return self._scores(wildcards.setting, wildcards.method, ".safetensors")

    def brittleness_csvs(self, wildcards: Wildcards = None) -> list[str]:
        """Return what retraining without the most helpful samples changed, of all settings."""
        return [
            f"results/{s}/metrics/brittleness/{m}.csv"
            for s in self.settings
            for m in self.removing(s)
        ]

    def grouped(self, setting: str) -> list[str]:
        """Return the metrics of a setting that are shown by subgroup too."""
        measured = self.metrics_of(setting) if self.config.subgroups else []
        return [metric for metric in ("lds", "loo") if metric in measured]

    def grouped_csvs(self, wildcards: Wildcards) -> list[str]:
        """Return one metric of all methods of one setting."""
        s, metric = wildcards.setting, wildcards.metric
        return [f"results/{s}/metrics/{metric}/{m}.csv" for m in self.methods]

    def grouped_scores(self, wildcards: Wildcards) -> list[str]:
        """Return the scores of all methods of one setting."""
        s = wildcards.setting
        return [path for m in self.methods for path in self._scores(s, m, ".safetensors")]

    def subgroup_csvs(self, wildcards: Wildcards = None) -> list[str]:
        """Return the metrics by subgroup, of all settings."""
        return [f"results/{s}/subgroups/{m}.csv" for s in self.settings for m in self.grouped(s)]

    def brittleness_tables(self, wildcards: Wildcards = None) -> list[str]:
        """Return the table of removals, if there are any."""
        return ["results/brittleness_table.csv"] if self.brittleness_csvs() else []

    def more_tables(self) -> list[str]:
        """Return the tables that are no panels: of removals and of subgroups."""
        return [
            *self.brittleness_tables(),
            *(["results/subgroups_table.csv"] if self.subgroup_csvs() else []),
        ]

    def more_figures(self) -> list[str]:
        """Return the figures that are no panels."""
        return ["results/figures/brittleness.svg"] if self.brittleness_csvs() else []

    def damped(self, metric: str) -> list[str]:
        """Return the methods that have a damping to choose for a metric.

        Only the linear datamodeling score leaves it open: what leave-one-out and PBRF ask for is a
        damping known beforehand (:mod:`leaveout.attribution.damping`).
        """
        return [name for name, m in self.methods.items() if metric == "lds" and damped(m)]

    def damping_csvs(self, wildcards: Wildcards) -> list[str]:
        """Return the dampings chosen without retraining, of all settings."""
        metric = wildcards.metric
        return [
            f"results/{s}/damping/{metric}/{m}.csv"
            for s in self.measuring(metric)
            for m in self.damped(metric)
        ]

    def damped_csvs(self, wildcards: Wildcards) -> list[str]:
        """Return the metrics of the methods that have a damping to choose."""
        metric = wildcards.metric
        return [
            f"results/{s}/metrics/{metric}/{m}.csv"
            for s in self.measuring(metric)
            for m in self.damped(metric)
        ]

    def damping_figures(self) -> list[str]:
        """Return the figures of how metrics go with the damping."""
        return [f"results/figures/damping_{m}.svg" for m in self.metrics if self.damped(m)]

    def grid_figures(self) -> list[str]:
        """Return the figures of metrics along the grids, where any method has a choice."""
        choice = {
            metric
            for setting, methods in self.grids.items()
            if any(len(method.grid) > 1 for method in methods.values())
            for metric in self.metrics_of(setting)
        }
        return [f"results/figures/{m}_grids.svg" for m in self.metrics if m in choice]

    def quality_figures(self) -> list[str]:
        """Return the figures of metrics against cost."""
        return [f"results/figures/quality_cost_{m}.svg" for m in self.metrics]

    @property
    def pictured(self) -> list[str]:
        """The methods whose samples are pictured."""
        if self.config.show is not None:
            return [name for name in self.config.show if name in self.methods]
        first = (next((n for n in kind if n in self.methods), None) for kind in SHOWN)
        return [name for name in first if name]

    def examples(self) -> list[str]:
        """Return the pictures of test samples with who supports and opposes them."""
        return [
            f"results/figures/{s}_examples.svg"
            for s in self.settings
            if self.pictured and {"lds", "loo", "pbrf"} & {*self.metrics_of(s)}
        ]

    def self_influences(self) -> list[str]:
        """Return the pictures of the most self-influential training samples."""
        return [
            f"results/figures/{s}_self_influence.svg"
            for s in self.settings
            if self.pictured and "auc" in self.metrics_of(s)
        ]

    def example_truth(self, wildcards: Wildcards) -> str:
        """Return the ground truth whose losses choose test samples: best one that can be drawn."""
        truths = self.truths_of(wildcards.setting)
        metric = next(metric for metric in ("loo", "pbrf", "lds") if metric in truths)
        return f"results/{wildcards.setting}/truth/{metric}.safetensors"

    def example_csvs(self, wildcards: Wildcards) -> list[str]:
        """Return the metrics that choose the hyper-parameters of the methods pictured."""
        measured = self.metrics_of(wildcards.setting)
        metric = next(metric for metric in ("lds", "loo", "pbrf") if metric in measured)
        return [f"results/{wildcards.setting}/metrics/{metric}/{m}.csv" for m in self.pictured]

    def example_scores(self, wildcards: Wildcards) -> list[str]:
        """Return the scores of the methods pictured."""
        s = wildcards.setting
        return [p for m in self.pictured for p in self._scores(s, m, ".safetensors")]

    def self_influence_csvs(self, wildcards: Wildcards) -> list[str]:
        """Return the AUCs of the methods pictured."""
        return [f"results/{wildcards.setting}/metrics/auc/{m}.csv" for m in self.pictured]

    def self_influence_scores(self, wildcards: Wildcards) -> list[str]:
        """Return the self-influence of the methods pictured."""
        s = wildcards.setting
        return [
            p for m in self.pictured for p in self._scores(s, m, ".safetensors", "self_influence")
        ]

    def _method(self, wildcards: Wildcards) -> tuple[Method, dict[str, Scalar]]:
        """Return the method and the grid point of one score matrix."""
        method = self.grids[wildcards.setting][wildcards.method]
        points = {label(point): point for point in method.grid}
        return method, points[wildcards.params]

    def _job(self, step: str, wildcards: Wildcards) -> costs.Job:
        """Return what a job should take."""
        setting = self.settings[wildcards.setting]
        work = costs.workload(setting)
        match step:
            case "prepare":
                return costs.data_job(work)
            case "models" | "lds" | "loo" | "pbrf":
                layer = wildcards.kind if step == "models" else step
                return costs.chunk_job(setting, layer, wildcards.chunk)
            case "truth":
                return costs.truth_job(work, wildcards.metric)
            case "brittleness":
                return costs.brittleness_job(setting)
            case "predict":  # as the data, and models to read
                return costs.data_job(work)
            case "attribute":
                return costs.score_job(work, *self._method(wildcards))
            case "self_influence":
                return costs.self_influence_job(work, *self._method(wildcards))
            case "damping":  # one score matrix more
                method = self.grids[wildcards.setting][wildcards.method]
                return costs.score_job(work, method, method.grid[0])
        assert step == "evaluate"
        return EVALUATE

    def mem_mb(self, step: str) -> Callable[[Wildcards, int], int]:
        """Return the resource function for a step's memory in MB, which grows with the attempt."""

        def memory(wildcards: Wildcards, attempt: int) -> int:
            return resources.mem_mb(self._job(step, wildcards), attempt)

        return memory

    def runtime(self, step: str) -> Callable[[Wildcards, int], int]:
        """Return the resource function for a step's minutes, which grow with the attempt."""

        def minutes(wildcards: Wildcards, attempt: int) -> int:
            return resources.minutes(self._job(step, wildcards), attempt)

        return minutes

    def prepare_key(self, wildcards: Wildcards) -> str:
        """Return the key of data preparation."""
        return plan.prepare_key(self.settings[wildcards.setting])

    def model_key(self, wildcards: Wildcards) -> str:
        """Return the key of a chunk of full or half models."""
        return self.train_key(wildcards.kind)(wildcards)

    def train_key(self, layer: Layer) -> Callable[[Wildcards], str]:
        """Return the parameter function for the key of a chunk of retrainings."""

        def key(wildcards: Wildcards) -> str:
            return plan.train_key(self.settings[wildcards.setting], layer, wildcards.chunk)

        return key

    def truth_key(self, wildcards: Wildcards) -> str:
        """Return the key of a ground truth."""
        return plan.truth_key(self.settings[wildcards.setting], wildcards.metric)

    def attribute_key(self, wildcards: Wildcards) -> str:
        """Return the key of one score matrix."""
        return plan.attribute_key(self.settings[wildcards.setting], *self._method(wildcards))

    def self_influence_key(self, wildcards: Wildcards) -> str:
        """Return the key of one self-influence."""
        return plan.self_influence_key(self.settings[wildcards.setting], *self._method(wildcards))

    def damping_key(self, wildcards: Wildcards) -> str:
        """Return the key of a damping chosen without retraining."""
        method = self.grids[wildcards.setting][wildcards.method]
        return plan.damping_key(self.settings[wildcards.setting], wildcards.metric, method)

    def evaluate_key(self, wildcards: Wildcards) -> str:
        """Return the key of one method's metric."""
        setting = self.settings[wildcards.setting]
        return plan.evaluate_key(
            setting,
            wildcards.metric,
            wildcards.method,
            self.config.bootstrap,
            self.config.top_k,
        )

    def predict_key(self, wildcards: Wildcards) -> str:
        """Return the key of what the full models say of the test samples."""
        return plan.predict_key(self.settings[wildcards.setting])

    def brittleness_key(self, wildcards: Wildcards) -> str:
        """Return the key of the retrainings without a method's most helpful samples."""
        return plan.brittleness_key(self.settings[wildcards.setting], wildcards.method)

    def flips_key(self, wildcards: Wildcards) -> str:
        """Return the key of what these retrainings changed."""
        setting = self.settings[wildcards.setting]
        return plan.flips_key(setting, wildcards.method, self.config.bootstrap)

    def subgroups_key(self, wildcards: Wildcards) -> str:
        """Return the key of a metric by subgroup."""
        setting, methods = self.settings[wildcards.setting], list(self.methods)
        return plan.subgroups_key(setting, wildcards.metric, methods, self.config.bootstrap)

    def shown_key(self, step: str, what: str) -> Callable[[Wildcards], str]:
        """Return the parameter function for the key of a table or figure that is no panel."""
        return lambda wildcards: plan.report_key(step, what)

    def width_key(self, wildcards: Wildcards) -> str:
        """Return the key of how an LDS's interval narrows."""
        setting = self.settings[wildcards.setting]
        return plan.width_key(setting, self.compared, self.config.bootstrap)

    def picture_key(self, step: str) -> Callable[[Wildcards], str]:
        """Return the parameter function for the key of a picture of one setting."""
        return lambda wildcards: plan.report_key(step, wildcards.setting)

    def report_key(self, step: str) -> Callable[[Wildcards], str]:
        """Return the parameter function for the key of a table, page or figure."""
        return lambda wildcards: plan.report_key(step, wildcards.metric)

    def page_key(self, wildcards: Wildcards) -> str:
        """Return the key of a table's page."""
        return plan.report_key("page", wildcards.table)

    @property
    def paged(self) -> tuple[str, ...]:
        """The tables that have a page each."""
        more = [Path(path).name.removesuffix("_table.csv") for path in self.more_tables()]
        return (*self.metrics, "rank", "published", "cost", *more)

    def pages(self) -> list[str]:
        """Return all pages of the report, the first one first."""
        return [f"results/pages/{name}.html" for name in ("start", *self.paged, "setup")]

    def panels(self, wildcards: Wildcards) -> list[str]:
        """Return the tables of all metrics."""
        return [f"results/{metric}_table.csv" for metric in self.metrics]

    def start_key(self, wildcards: Wildcards) -> str:
        """Return the key of the report's first page."""
        return plan.start_key(list(self.settings.values()), self.metrics)

    def made(self, wildcards: Wildcards) -> list[str]:
        """Return artefacts of all settings that say what made them."""
        return [
            path
            for s in self.settings
            for path in (
                f"results/{s}/data.safetensors",
                *self.models(s, "full"),
                *(f"results/{s}/truth/{metric}.safetensors" for metric in self.truths_of(s)),
            )
        ]

    def setup_key(self, wildcards: Wildcards) -> str:
        """Return the key of the page of versions, hardware and configuration."""
        return plan.setup_key(list(self.settings.values()))

    @staticmethod
    def if_stale(stale: Collection[str], output: str) -> Callable[[Wildcards], list[str]]:
        """Return the input function that makes a job due if its output is stale.

        Args:
            stale: The stale files.
            output: The output's path, with wildcards in braces.

        Returns:
            A function that gives :data:`leaveout.plan.STALE_MARK`, newer than any stale file, or
            nothing.
        """
        return lambda wildcards: (
            [plan.STALE_MARK] if output.format_map(dict(wildcards.items())) in stale else []
        )

    @staticmethod
    def if_needed(
        settled: Callable[[], Collection[str]],
        output: str,
        wanted: Mapping[str, str | Callable[[Wildcards], str | list[str]]],
    ) -> Callable[[Wildcards], dict[str, list[str]]]:
        """Return the input function of a job whose inputs are not all published.

        Snakemake makes a missing input as soon as any job needs it, and then every other job that
        reads it anew. So a job with nothing to do asks for what is there, and for no more.

        Args:
            settled: Gives the files that no job has to make anew.
            output: The output's path, with wildcards in braces.
            wanted: By name the inputs, with wildcards in braces, or functions that return them.

        Returns:
            A function that gives the inputs by name, to be unpacked.
        """

        def inputs(wildcards: Wildcards) -> dict[str, list[str]]:
            named = dict(wildcards.items())
            at_rest = output.format_map(named) in settled()

            def paths(of: str | Callable[[Wildcards], str | list[str]]) -> list[str]:
                found = of.format_map(named) if isinstance(of, str) else of(wildcards)
                found = [found] if isinstance(found, str) else found
                return [path for path in found if not at_rest or Path(path).is_file()]

            return {name: paths(of) for name, of in wanted.items()}

        return inputs

    def shown(self) -> list[str]:
        """Return what people look at: tables, their pages, figures."""
        shapes = ("results/{}_table.csv", "results/figures/{}.svg")
        return [s.format(m) for s in shapes for m in self.metrics] + [
            "results/cost_table.csv",
            *TABLES,
            *self.pages(),
            *self.widths(),
            *self.damping_figures(),
            *self.grid_figures(),
            *self.quality_figures(),
            *self.examples(),
            *self.self_influences(),
            *self.more_tables(),
            *self.more_figures(),
        ]

    def steps(self, published: str) -> list[Step]:
        """Return all jobs there can be, each after those that make its inputs.

        Args:
            published: The path of the published values.
        """
        found = []
        for name in self.settings:
            found += self._setting_steps(name)
        for metric in self.metrics:
            w = SimpleNamespace(metric=metric)
            csvs, table = self.metric_csvs(w), f"results/{metric}_table.csv"
            dampings = self.damping_csvs(w)
            found += [
                Step(
                    (table,),
                    (*csvs, published, *dampings, *self.draws(w)),
                    self.report_key("table")(w),
                ),
                Step(
                    (f"results/figures/{metric}.svg",), (table, *csvs), self.report_key("figure")(w)
                ),
            ]
            if dampings:
                inputs = (*dampings, *self.damped_csvs(w))
                path = f"results/figures/damping_{metric}.svg"
                found.append(Step((path,), inputs, self.report_key("damping_figure")(w)))
            if (path := f"results/figures/{metric}_grids.svg") in self.grid_figures():
                found.append(Step((path,), tuple(csvs), self.report_key("grid_figure")(w)))
        costs = self.all_scores(".cost.json")
        csvs, draws = self.all_metric_csvs(), self.all_draws()
        causes = str(Path(published).parent / "causes.yaml")
        tables = {
            "results/cost_table.csv": ((*costs, *csvs), plan.report_key("table", "cost")),
            TIDY: ((*csvs, *draws, *self.all_damping_csvs()), plan.report_key("tidy", "all")),
            RANKS: ((*csvs, *draws), plan.report_key("ranks", "all")),
            COMPARED: ((*csvs, published, causes), plan.report_key("published", "all")),
        }
        found += [Step((path,), *of) for path, of in tables.items()]
        for metric, path in zip(self.metrics, self.quality_figures(), strict=True):
            pair = (f"results/{metric}_table.csv", "results/cost_table.csv")
            found.append(Step((path,), pair, plan.report_key("quality_figure", metric)))
        if removed := tuple(self.brittleness_csvs()):
            for path, step in (
                ("results/brittleness_table.csv", "brittleness_table"),
                ("results/figures/brittleness.svg", "brittleness_figure"),
            ):
                found.append(Step((path,), removed, plan.report_key(step, "brittleness")))
        if groups := tuple(self.subgroup_csvs()):
            path, key = (
                "results/subgroups_table.csv",
                plan.report_key("subgroups_table", "subgroups"),
            )
            found.append(Step((path,), groups, key))
        for name in self.paged:
            inputs = (f"results/{name}_table.csv",)
            found.append(
                Step((f"results/pages/{name}.html",), inputs, plan.report_key("page", name))
            )
        start, setup = (f"results/pages/{name}.html" for name in ("start", "setup"))
        found.append(
            Step(
                (start,),
                (*self.panels(None), RANKS, *self.brittleness_tables()),
                self.start_key(None),
            )
        )
        made = ("results/cost_table.csv", *self.made(None))
        return [*found, Step((setup,), made, self.setup_key(None))]

    def _setting_steps(self, name: str) -> list[Step]:
        data = f"results/{name}/data.safetensors"
        found = [Step((data,), (), self.prepare_key(SimpleNamespace(setting=name)))]
        for layer in costs.LAYERS:
            folder = "models" if layer in ("full", "half") else "retrain"
            for path in self._chunks(name, layer, folder):
                w = SimpleNamespace(setting=name, chunk=Path(path).stem)
                base = (self.base_model(w),) if layer == "pbrf" else ()
                own = (
                    f"train_models/{name}-{layer}"
                    if folder == "models"
                    else f"retrain_{layer}/{name}"
                )
                benchmark = f"benchmarks/{own}-{w.chunk}.tsv"
                found.append(Step((path,), (data, *base), self.train_key(layer)(w), benchmark))
        for metric in self.truths_of(name):
            w = SimpleNamespace(setting=name, metric=metric)
            found.append(Step((self.truth(w),), tuple(self.retrained(w)), self.truth_key(w)))
        said = f"results/{name}/predictions.safetensors"
        if self.removing(name) or self.grouped(name):
            w = SimpleNamespace(setting=name)
            found.append(Step((said,), (data, *self.full_models(w)), self.predict_key(w)))
        for method in self.methods:
            w = SimpleNamespace(setting=name, method=method)
            models = (*self.full_models(w), *self.half_models(w))
            keys = {"scores": self.attribute_key, "self_influence": self.self_influence_key}
            for made in self.score_layers(name):
                for point in self.grids[name][method].grid:
                    w.params = label(point)
                    stem = f"results/{name}/{made}/{method}/{w.params}"
                    outputs = (f"{stem}.safetensors", f"{stem}.cost.json")
                    rule = "attribute" if made == "scores" else made
                    benchmark = f"benchmarks/{rule}/{name}-{method}-{w.params}.tsv"
                    found.append(Step(outputs, (data, *models), keys[made](w), benchmark))
            for metric in self.metrics_of(name):
                w.metric = metric
                inputs = (self.truth(w), *self.scores(w))
                path = f"results/{name}/metrics/{metric}/{method}.csv"
                outputs = (path, plan.draws_path(path))
                found.append(Step(outputs, inputs, self.evaluate_key(w)))
                if method in self.damped(metric):
                    inputs = (data, *models, *self.scores(w))
                    path = f"results/{name}/damping/{metric}/{method}.csv"
                    found.append(Step((path,), inputs, self.damping_key(w)))
            if method in self.removing(name):
                path = f"results/{name}/retrain/brittleness/{method}.safetensors"
                inputs = (data, said, *self.own_scores(w), *self.chosen_by(w))
                benchmark = f"benchmarks/retrain_brittleness/{name}-{method}.tsv"
                found.append(Step((path,), inputs, self.brittleness_key(w), benchmark))
                csv = f"results/{name}/metrics/brittleness/{method}.csv"
                found.append(Step((csv,), (path,), self.flips_key(w)))
        for metric in self.grouped(name):
            w = SimpleNamespace(setting=name, metric=metric)
            inputs = (
                *(self.truth(w), data, said),
                *(*self.grouped_csvs(w), *self.grouped_scores(w)),
            )
            path = f"results/{name}/subgroups/{metric}.csv"
            found.append(Step((path,), inputs, self.subgroups_key(w)))
        if (path := f"results/{name}/metrics/lds_width.csv") in self.widths():
            w = SimpleNamespace(setting=name)
            inputs = (f"results/{name}/truth/lds.safetensors", *self.compared_scores(w))
            picture = f"results/figures/{name}_lds_width.svg"
            found.append(Step((path,), inputs, self.width_key(w)))
            found.append(Step((picture,), (path,), plan.report_key("width_figure", name)))
        w = SimpleNamespace(setting=name)
        if (picture := f"results/figures/{name}_examples.svg") in self.examples():
            inputs = (data, self.example_truth(w), *self.example_csvs(w), *self.example_scores(w))
            found.append(Step((picture,), inputs, plan.report_key("examples_figure", name)))
        if (picture := f"results/figures/{name}_self_influence.svg") in self.self_influences():
            inputs = (data, *self.self_influence_csvs(w), *self.self_influence_scores(w))
            found.append(Step((picture,), inputs, plan.report_key("self_influence_figure", name)))
        return found
