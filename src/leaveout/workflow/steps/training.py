"""Steps that prepare data, train models, and retrain them for ground truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from leaveout.config import Layer, Setting, model_identity, objective_identity
from leaveout.config.subset_file import subset_size
from leaveout.data.identity import data_identity
from leaveout.retraining.items import base_chunk, chunk, chunks, items
from leaveout.workflow import costs
from leaveout.workflow.lock import own_code
from leaveout.workflow.plan import Plan
from leaveout.workflow.step import Input, Job, Names, Step

DATA = Input("the setting's data artefact", "results/{setting}/data.safetensors")
FULL = Input(
    "full models",
    lambda plan, names: plan.files("train", setting=names["setting"], kind="full"),
    many=True,
)


def problem_identity(setting: Setting) -> dict[str, Any]:
    """Return what decides a model and what is asked of it, the user's own code included."""
    model, objective = setting.model, setting.objective
    return {
        "model": model_identity(model),
        **objective_identity(objective),
        **own_code(model, objective),
    }


def training_identity(setting: Setting) -> dict[str, Any]:
    """Return what decides a training, whatever is left out."""
    return {
        "seed": setting.seed,
        "n_train": setting.dataset.n_train,
        **problem_identity(setting),
        "recipe": setting.recipe.identity(),
    }


