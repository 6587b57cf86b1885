"""The plan: which jobs a setting needs, and what decides the result of each.

A job's *key* is a JSON text of all that decides its output beside its input files: the parts of the
configuration it uses, the items of its chunk, and the digest of its code. The workflow passes it as
the job's parameter; the job writes it into the stamp of what it makes (:mod:`leaveout.stamps`), and
a job runs again exactly when its key or an input's changes. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from leaveout import costs
from leaveout.config import ConfigError, Method, Scalar, Setting
from leaveout.costs import Layer as Layer
from leaveout.data.catalogue import DATASETS
from leaveout.digest import code_digest

CODE = {
    "prepare": "leaveout.data.prepare",
    "full": "leaveout.retraining.models",
    "half": "leaveout.retraining.models",
    "lds": "leaveout.retraining.lds",
    "loo": "leaveout.retraining.loo",
    "pbrf": "leaveout.retraining.pbrf",
    "truth": "leaveout.retraining.truth",
    "predict": "leaveout.retraining.predictions",
    "brittleness": "leaveout.retraining.brittleness",
    "attribute": "leaveout.attribution.run",
    "self_influence": "leaveout.attribution.self_influence",
    "damping": "leaveout.attribution.damping",
    "evaluate": "leaveout.metrics.evaluate",
    "auc": "leaveout.metrics.auc",
    "width": "leaveout.metrics.width",
    "flips": "leaveout.metrics.brittleness",
    "subgroups": "leaveout.metrics.subgroups",
    "table": "leaveout.reporting.tables",
    "tidy": "leaveout.reporting.tidy",
    "ranks": "leaveout.reporting.ranks",
    "published": "leaveout.reporting.published",
    "page": "leaveout.reporting.pages",
    "start": "leaveout.reporting.start",
    "setup": "leaveout.reporting.setup",
    "figure": "leaveout.reporting.figures",
    "grid_figure": "leaveout.reporting.figures",
    "quality_figure": "leaveout.reporting.quality",
    "examples_figure": "leaveout.reporting.examples",
    "self_influence_figure": "leaveout.reporting.examples",
    "width_figure": "leaveout.reporting.widths",
    "damping_figure": "leaveout.reporting.dampings",
    "brittleness_table": "leaveout.reporting.brittleness",
    "brittleness_figure": "leaveout.reporting.brittleness",
    "subgroups_table": "leaveout.reporting.subgroups",
}
"""The module that does each step."""

STALE_MARK = ".snakemake/not-as-configured"
"""Newer than any stale file: an input that makes their jobs due."""


@dataclass(frozen=True)
class Step:
    """One job of the workflow.

    Attributes:
        outputs: The files it makes.
        inputs: The files it reads, in the order of its command line.
        key: What decides the outputs beside the inputs.
        benchmark: Where Snakemake keeps the job's time and memory, if it does. No result, but its
            own time counts as an output's: older than an input, it makes the job due.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    key: str
    benchmark: str = ""


def draws_path(metric_csv: str) -> str:
    """Return where the draws lie that go with metrics (:mod:`leaveout.metrics.draws`)."""
    return f"{metric_csv.removesuffix('.csv')}.draws.safetensors"


def items(setting: Setting, layer: Layer) -> list[tuple[int, int]]:
    """Return all trainings of a layer as (item, run), in the order they are cut into chunks.

    The item is a run for full and half models (run is then the same), a subset for LDS, and a
    sample's place in the training slice for LOO and PBRF, of which the replicated ones have a run
    1. All of one run come before the next run's.
    """
    match layer:
        case "full" | "half":
            return [(run, run) for run in range(getattr(setting, layer).runs)]
        case "lds":
            lds = setting.lds
            return [(subset, run) for run in range(lds.runs) for subset in range(lds.count)]
        case "loo" | "pbrf":
            ids, again = setting.removed(layer)
            return [(i, 0) for i in ids] + [(i, 1) for i in again]


@cache  # every chunk's key asks for all of them
def chunks(setting: Setting, layer: Layer) -> dict[str, list[tuple[int, int]]]:
    """Return the trainings of each chunk by its name; a chunk holds one run only, but of models.

    Chunks lie on a grid that begins anew with each run and does not depend on how many items or
    runs there are, so whatever is added leaves whole chunks as they are. Where the configuration
    fixes no size, it follows from the time of one training, see :mod:`leaveout.costs`.
    """
    rest = iter(items(setting, layer))
    sizes = costs.chunk_sizes(costs.workload(setting), layer)
    return {name: list(itertools.islice(rest, size)) for name, size in sizes.items()}


def chunk(setting: Setting, layer: Layer, name: str) -> list[tuple[int, int]]:
    """Return the trainings of one chunk.

    Raises:
        ConfigError: There is no such chunk.
    """
    cut = chunks(setting, layer)
    if name not in cut:
        first, *_, last = [*cut, *cut]
        raise ConfigError(
            f"{setting.name}: {layer} has {len(cut)} chunks, {first} to {last} "
            f"({layer}.chunk = {getattr(setting, layer).chunk}); there is no chunk {name}"
        )
    return cut[name]


def base_chunk(setting: Setting, name: str) -> str:
    """Return which chunk of full models holds the run that a chunk of PBRF starts from.

    Raises:
        ConfigError: There is no such chunk of PBRF.
    """
    run = chunk(setting, "pbrf", name)[0][1]
    return next(full for full, part in chunks(setting, "full").items() if (run, run) in part)


def _key(step: str, **decides: Any) -> str:
    return json.dumps({"step": step, "code": code_digest(CODE[step]), **decides}, sort_keys=True)


def _training(setting: Setting) -> dict[str, Any]:
    return {
        "setting": setting.name,
        "seed": setting.seed,
        "n_train": setting.dataset.n_train,
        "model": setting.model.model_dump(),
        "recipe": setting.recipe.model_dump(),
    }


def prepare_key(setting: Setting) -> str:
    """Return the key of data preparation."""
    # wherever they come from, the samples are checked to be the same
    dataset = setting.dataset.model_dump(exclude={"source"}, exclude_none=True)
    if setting.dataset.label_noise is not None:  # nothing else is drawn
        dataset["label_noise"]["seed"] = setting.seed
    return _key(
        "prepare",
        dataset=dataset,
        full_scale=DATASETS[setting.dataset.name].full_scale,
        n_classes=setting.dataset.n_classes,
    )


def train_key(setting: Setting, layer: Layer, name: str) -> str:
    """Return the key of one chunk of trainings: what it trains, not how many others there are."""
    section = getattr(setting, layer).model_dump(
        exclude={"chunk", "subsets", "runs", "ids", "replicate", "second"}
    )
    if layer == "full":
        section["checkpoints"] = setting.checkpoint_epochs()
    wanted = chunk(setting, layer, name)
    if layer == "loo" and wanted[0][1]:
        section["second"] = setting.loo.second
    if layer == "lds" and (own := setting.lds.own):
        del section["ratio"]
        kept = "\n".join(own.digests[subset] for subset, _ in wanted)
        section["kept"] = hashlib.sha256(kept.encode()).hexdigest()
    return _key(layer, **_training(setting), **{layer: section}, items=wanted)


def truth_key(setting: Setting, layer: Layer) -> str:
    """Return the key of a ground truth: which trainings it puts together."""
    return _key("truth", layer=layer, items=items(setting, layer))


def predict_key(setting: Setting) -> str:
    """Return the key of what the full models say of the test samples."""
    return _key("predict", setting=setting.name, model=setting.model.model_dump())


def brittleness_key(setting: Setting, method: str) -> str:
    """Return the key of the retrainings without a method's most helpful samples."""
    asked = setting.brittleness.model_dump() if setting.brittleness else None
    return _key("brittleness", **_training(setting), brittleness=asked, method=method)


def attribute_key(setting: Setting, method: Method, params: dict[str, Scalar]) -> str:
    """Return the key of one score matrix."""
    return _score_key("attribute", setting, method, params)


def self_influence_key(setting: Setting, method: Method, params: dict[str, Scalar]) -> str:
    """Return the key of the self-influence by one method."""
    return _score_key("self_influence", setting, method, params)