def digest(values: Any) -> str:
    """Return 16 hex digits that stand for a long list in a key."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _every_chunk(layer: Layer) -> Callable[[Plan], Iterator[Names]]:
    def every(plan: Plan) -> Iterator[Names]:
        for name, setting in plan.settings.items():
            for part in chunks(setting, layer):
                yield {"setting": name, "chunk": part}

    return every


def _chunk_identity(layer: Layer) -> Callable[[Job], dict[str, Any]]:
    """Return what decides a chunk: what it trains, not how many others there are."""

    def decides(job: Job) -> dict[str, Any]:
        setting = job.setting
        section = getattr(setting, layer).model_dump(
            exclude={"chunk", "subsets", "runs", "ids", "replicate", "second"}
        )
        wanted = chunk(setting, layer, job["chunk"])
        if layer == "full":
            section["checkpoints"] = setting.checkpoint_epochs()
        if layer == "loo" and wanted[0][1]:
            section["second"] = setting.loo.second
        if layer == "lds" and (own := setting.lds.own):
            del section["ratio"]
            section["kept"] = digest([own.digests[subset] for subset, _ in wanted])
        if "ratio" in section:  # rounded by code of the configuration, which is in no digest
            section["size"] = subset_size(setting.dataset.n_train, section["ratio"])
        trained = {"count": len(wanted), "items": digest(wanted)}
        return {**training_identity(setting), layer: section, **trained}

    return decides


def _cost(layer: Layer) -> Callable[[Job], costs.Job]:
    return lambda job: costs.chunk_job(job.setting, layer, job["chunk"])


def _call(job: Job) -> dict[str, Any]:
    return {
        "setting": job.setting,
        "name": job["chunk"],
        "data_path": job.file("data"),
        "device": job.device,
    }


PREPARE = Step(
    name="prepare",
    help="load, split and normalise a data set",
    outputs={"out": "results/{setting}/data.safetensors"},
    inputs={},
    every=lambda plan: [{"setting": name} for name in plan.settings],
    compute="leaveout.data.prepare:prepare",
    call=lambda job: {"setting": job.setting},
    decides=lambda job: {**data_identity(job.setting), **own_code(job.setting.dataset)},
    takes=lambda job: costs.data_job(costs.workload(job.setting)),
)


def _every_model(plan: Plan) -> Iterator[Names]:
    for name, setting in plan.settings.items():
        for kind in ("full", "half"):
            for part in chunks(setting, kind):
                yield {"setting": name, "kind": kind, "chunk": part}


TRAIN = Step(
    name="train",
    help="train one chunk of full or half models",
    outputs={"out": "results/{setting}/models/{kind}/{chunk}.safetensors"},
    inputs={"data": DATA},
    every=_every_model,
    compute="leaveout.retraining.models:train_models",
    call=lambda job: {**_call(job), "kind": job["kind"]},
    decides=lambda job: _chunk_identity(job["kind"])(job),  # type: ignore[arg-type]
    takes=lambda job: _cost(job["kind"])(job),  # type: ignore[arg-type]
    device=True,
)
RETRAIN_LDS = Step(
    name="retrain_lds",
    help="retrain on one chunk of random subsets",
    outputs={"out": "results/{setting}/retrain/lds/{chunk}.safetensors"},
    inputs={"data": DATA},
    every=_every_chunk("lds"),
    compute="leaveout.retraining.lds:retrain_lds",
    call=_call,
    decides=_chunk_identity("lds"),
    takes=_cost("lds"),
    device=True,
)
RETRAIN_LOO = Step(
    name="retrain_loo",
    help="retrain with each sample of a chunk left out",
    outputs={"out": "results/{setting}/retrain/loo/{chunk}.safetensors"},
    inputs={"data": DATA},
    every=_every_chunk("loo"),
    compute="leaveout.retraining.loo:retrain_loo",
    call=_call,
    decides=_chunk_identity("loo"),
    takes=_cost("loo"),
    device=True,
)


def _base(plan: Plan, names: Names) -> list[str]:
    """Return the file of full models that a chunk of PBRF starts from."""
    setting = names["setting"]
    part = base_chunk(plan.settings[setting], names["chunk"])
    return plan.files("train", setting=setting, kind="full", chunk=part)


RETRAIN_PBRF = Step(
    name="retrain_pbrf",
    help="move a full model to where a chunk's samples count less",
    outputs={"out": "results/{setting}/retrain/pbrf/{chunk}.safetensors"},
    inputs={"data": DATA, "full": Input("the full models of the chunk's run", _base)},
    every=_every_chunk("pbrf"),
    compute="leaveout.retraining.pbrf:retrain_pbrf",
    call=lambda job: {**_call(job), "full_path": job.file("full")},
    decides=_chunk_identity("pbrf"),
    takes=_cost("pbrf"),
    device=True,
)
MERGE_TRUTH = Step(
    name="merge_truth",
    help="put a ground truth together",
    outputs={"out": "results/{setting}/truth/{truth}.safetensors"},
    inputs={
        "chunks": Input(
            "the chunks, in order",
            lambda plan, names: plan.files(f"retrain_{names['truth']}", setting=names["setting"]),
            many=True,
        )
    },
    every=lambda plan: [
        {"setting": name, "truth": truth}
        for name in plan.settings
        for truth in plan.truths_of(name)
    ],
    compute="leaveout.retraining.truth:merge_truth",
    call=lambda job: {
        "setting": job.setting,
        "kind": job["truth"],
        "chunk_paths": job.files("chunks"),
    },
    decides=lambda job: {"items": digest(items(job.setting, job["truth"]))},  # type: ignore[arg-type]
    takes=lambda job: costs.truth_job(costs.workload(job.setting), job["truth"]),  # type: ignore[arg-type]
)
PREDICT = Step(
    name="predict",
    help="say what full models make of the test samples",
    outputs={"out": "results/{setting}/predictions.safetensors"},
    inputs={"data": DATA, "full": FULL},
    every=lambda plan: [
        {"setting": name} for name in plan.settings if plan.removing(name) or plan.grouped(name)
    ],
    compute="leaveout.retraining.predictions:predict",
    call=lambda job: {
        "setting": job.setting,
        "data_path": job.file("data"),
        "full_paths": job.files("full"),
        "device": job.device,
    },
    decides=lambda job: problem_identity(job.setting),
    takes=lambda job: costs.data_job(costs.workload(job.setting)),  # and models to read
    device=True,
)

STEPS = (PREPARE, TRAIN, RETRAIN_LDS, RETRAIN_LOO, RETRAIN_PBRF, MERGE_TRUTH, PREDICT)