def _score_key(step: str, setting: Setting, method: Method, params: dict[str, Scalar]) -> str:
    return _key(
        step,
        setting=setting.name,
        seed=setting.seed,
        model=setting.model.model_dump(),
        recipe=setting.recipe.model_dump(),
        limits=setting.attribution.model_dump(),
        method=method.name,
        method_code=code_digest(method.module),
        params=params,
    )


def damping_key(setting: Setting, metric: str, method: Method) -> str:
    """Return the key of the damping chosen for a method without retraining."""
    decides: dict[str, Any] = {"recipe": setting.recipe.model_dump()}
    if metric == "lds":
        own = setting.lds.own
        decides["subsets"] = list(own.digests) if own else setting.lds.ratio
    if metric == "pbrf":
        decides = {"damping": setting.pbrf.damping}
    return _key(
        "damping",
        setting=setting.name,
        seed=setting.seed,
        model=setting.model.model_dump(),
        limits=setting.attribution.model_dump(),
        metric=metric,
        method=method.name,
        method_code=code_digest(method.module),
        **decides,
    )


def evaluate_key(
    setting: Setting, metric: str, method: str, bootstrap: int, top_k: int = 10
) -> str:
    """Return the key of one method's metric; ``top_k`` decides ``loo_topk`` alone."""
    return _key(
        "auc" if metric == "auc" else "evaluate",
        setting=setting.name,
        seed=setting.seed,
        metric=metric,
        method=method,
        bootstrap=bootstrap,
        **({"top_k": top_k} if metric == "loo_topk" else {}),
    )


def flips_key(setting: Setting, method: str, bootstrap: int) -> str:
    """Return the key of what retraining without a method's most helpful samples changed."""
    return _key(
        "flips", setting=setting.name, seed=setting.seed, method=method, bootstrap=bootstrap
    )


def subgroups_key(setting: Setting, metric: str, methods: Sequence[str], bootstrap: int) -> str:
    """Return the key of a metric by subgroup of the test samples."""
    return _key(
        "subgroups",
        setting=setting.name,
        seed=setting.seed,
        metric=metric,
        methods=list(methods),
        bootstrap=bootstrap,
    )


def width_key(setting: Setting, compare: Sequence[str], bootstrap: int) -> str:
    """Return the key of how an LDS's interval narrows with subsets and runs."""
    return _key(
        "width",
        setting=setting.name,
        seed=setting.seed,
        compare=list(compare),
        bootstrap=bootstrap,
    )


def report_key(step: str, what: str) -> str:
    """Return the key of a table, page or figure; which cells it shows, its inputs say.

    Args:
        step: ``table``, ``tidy``, ``ranks``, ``published``, ``page``, ``figure``,
            ``damping_figure``, ``width_figure``, ``brittleness_table``, ``brittleness_figure`` or
            ``subgroups_table``.
        what: The metric, ``cost``, or ``all``; the setting, for a ``width_figure``; the table, for
            a ``page``.
    """
    return _key(step, shows=what)


def start_key(settings: Sequence[Setting], metrics: Sequence[str]) -> str:
    """Return the key of the report's first page: what it shows, and says of the settings."""
    return _key("start", metrics=list(metrics), settings=[[s.name, _about(s)] for s in settings])


def _about(setting: Setting) -> dict[str, Any]:
    return {
        "dataset": setting.dataset.model_dump(
            include={"name", "n_train", "n_test", "label_noise"}, exclude_none=True
        ),
        "model": setting.model.name,
    }


def resolved(setting: Setting) -> dict[str, Any]:
    """Return a setting with its defaults, without where its data come from: it decides nothing."""
    values = setting.model_dump(mode="json", exclude_none=True, exclude={"name"})
    values["dataset"].pop("source", None)
    if own := setting.lds.own:
        values["lds"]["subsets"] = f"{len(own)} of {Path(own.file).name}"
    return values


def setup_key(settings: Sequence[Setting]) -> str:
    """Return the key of the page that shows the configuration, which is in it whole."""
    return _key("setup", settings=[[s.name, resolved(s)] for s in settings])
